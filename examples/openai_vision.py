"""Two images in one message, through OpenAI's client. They travel in the request itself."""

import base64
import os
from pathlib import Path

from openai import OpenAI  # pip install openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
IMAGES = Path(__file__).resolve().parent.parent / "demo" / "images"
client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=os.environ.get("API_KEY", "none"))


def block(name: str) -> dict:
    """An image as a block of a message."""
    data = base64.b64encode((IMAGES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


answer = client.chat.completions.create(
    model="demo",
    messages=[
        {
            "role": "user",
            "content": [
                block("red_circle.png"),
                block("blue_star.png"),
                {"type": "text", "text": "What is in these images?"},
            ],
        }
    ],
    temperature=0,
)
print(answer.choices[0].message.content)
