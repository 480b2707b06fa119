"""The one HTTP client: sends a request, and notes when which bytes of the answer came.

What came is read after the measurement, so that the client costs the machine as little as it can.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import aiohttp

Dialect = Literal["chat", "tasks"]
"""``/v1/chat/completions``, as OpenAI's clients speak it, or this project's ``/v1/tasks``."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30)
_EVENT = b"data:"
_DONE = b"[DONE]"
_PATHS: dict[Dialect, str] = {"chat": "/v1/chat/completions", "tasks": "/v1/tasks?stream=true"}


@dataclass(frozen=True)
class Job:
    """One request, for any server.

    Attributes:
        max_tokens: the most tokens of the answer.
        png: an image that stands before the text, or before the first of the earlier ones.
        seed: None asks for the most probable tokens; else they are drawn.
        temperature: at which they are drawn.
        earlier: what the user has said before, and what was answered.
        system: the system message; None if there is none.
        schema: the JSON Schema of the answer; None if it may be any text.
    """

    text: str
    max_tokens: int
    png: bytes | None = None
    seed: int | None = None
    temperature: float = 1.0
    earlier: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    schema: Mapping[str, Any] | None = None


_NO_JOB = Job("", 0)


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and in which words.

    Attributes:
        extra: further fields of every body.
        schemas: whether the server can be told the JSON Schema of an answer.
        seeds: whether it is told the seed of an answer that is drawn.
    """

    address: str
    model: str
    dialect: Dialect = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    schemas: bool = True
    seeds: bool = True

    def body(self, job: Job) -> dict[str, Any]:
        """The request as JSON."""
        sampled = job.seed is not None
        body: dict[str, Any] = {"model": self.model, "messages": self._messages(job)}
        if sampled and self.seeds:
            body["seed"] = job.seed
        schema = job.schema if self.schemas else None
        if self.dialect == "tasks":
            config: dict[str, Any] = {"max_new_tokens": job.max_tokens, "do_sample": sampled}
            if sampled:
                config |= {"temperature": job.temperature}
            if schema is not None:
                body["structured_output"] = {"type": "json_schema", "schema": schema}
            return {**body, "generation_config": config, **self.extra}
        temperature = job.temperature if sampled else 0.0
        body |= {"max_tokens": job.max_tokens, "temperature": temperature, "stream": True}
        if schema is not None:
            form = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
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
            first["content"] = [self._image(job.png), text]
        if job.system is not None:
            messages.insert(0, {"role": "system", "content": job.system})
        return messages

    def _image(self, png: bytes) -> dict[str, Any]:
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
        status: of HTTP; 0 if there was no connection.
        retry_after: whether the server said when to try again.
    """

    job: Job
    sent: float
    lines: list[tuple[float, bytes | Mapping[str, Any]]] = field(default_factory=list)
    ended: float | None = None
    failure: str | None = None
    status: int = 0
    retry_after: bool = False

    @cached_property
    def events(self) -> list[tuple[float, Mapping[str, Any]]]:
        """The events that are JSON; read them when no more come."""
        read: list[tuple[float, Mapping[str, Any]]] = []
        for when, line in self.lines:
            if not isinstance(line, bytes):
                read.append((when, line))
            elif (data := line.removeprefix(_EVENT).strip()) != _DONE:
                read.append((when, json.loads(data)))
        return read

    def _pieces(self) -> Iterator[tuple[float, int, str]]:
        """When text came, for which of several answers, and the text."""
        for when, event in self.events:
            for choice in event.get("choices", ()):
                delta = choice.get("delta") or choice.get("message") or {}
                text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                yield when, choice.get("index", 0), text

    @cached_property
    def deltas(self) -> list[tuple[float, str]]:
        """When text came, and the text.

        Without the prompt, which `transformers serve` sends back first where the chat template
        writes nothing after it.
        """
        found: list[tuple[float, str]] = []
        for when, _, text in self._pieces():
            if text and (found or text != self.job.text):
                found.append((when, text))
        return found

    @property
    def text(self) -> str:
        """All text that came."""
        return "".join(text for _, text in self.deltas)

    @cached_property
    def texts(self) -> list[str]:
        """The text of each of several answers to the same request, in their order."""
        parts: dict[int, str] = {}
        for _, index, text in self._pieces():
            parts[index] = parts.get(index, "") + text
        return [parts[index] for index in sorted(parts)]

    @property
    def seconds(self) -> float:
        """From the request to the end of the answer, which has to be there."""
        assert self.ended is not None
        return self.ended - self.sent

    @property
    def usage(self) -> Mapping[str, Any]:
        """What the server has counted last; empty if it does not count."""
        told = [event["usage"] for _, event in self.events if event.get("usage")]
        return told[-1] if told else {}

    @cached_property
    def tokens(self) -> int | None:
        """How many tokens the server says that the answer has; None if it does not."""
        return int(self.usage["completion_tokens"]) if self.usage and self.complete else None

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
    def closed(self) -> bool:
        """Whether the whole answer came, and the stream said so with its last event."""
        return self.complete and self.lines[-1][1] == _EVENT + b" " + _DONE + b"\n"

    @property
    def complete(self) -> bool:
        """Whether the whole answer came."""
        return self.ended is not None and self.error is None

    @property
    def _finished(self) -> bool:
        """Whether each of the answers has come to its end."""
        choices = [choice for _, event in self.events for choice in event.get("choices", ())]
        ended = {c.get("index", 0) for c in choices if c.get("finish_reason") is not None}
        return bool(ended) and ended == {choice.get("index", 0) for choice in choices}


class Client:
    """Sends requests to one endpoint. An asynchronous context manager.

    By aiohttp: for each request httpx looks at each of its connections, which can be many here.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0)
        self._http = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def send(self, job: Job, answers: list[Answer] | None = None) -> Answer:
        """Stream the answer to a job. It is put into ``answers`` when the job is sent, grows there,
        and stays if this call is cancelled.
        """
        data = json.dumps(self._endpoint.body(job)).encode()
        url = self._endpoint.address.rstrip("/") + _PATHS[self._endpoint.dialect]
        return await self._post(url, data, Answer(job, time.perf_counter()), answers)

    async def ask(
        self, task: Mapping[str, Any] | bytes, *, stream: bool, answers: list[Answer] | None = None
    ) -> Answer:
        """Send a task to ``/v1/tasks`` as it is; ``answers`` is as for `send`. Without ``stream``
        the answer has one line, which is all of it.
        """
        data = task if isinstance(task, bytes) else json.dumps(task).encode()
        url = f"{self._endpoint.address}/v1/tasks" + ("?stream=true" if stream else "")
        return await self._post(url, data, Answer(_NO_JOB, time.perf_counter()), answers)

    async def _post(
        self, url: str, data: bytes, answer: Answer, answers: list[Answer] | None
    ) -> Answer:
        headers = {"content-type": "application/json"}
        if answers is not None:
            answers.append(answer)
        try:
            async with self._http.post(url, data=data, headers=headers) as response:
                answer.status = response.status
                answer.retry_after = "retry-after" in response.headers
                if response.status != 200:
                    answer.failure = f"{response.status}: {(await response.text())[:500]}"
                elif response.content_type == "application/json":
                    body = await response.read()
                    answer.lines.append((time.perf_counter(), body))
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

    async def loads(self) -> list[dict[str, int]]:
        """What each replica of the model does now, by this project's ``GET /v1/models``.

        Raises:
            aiohttp.ClientError: there is no such answer.
        """
        url = f"{self._endpoint.address}/v1/models"
        async with self._http.get(url, raise_for_status=True) as response:
            models = (await response.json())["data"]
        (found,) = (model for model in models if model["id"] == self._endpoint.model)
        replicas = [replica for variant in found["variants"] for replica in variant["replicas"]]
        return [replica["load"] for replica in replicas]
