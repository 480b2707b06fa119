"""What all these scripts share: the server's address, a tool, and what must have happened."""

import os

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("MODEL", "weather")
QUESTION = "What is the weather in Paris?"

calls: list[str] = []


def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: Name of the city.
    """
    calls.append(city)
    return f"18 degrees and sunny in {city}"


def check(answer: object) -> None:
    """Fail unless the tool was called once since the last time, and the answer has its result."""
    assert calls == ["Paris"], f"get_weather was called with {calls}"
    calls.clear()
    assert isinstance(answer, str), f"no text: {answer!r}"
    assert "sunny" in answer, answer
    print(answer)
