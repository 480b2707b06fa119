"""Verify an answer: another machine checks it in a fraction of the time that it took to answer."""

import json
import os
import urllib.request

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")


def post(path: str, body: dict) -> dict:
    """The JSON that a route answers."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{BASE_URL}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


task = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
    "generation_config": {"do_sample": True, "temperature": 1.2},
    "seed": 42,
    "return_token_ids": True,  # a response can be verified by its tokens
}
response = post("/v1/tasks", task)
print(response["choices"][0]["message"]["content"])

verdict = post("/v1/verifications", {"task": task, "response": response})
print(f"as it was answered: {verdict['verdict']}, {verdict['tokens_checked']} tokens")

# Somebody claims another answer: one token of it is not the one that the seed draws.
response["choices"][0]["token_ids"][5] += 1
verdict = post("/v1/verifications", {"task": task, "response": response})
print(f"with another token: {verdict['verdict']}, {verdict['first_difference']}")
