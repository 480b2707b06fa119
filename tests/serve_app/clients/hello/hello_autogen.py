"""AutoGen: an AssistantAgent that reflects on what its tool said, and the same as a stream."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model=MODEL,
        base_url=f"{BASE_URL}/v1",
        api_key="none",
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
            "family": "unknown",
        },
    )
    for times, stream in enumerate((False, True), 1):
        agent = AssistantAgent(
            "assistant",
            client,
            tools=[get_weather],
            reflect_on_tool_use=True,
            model_client_stream=stream,
        )
        result = await agent.run(task=QUESTION)
        check(result.messages[-1].content, times)
    await client.close()


asyncio.run(main())
