"""Haystack: an Agent with OpenAIChatGenerator and with OpenAIResponsesChatGenerator."""

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

pieces: list[str] = []
for kind in (OpenAIChatGenerator, OpenAIResponsesChatGenerator):
    for callback in (None, lambda chunk: pieces.append(chunk.content)):
        agent = Agent(
            chat_generator=kind(
                model=MODEL, api_base_url=f"{BASE_URL}/v1", api_key=Secret.from_token("none")
            ),
            tools=[create_tool_from_function(get_weather)],
            system_prompt="You are a helpful assistant.",
            streaming_callback=callback,
        )
        result = agent.run(messages=[ChatMessage.from_user(QUESTION, name="Ada")])
        check(result["messages"][-1].text)
assert "sunny" in "".join(pieces)
