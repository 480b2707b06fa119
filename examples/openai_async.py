"""Sixteen requests at the same time through OpenAI's asynchronous client."""

import asyncio
import os

from openai import AsyncOpenAI  # pip install openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")


async def main() -> None:
    """Ask them together; each answer is the same as alone."""
    async with AsyncOpenAI(
        base_url=f"{BASE_URL}/v1", api_key=os.environ.get("API_KEY", "none")
    ) as client:

        async def ask(question: str) -> str:
            answer = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": question}], temperature=0
            )
            return answer.choices[0].message.content

        questions = [f"What is {n} + 4?" for n in range(16)]
        for answer in await asyncio.gather(*map(ask, questions)):
            print(answer)


asyncio.run(main())
