"""OpenAI's Agents SDK: by its default, which is the Responses API, and by chat completions."""

import asyncio

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


class City(BaseModel):
    city: str


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        model = kind(model=MODEL, openai_client=client)
        agent = Agent(
            name="Assistant",
            instructions="You are a helpful assistant.",
            tools=[function_tool(get_weather)],
            model=model,
        )
        session = SQLiteSession("conversation")
        check((await Runner.run(agent, QUESTION, session=session)).final_output)
        streamed = Runner.run_streamed(agent, QUESTION, session=session)
        async for _ in streamed.stream_events():
            pass
        check(streamed.final_output)
        reader = Agent(name="Reader", instructions="Find it.", output_type=City, model=model)
        assert (await Runner.run(reader, QUESTION)).final_output == City(city="Paris")


asyncio.run(main())
