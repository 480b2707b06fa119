"""Pydantic AI: an Agent with a tool, by chat completions and by the Responses API."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

provider = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key="none")
times = 0
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    agent = Agent(kind(MODEL, provider=provider), tools=[get_weather])
    times += 1
    check(agent.run_sync(QUESTION).output, times)
    times += 1
    check(agent.run_stream_sync(QUESTION).get_output(), times)
