"""Anthropic's client: a call of a tool and its result by hand, whole and streamed."""

import anthropic
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

client = anthropic.Anthropic(base_url=BASE_URL, api_key="none")
tools = [
    {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]
for times, stream in enumerate((False, True), 1):
    messages = [{"role": "user", "content": QUESTION}]
    while True:
        asked = {"model": MODEL, "max_tokens": 256, "messages": messages, "tools": tools}
        if stream:
            with client.messages.stream(**asked) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(**asked)
        if answer.stop_reason != "tool_use":
            break
        results = [
            {
                "type": "tool_result",
                "tool_use_id": block.id,
                "content": get_weather(**block.input),
            }
            for block in answer.content
            if block.type == "tool_use"
        ]
        messages += [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": results},
        ]
    check(answer.content[0].text, times)
