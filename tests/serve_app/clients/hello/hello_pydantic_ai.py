"""Pydantic AI: an Agent with a tool, by chat completions and by the Responses API."""

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


class City(BaseModel):
    city: str


provider = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key="none")
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind(MODEL, provider=provider)
    agent = Agent(model, tools=[get_weather])
    first = agent.run_sync(QUESTION)
    check(first.output)
    check(agent.run_sync(QUESTION, message_history=first.all_messages()).output)
    check(agent.run_stream_sync(QUESTION).get_output())
    assert Agent(model, output_type=City).run_sync(QUESTION).output == City(city="Paris")
