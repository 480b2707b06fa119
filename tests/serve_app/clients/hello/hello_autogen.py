"""AutoGen: an AssistantAgent that reflects on what its tool said; whole, streamed, asked twice."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model=MODEL,
        base_url=f"{BASE_URL}/v1",
        api_key="none",
        parallel_tool_calls=False,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
            "family": "unknown",
        },
    )
    for stream in (False, True):
        agent = AssistantAgent(
            "assistant",
            client,
            tools=[get_weather],
            reflect_on_tool_use=True,
            model_client_stream=stream,
        )
        for _ in range(2):
            result = await agent.run(task=QUESTION)
            check(result.messages[-1].content)
    await client.close()


asyncio.run(main())
