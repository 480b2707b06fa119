"""Anthropic's client: a tool called by hand, whole and streamed, and by its runner of tools."""

import anthropic
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

client = anthropic.Anthropic(base_url=BASE_URL, api_key="none")
question = {"role": "user", "content": QUESTION}
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


def ask(messages: list[dict], stream: bool) -> anthropic.types.Message:
    asked = {"model": MODEL, "max_tokens": 256, "messages": messages, "tools": tools}
    if not stream:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as events:
        return events.get_final_message()


for stream in (False, True):
    messages = [question]
    while (answer := ask(messages, stream)).stop_reason == "tool_use":
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": get_weather(**block.input)}
            for block in answer.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "assistant", "content": answer.content})
        messages.append({"role": "user", "content": results})
    check(answer.content[0].text)

runner = client.beta.messages.tool_runner(
    model=MODEL, max_tokens=256, messages=[question], tools=[anthropic.beta_tool(get_weather)]
)
check(runner.until_done().content[0].text)
