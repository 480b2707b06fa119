"""Semantic Kernel: a ChatCompletionAgent and an OpenAIResponsesAgent with a plugin."""

import asyncio

from openai import AsyncOpenAI
from semantic_kernel.agents import ChatCompletionAgent, OpenAIResponsesAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function
from weather import BASE_URL, MODEL, QUESTION, check
from weather import get_weather as weather


class Weather:
    @kernel_function
    def get_weather(self, city: str) -> str:
        """Get the weather in a city."""
        return weather(city)


async def main() -> None:
    client = AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
    agent = ChatCompletionAgent(
        service=OpenAIChatCompletion(ai_model_id=MODEL, async_client=client),
        name="Assistant",
        instructions="You are a helpful assistant.",
        plugins=[Weather()],
    )
    first = await agent.get_response(messages=QUESTION)
    check(str(first.content))
    second = await agent.get_response(messages=QUESTION, thread=first.thread)
    check(str(second.content))
    pieces = [str(piece.content) async for piece in agent.invoke_stream(messages=QUESTION)]
    check("".join(pieces))

    # The server keeps no responses, so that the agent has to send all items.
    responses = OpenAIResponsesAgent(
        ai_model_id=MODEL,
        client=client,
        name="Assistant",
        instructions="You are a helpful assistant.",
        plugins=[Weather()],
        store_enabled=False,
    )
    check(str((await responses.get_response(messages=QUESTION)).content))


asyncio.run(main())
