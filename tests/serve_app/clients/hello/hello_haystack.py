"""Haystack: an Agent with OpenAIChatGenerator, and the same with its Responses generator."""

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

pieces: list[str] = []
for times, callback in enumerate((None, lambda chunk: pieces.append(chunk.content)), 1):
    agent = Agent(
        chat_generator=OpenAIChatGenerator(
            model=MODEL, api_base_url=f"{BASE_URL}/v1", api_key=Secret.from_token("none")
        ),
        tools=[create_tool_from_function(get_weather)],
        system_prompt="You are a helpful assistant.",
        streaming_callback=callback,
    )
    result = agent.run(messages=[ChatMessage.from_user(QUESTION)])
    check(result["messages"][-1].text, times)
assert "sunny" in "".join(pieces)
