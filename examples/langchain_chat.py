"""A chain of LangChain's: a prompt, this server's model, and a parser; streamed as well."""

import os

from langchain_core.output_parsers import StrOutputParser  # pip install langchain-openai
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
model = ChatOpenAI(
    base_url=f"{BASE_URL}/v1",
    api_key=os.environ.get("API_KEY", "none"),
    model="demo",
    temperature=0,
    seed=42,
)
chain = ChatPromptTemplate.from_messages([("user", "{task}")]) | model | StrOutputParser()

print(chain.invoke({"task": "Spell tiger."}))
for text in chain.stream({"task": "Count from 3 to 9."}):
    print(text, end="", flush=True)
print()
