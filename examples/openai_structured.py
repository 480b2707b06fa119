"""An answer that must match a JSON Schema: the schema constrains what can be generated."""

import json
import os

from openai import OpenAI  # pip install openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=os.environ.get("API_KEY", "none"))

SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"type": "string", "enum": ["circle", "square", "triangle", "star", "heart"]},
        "plain": {"type": "boolean"},
    },
    "required": ["shape", "plain"],
    "additionalProperties": False,
}

answer = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Name a shape."}],
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True},
    },
    temperature=0,
)
print(json.loads(answer.choices[0].message.content))
