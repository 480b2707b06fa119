"""instructor: an object read from an answer, by a forced call of a tool and as JSON."""

import instructor
from openai import OpenAI
from pydantic import BaseModel
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


class GetWeather(BaseModel):
    """Get the weather in a city."""

    city: str


for times, mode in enumerate((instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA), 1):
    client = instructor.from_openai(OpenAI(base_url=f"{BASE_URL}/v1", api_key="none"), mode=mode)
    wanted = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=GetWeather,
        max_retries=0,
    )
    check(get_weather(wanted.city), times)
