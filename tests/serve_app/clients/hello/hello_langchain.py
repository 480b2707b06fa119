"""LangChain: `create_agent` with ChatOpenAI, by chat completions and by the Responses API."""

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from weather import BASE_URL, MODEL, QUESTION, check, get_weather

question = {"messages": [{"role": "user", "content": QUESTION}]}
times = 0
for responses in (False, True):
    model = ChatOpenAI(
        model=MODEL, base_url=f"{BASE_URL}/v1", api_key="none", use_responses_api=responses
    )
    agent = create_agent(model, tools=[get_weather], system_prompt="You are a helpful assistant.")
    answer = agent.invoke(question)
    times += 1
    check(answer["messages"][-1].text, times)
    pieces = [
        message.text
        for message, _ in agent.stream(question, stream_mode="messages")
        if message.type == "AIMessageChunk"
    ]
    times += 1
    check("".join(pieces), times)
