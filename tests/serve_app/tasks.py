"""Tasks for the running server, and helpers that read its answers."""

import base64
import io
import json
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from demo.data.shapes import HELD_OUT_SEED, draw_image
from schema.published.schemas import schemas

QUESTION = "What is in this image?"

_RESPONSE = Draft202012Validator(schemas()["response"])
_CHUNK = Draft202012Validator(schemas()["stream_chunk"])
_ERROR = Draft202012Validator(schemas()["error"])


def text_task(text: str = "Count from 1 to 5.", **fields: Any) -> dict[str, Any]:
    """A task without images."""
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **fields}


def image_task(number: int, **fields: Any) -> tuple[dict[str, Any], str]:
    """A task about an image that the model was not trained on, and the right answer."""
    drawing = draw_image(HELD_OUT_SEED + number)
    file = io.BytesIO()
    drawing.image.save(file, "PNG")
    image = {"type": "image", "base64": base64.b64encode(file.getvalue()).decode()}
    content = [image, {"type": "text", "text": QUESTION}]
    task = {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}
    return task, drawing.description


def served(client: httpx.Client) -> list[dict[str, Any]]:
    """The variants that ``GET /v1/models`` lists, each with its model's id; without adapters."""
    models = client.get("/v1/models", timeout=60).json()["data"]
    models = [model for model in models if "parent" not in model]
    assert len({model["id"] for model in models}) == len(models)
    return [{"id": m["id"], **variant} for m in models for variant in m["variants"]]


def answer(response: httpx.Response) -> Any:
    """The body of a successful answer."""
    assert response.status_code == 200, response.text
    body = response.json()
    _RESPONSE.validate(body)
    return body


def text_of(response: httpx.Response) -> str:
    """The text of an answer's only choice."""
    (choice,) = answer(response)["choices"]
    text: str = choice["message"]["content"]
    return text


def chunks(response: httpx.Response) -> list[Any]:
    """The chunks of a streamed answer."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    found = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in found:
        _CHUNK.validate(chunk)
    return found


def joined(found: list[Any]) -> Any:
    """The response that chunks add up to."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            index = choice["index"]
            assert index not in reasons, "a choice went on after its end"
            texts[index] = texts.get(index, "") + choice["delta"]["content"]
            if choice["finish_reason"] is not None:
                reasons[index] = choice["finish_reason"]
    return found[-1] | {
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": texts[index]},
                "finish_reason": reasons[index],
            }
            for index in sorted(texts)
        ]
    }


def error(response: httpx.Response, status: int) -> Any:
    """The error of a refused request."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    _ERROR.validate(body)
    return body["error"]


def events_of_stream(text: str) -> list[tuple[str, Any]]:
    """The events of a stream whose events have names, with their names."""
    events = []
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
