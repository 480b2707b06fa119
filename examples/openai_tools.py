"""A tool that the model must call: ``tool_choice="required"`` lets it write nothing else."""

import json
import os

from openai import OpenAI  # pip install openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=os.environ.get("API_KEY", "none"))

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paint a shape.",
            "parameters": {
                "type": "object",
                "properties": {
                    "shape": {"type": "string", "enum": ["circle", "square", "star"]},
                    "colour": {"type": "string", "enum": ["red", "green", "blue"]},
                },
                "required": ["shape", "colour"],
                "additionalProperties": False,
            },
        },
    }
]


def paint(shape: str, colour: str) -> str:
    """What the tool does."""
    return f"a {colour} {shape} is painted"


answer = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Paint a blue star."}],
    tools=TOOLS,
    tool_choice="required",
    temperature=0,
)
for call in answer.choices[0].message.tool_calls:
    arguments = json.loads(call.function.arguments)
    print(f"{call.function.name}({arguments}): {paint(**arguments)}")
