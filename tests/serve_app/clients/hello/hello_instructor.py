"""instructor: an object read from an answer, by a forced call of a tool and as JSON."""

import instructor
from instructor import Mode
from openai import OpenAI
from pydantic import BaseModel
from weather import BASE_URL, MODEL, QUESTION, check, get_weather


class GetWeather(BaseModel):
    """Get the weather in a city."""

    city: str


for mode in (Mode.TOOLS, Mode.JSON_SCHEMA, Mode.JSON, Mode.RESPONSES_TOOLS):
    client = instructor.from_openai(OpenAI(base_url=f"{BASE_URL}/v1", api_key="none"), mode=mode)
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "response_model": GetWeather,
        "max_retries": 0,
    }
    wanted = client.chat.completions.create(**asked)
    check(get_weather(wanted.city))
    *_, wanted = client.chat.completions.create_partial(**asked)
    check(get_weather(wanted.city))
