"""A streamed answer through OpenAI's client: the text as it comes, then its usage."""

import os

from openai import OpenAI  # pip install openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=os.environ.get("API_KEY", "none"))

stream = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Tell me about yourself."}],
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:  # only the last chunk has it
        print(f"\n{chunk.usage.completion_tokens} tokens, {chunk.system_fingerprint}")
