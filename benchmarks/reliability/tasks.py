"""Clients of a running server: tasks to send, streams watched byte by byte, its own numbers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from demo.data.shapes import HELD_OUT_SEED, draw_picture

_IDLE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One streamed task. ``text`` is None if it ended with ``error``; times are in seconds.

    Attributes:
        began: since the beginning of the run.
        longest_stall: the longest wait for bytes, the first ones included.
        stalled_at: when that wait began, since the beginning of the run.
    """

    text: str | None
    began: float
    seconds: float
    longest_stall: float
    stalled_at: float
    error: str | None = None


def make_tasks(count: int) -> list[dict[str, Any]]:
    """Different tasks: numbers to count, free text at high temperature, pictures."""
    return [_task(number) for number in range(count)]


def _task(number: int) -> dict[str, Any]:
    kind, content = number % 4, None
    config: dict[str, Any] = {"max_new_tokens": 64}
    if kind == 1:
        picture = io.BytesIO()
        draw_picture(HELD_OUT_SEED + number).image.save(picture, "PNG")
        content = [
            {"type": "image", "base64": base64.b64encode(picture.getvalue()).decode()},
            {"type": "text", "text": "What is in this image?"},
        ]
    if kind >= 2:
        # Draws from all tokens alike, so that answers are long and all of them different.
        config |= {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 160}
        config["num_return_sequences"] = 1 if kind == 2 else 2
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": content or f"Count from {number % 50} to 99."}],
        "generation_config": config,
        "seed": number,
    }


async def stream(http: httpx.AsyncClient, task: dict[str, Any], start: float) -> Answer:
    """Run one task and watch its bytes arrive."""
    began = last = time.monotonic()
    stall, stalled_at, texts, error = 0.0, 0.0, Counter[int](), None
    parts: dict[int, list[str]] = {}
    finished = False
    try:
        async with http.stream("POST", "/v1/tasks?stream=true", json=task) as response:
            async for line in response.aiter_lines():
                now = time.monotonic()
                if now - last > stall:
                    stall, stalled_at = now - last, last - start
                last = now
                if line == "data: [DONE]":
                    finished = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        error = str(event["error"])
                    for choice in event.get("choices", ()):
                        parts.setdefault(choice["index"], []).append(choice["delta"]["content"])
                        texts[choice["index"]] += choice["finish_reason"] is not None
                elif line:
                    error = line
    except httpx.HTTPError as failure:
        error = repr(failure)
    if error is None and not (finished and parts and all(texts[index] == 1 for index in parts)):
        error = "the stream ended early"
    text = "\0".join("".join(parts[index]) for index in sorted(parts))
    return Answer(
        None if error else text, began - start, time.monotonic() - began, stall, stalled_at, error
    )


async def loads(http: httpx.AsyncClient, model: str = "demo") -> list[dict[str, int]]:
    """What each replica of a model does now."""
    (found,) = (m for m in (await http.get("/v1/models")).json()["data"] if m["id"] == model)
    return [replica["load"] for replica in found["replicas"]]


async def idle(http: httpx.AsyncClient) -> list[dict[str, int]]:
    """The replicas' numbers, once none of them has anything to do.

    Raises:
        TimeoutError: something goes on though nobody asks for it.
    """
    async with asyncio.timeout(_IDLE_TIMEOUT_S):
        while True:
            found = await loads(http)
            if not any(load["running"] or load["waiting"] for load in found):
                return found
            await asyncio.sleep(0.2)
