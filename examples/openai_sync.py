"""A conversation through OpenAI's client, and the same answer again from its seed."""

import os

from openai import OpenAI  # pip install openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=os.environ.get("API_KEY", "none"))

messages = [{"role": "user", "content": "My name is Ada."}]
answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
messages.append({"role": "assistant", "content": answer.choices[0].message.content})
messages.append({"role": "user", "content": "What is my name?"})
answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
print(answer.choices[0].message.content)

# No seed is given, so the server draws one and says which. With it, the story comes again.
story = [{"role": "user", "content": "Tell me a story about a fox."}]
first = client.chat.completions.create(model="demo", messages=story, temperature=1.2)
again = client.chat.completions.create(
    model="demo", messages=story, temperature=1.2, seed=first.seed
)
print(first.choices[0].message.content)
same = first.choices[0].message.content == again.choices[0].message.content
print(f"seed {first.seed}, {first.system_fingerprint}: the same again: {same}")
