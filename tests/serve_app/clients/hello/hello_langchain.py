"""LangChain: `create_agent` with ChatOpenAI, by chat completions and by the Responses API."""

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


class City(BaseModel):
    """Where somebody wants to know the weather."""

    city: str


for responses in (False, True):
    model = ChatOpenAI(
        model=MODEL, base_url=f"{BASE_URL}/v1", api_key="none", use_responses_api=responses
    )
    agent = create_agent(model, tools=[get_weather], system_prompt="You are a helpful assistant.")
    question = {"role": "user", "content": QUESTION}
    first = agent.invoke({"messages": [question]})
    check(first["messages"][-1].text)
    second = agent.invoke({"messages": [*first["messages"], question]})
    check(second["messages"][-1].text)
    pieces = [
        message.text
        for message, _ in agent.stream({"messages": [question]}, stream_mode="messages")
        if message.type == "AIMessageChunk"
    ]
    check("".join(pieces))
    assert model.with_structured_output(City).invoke(QUESTION) == City(city="Paris")
