"""Server-sent events: the wire format of a streamed answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, nullcontext
from typing import Any, Protocol, Self

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from schema.answers.response import StreamChunk
from schema.errors import TaskError, TaskExecutionError
from serve_app.http.shutdown import SCOPE_KEY, Shutdown
from serve_app.observability.request_record import entry
from serve_app.protocol.failures import as_task_error

DONE = b"data: [DONE]\n\n"


def encode(value: Any) -> bytes:
    """JSON as it goes over the wire: compact, UTF-8, and an error for NaN, which is not JSON."""
    return _json(value).encode()


# Made once: `json.dumps` with settings of its own makes one for each call, a third of its time.
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


# Line breaks to Unicode, and so to clients that split a stream as text, but not to JSON.
_LINE_BREAKS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))


def event(value: Any, name: str | None = None) -> bytes:
    """One event with ``value`` as JSON, without characters that clients read as line breaks.

    ``name``: of the event, for clients that read it.
    """
    text = _json(value)
    if not text.isascii():
        for character, escaped in _LINE_BREAKS:
            text = text.replace(character, escaped)
    data = b"data: " + text.encode() + b"\n\n"
    return data if name is None else f"event: {name}\n".encode() + data


class EventWriter(Protocol):
    """What a route's answer looks like as events.

    Attributes:
        closing: what is sent after the last event; may be empty.
    """

    closing: bytes

    def chunk(self, chunk: StreamChunk) -> bytes:
        """The events of the next chunk; empty if it has nothing new."""
        ...

    def end(self) -> bytes:
        """The events after the last chunk, before ``closing``; may be empty."""
        ...

    def failed(self, error: TaskError) -> bytes:
        """The events of an error that ends the stream, before ``closing``."""
        ...

    def error(self, error: TaskError) -> TaskError:
        """An error of the task in the terms of the request."""
        ...


class TaskEvents:
    """The events of a task's stream: the chunks as they are."""

    closing = DONE

    def chunk(self, chunk: StreamChunk) -> bytes:
        """One event."""
        return event(chunk)

    def end(self) -> bytes:
        """Nothing."""
        return b""

    def failed(self, error: TaskError) -> bytes:
        """The error's body, as an HTTP error has it."""
        return event(error.to_dict())

    def error(self, error: TaskError) -> TaskError:
        """The error as it is."""
        return error


class Events:
    """The events of an answer and what closes them: made of its chunks as they are asked for.

    An error is the last event, because the status has been sent by then.

    Attributes:
        shutdown: what ends the answer when the server is stopped; None: nothing does.
    """

    def __init__(self, chunks: AsyncGenerator[StreamChunk, None], writer: EventWriter) -> None:
        self._chunks = chunks
        self._writer = writer
        self._first = b""
        self._is_complete = False
        self._is_done = False
        self.shutdown: Shutdown | None = None

    async def begin(self) -> None:
        """Wait for the first event. If there is none, the chunks are closed.

        Raises:
            TaskError: in the terms of the request.
        """
        try:
            self._first = await self._next()
        except BaseException:
            await self.aclose()
            raise
        if not self._first:
            raise TaskExecutionError("the engine ended the task without an answer")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_done:
            raise StopAsyncIteration
        try:
            events = self._first or await self._next()
        except Exception as fault:  # noqa: BLE001 - one of ours ends the stream as clients know it too
            await self.aclose()
            self._is_complete = True
            error = as_task_error(fault)
            entry().error = error.code
            events = self._writer.failed(error)
        self._first = b""
        self._is_done = not events
        events = events or self._writer.closing
        if not events:
            raise StopAsyncIteration
        return events

    async def aclose(self) -> None:
        """Cancel the task, if it still runs."""
        await self._chunks.aclose()

    async def _next(self) -> bytes:
        """The next events; empty at the end."""
        if self._is_complete:
            return b""
        try:
            async with self.shutdown.limit() if self.shutdown else nullcontext():
                async for chunk in self._chunks:
                    if events := self._writer.chunk(chunk):
                        return events
        except TaskError as error:
            translated = self._writer.error(error)
            if translated is error:
                raise
            raise translated from error
        self._is_complete = True
        return self._writer.end()


class EventStream(StreamingResponse):
    """A response whose body is the events of an answer.

    It owns the chunks and always closes them when the response ends, so that a disconnect cancels
    the task at once and not when the garbage collector runs.
    """

    def __init__(self, events: Events, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            # A proxy that buffers would turn a stream into one late answer.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})},
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. When the server is stopped, it ends in time."""
        self._events.shutdown = scope.get(SCOPE_KEY)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the events; close the chunks on every way out."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def relay(
    chunks: AsyncGenerator[StreamChunk, None],
    writer: EventWriter,
    headers: Mapping[str, str] | None = None,
) -> EventStream:
    """The response that sends the events of these chunks, and what closes them.

    Nothing is sent before the first event is there, so that an error until then is an HTTP error
    and not an event in a successful answer.

    Raises:
        TaskError: what came before the first event.
    """
    events = Events(chunks, writer)
    await events.begin()
    return EventStream(events, headers)
