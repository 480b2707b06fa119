"""The task endpoint with the standard library only: whole, then streamed with an image."""

import base64
import json
import os
import urllib.request
from pathlib import Path

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
IMAGES = Path(__file__).resolve().parent.parent / "demo" / "images"


def post(path: str, task: dict) -> urllib.request.Request:
    """A request with a task as its body."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return urllib.request.Request(f"{BASE_URL}{path}", json.dumps(task).encode(), headers)


story = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
    "generation_config": {"do_sample": True, "temperature": 1.2, "num_return_sequences": 2},
    "seed": 42,
}
with urllib.request.urlopen(post("/v1/tasks", story)) as response:
    answer = json.load(response)
for choice in answer["choices"]:
    print(f"{choice['index']}: {choice['message']['content']}")

image = base64.b64encode((IMAGES / "red_circle.png").read_bytes()).decode()
question = {
    "model": "demo",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "base64": image},
                {"type": "text", "text": "What is in this image?"},
            ],
        }
    ],
}
with urllib.request.urlopen(post("/v1/tasks?stream=true", question)) as response:
    for line in response:
        event = line.decode().strip().removeprefix("data: ")
        if event in ("", "[DONE]"):
            continue
        chunk = json.loads(event)
        if "error" in chunk:  # the last event, when a task fails after it has begun
            raise SystemExit(chunk["error"]["message"])
        print(chunk["choices"][0]["delta"]["content"], end="", flush=True)
print()
