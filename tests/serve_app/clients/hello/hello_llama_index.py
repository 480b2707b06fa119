"""LlamaIndex: a FunctionAgent with OpenAILike; whole, streamed, asked twice."""

import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.workflow import Context
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
    for streaming in (False, True):
        agent = FunctionAgent(
            llm=model,
            tools=[get_weather],
            system_prompt="You are a helpful assistant.",
            streaming=streaming,
        )
        context = Context(agent)
        for _ in range(2):
            check(str(await agent.run(QUESTION, ctx=context)))


asyncio.run(main())
