"""LlamaIndex: a FunctionAgent with OpenAILike."""

import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


async def main() -> None:
    model = OpenAILike(
        model=MODEL,
        api_base=f"{BASE_URL}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
    )
    for times, streaming in enumerate((False, True), 1):
        agent = FunctionAgent(
            llm=model,
            tools=[get_weather],
            system_prompt="You are a helpful assistant.",
            streaming=streaming,
        )
        check(str(await agent.run(QUESTION)), times)


asyncio.run(main())
