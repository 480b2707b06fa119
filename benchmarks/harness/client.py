"""Sends a request, and notes when which bytes of the answer came.

What came is read after the measurement, so that the client costs the machine as little as it can.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import aiohttp

Dialect = Literal["chat", "tasks"]
"""``/v1/chat/completions``, as OpenAI's clients speak it, or this project's ``/v1/tasks``."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30)
_EVENT = b"data:"
_DONE = b"[DONE]"
_PATHS: dict[Dialect, str] = {"chat": "/v1/chat/completions", "tasks": "/v1/tasks?stream=true"}


@dataclass(frozen=True)
class Job:
    """One request, whoever it is sent to.

    Attributes:
        max_tokens: the most tokens of the answer.
        png: a picture that stands before the text, or before the first of the earlier ones.
        seed: None asks for the most probable tokens; else they are drawn at temperature 1.
        earlier: what the user has said before, and what was answered.
    """

    text: str
    max_tokens: int
    png: bytes | None = None
    seed: int | None = None
    earlier: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and in which words.

    Attributes:
        extra: further fields of every body.
    """

    address: str
    model: str
    dialect: Dialect = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where requests are posted."""
        return self.address.rstrip("/") + _PATHS[self.dialect]

    def body(self, job: Job) -> dict[str, Any]:
        """The request as JSON."""
        sampled = job.seed is not None
        body: dict[str, Any] = {"model": self.model, "messages": self._messages(job)}
        if self.dialect == "tasks":
            config: dict[str, Any] = {"max_new_tokens": job.max_tokens, "do_sample": sampled}
            if sampled:
                config |= {"temperature": 1.0}
                body["seed"] = job.seed
            return {**body, "generation_config": config, **self.extra}
        body |= {"max_tokens": job.max_tokens, "temperature": float(sampled), "stream": True}
        if sampled:
            body["seed"] = job.seed
        return {**body, **self.extra}

    def _messages(self, job: Job) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for said, answered in job.earlier:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": job.text})
        if job.png is not None:
            first = messages[0]
            text = {"type": "text", "text": first["content"]}
            first["content"] = [self._picture(job.png), text]
        return messages

    def _picture(self, png: bytes) -> dict[str, Any]:
        data = base64.b64encode(png).decode()
        if self.dialect == "tasks":
            return {"type": "image", "base64": data}
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@dataclass
class Answer:
    """What came of a request; times are those of `time.perf_counter`.

    Attributes:
        lines: when each event came, and the event: as bytes, or as what they stand for.
        ended: when the answer was complete or had failed; None if it was cut off.
        failure: what went wrong below the events.
    """

    job: Job
    sent: float
    lines: list[tuple[float, bytes | Mapping[str, Any]]] = field(default_factory=list)
    ended: float | None = None
    failure: str | None = None

    @cached_property
    def events(self) -> list[tuple[float, Mapping[str, Any]]]:
        """The events that are JSON; read them when no more come."""
        read: list[tuple[float, Mapping[str, Any]]] = []
        for when, line in self.lines:
            if not isinstance(line, bytes):
                read.append((when, line))
            elif (data := line[len(_EVENT) :].strip()) != _DONE:
                read.append((when, json.loads(data)))
        return read

    @cached_property
    def deltas(self) -> list[tuple[float, str]]:
        """When text came, and the text.

        Without the prompt, which `transformers serve` sends back first where the chat template
        writes nothing behind it.
        """
        found: list[tuple[float, str]] = []
        for when, event in self.events:
            for choice in event.get("choices", ()):
                delta = choice.get("delta") or {}
                text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                if text and (found or text != self.job.text):
                    found.append((when, text))
        return found

    @property
    def text(self) -> str:
        """All text that came."""
        return "".join(text for _, text in self.deltas)

    @cached_property
    def tokens(self) -> int | None:
        """How many tokens the server says that the answer has; None if it does not."""
        told = [event["usage"] for _, event in self.events if event.get("usage")]
        return int(told[-1]["completion_tokens"]) if told and self.complete else None

    @cached_property
    def error(self) -> str | None:
        """Why there is no whole answer; None also where it was cut off."""
        if self.failure is not None:
            return self.failure
        for _, event in self.events:
            if "error" in event:
                return str(event["error"])
        if self.ended is not None and not self._finished:
            return "the stream ended early"
        return None

    @property
    def complete(self) -> bool:
        """Whether the whole answer came."""
        return self.ended is not None and self.error is None

    @property
    def _finished(self) -> bool:
        return any(
            choice.get("finish_reason") is not None
            for _, event in self.events
            for choice in event.get("choices", ())
        )


class Client:
    """Sends jobs to one endpoint. An asynchronous context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __aenter__(self) -> Client:
        connector = aiohttp.TCPConnector(limit=0)
        self._http = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def send(self, job: Job, answers: list[Answer] | None = None) -> Answer:
        """Stream the answer to a job.

        Args:
            job: the job.
            answers: where the answer is put when the job is sent; it grows there, and is cut off
                there when this call is cancelled.
        """
        data = json.dumps(self._endpoint.body(job)).encode()
        headers = {"content-type": "application/json"}
        answer = Answer(job, time.perf_counter())
        if answers is not None:
            answers.append(answer)
        try:
            async with self._http.post(self._endpoint.url, data=data, headers=headers) as response:
                if response.status != 200:
                    answer.failure = f"{response.status}: {(await response.text())[:500]}"
                else:
                    async for line in response.content:
                        if line.startswith(_EVENT):
                            answer.lines.append((time.perf_counter(), line))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            answer.failure = repr(error)
        answer.ended = time.perf_counter()
        return answer

    async def settle(self, timeout_s: float) -> None:
        """Wait until the server has time for a request: until what was cut off is gone.

        Raises:
            RuntimeError: it answers with an error, or not at all.
        """
        try:
            answer = await asyncio.wait_for(self.send(Job("a", 1)), timeout_s)
        except TimeoutError:
            raise RuntimeError(f"no answer within {timeout_s:g} s") from None
        if not answer.complete:
            raise RuntimeError(answer.error)
