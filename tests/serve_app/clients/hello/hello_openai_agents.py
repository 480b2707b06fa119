"""OpenAI's Agents SDK: by its default, which is the Responses API, and by chat completions."""

import asyncio

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
    times = 0
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        agent = Agent(
            name="Assistant",
            instructions="You are a helpful assistant.",
            tools=[function_tool(get_weather)],
            model=kind(model=MODEL, openai_client=client),
        )
        result = await Runner.run(agent, QUESTION)
        times += 1
        check(result.final_output, times)
        streamed = Runner.run_streamed(agent, QUESTION)
        async for _ in streamed.stream_events():
            pass
        times += 1
        check(streamed.final_output, times)


asyncio.run(main())
