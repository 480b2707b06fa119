"""Images at addresses, as OpenAI's client sends them to the running server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.serve_app.http.clients.openai.test_openai import image, joined, texts
from tests.serve_app.replicas.images.image_host import IMAGES, ImageHost


@pytest.fixture
def api(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_an_image_at_an_address(api: OpenAI, drawings: ImageHost, scheme: str) -> None:
    place = f"http://localhost:{drawings.port}" if scheme == "http" else f"file://{IMAGES}"

    def ask(*urls: str) -> list[Any]:
        content: list[Any] = [
            *({"type": "image_url", "image_url": {"url": url}} for url in urls),
            {"type": "text", "text": "What is in this image?"},
        ]
        return [{"role": "user", "content": content}]

    names = ("blue_star.png", "red_circle.png")
    held = ask(*(image(name) for name in names))
    there = ask(*(f"{place}/{name}" for name in names))
    asked: dict[str, Any] = {"model": "demo", "seed": 4, "n": 2}
    whole = api.chat.completions.create(messages=held, **asked)
    fetched = api.chat.completions.create(messages=there, **asked)
    stream: Any = api.chat.completions.create(messages=there, stream=True, **asked)
    assert texts(fetched) == texts(whole) == joined(list(stream))[0]
    assert fetched.usage == whole.usage
    assert fetched.system_fingerprint == whole.system_fingerprint


@pytest.mark.parametrize("stream", [False, True])
def test_disconnecting_while_an_image_is_fetched(
    api: OpenAI, drawings: ImageHost, stream: bool
) -> None:
    url = f"http://localhost:{drawings.port}/silence"
    content: list[Any] = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.APITimeoutError):
        api.with_options(timeout=2.0).chat.completions.create(
            model="demo", messages=[{"role": "user", "content": content}], stream=stream
        )
    # The preprocessor has disconnected too, long before its own deadline.
    drawings.left.get(timeout=60)
