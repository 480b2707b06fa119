"""Server-sent events: the wire format of a streamed answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from schema.errors import TaskExecutionError
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


def event(value: Any) -> bytes:
    """One event that carries ``value`` as JSON, in one line whoever counts lines."""
    text = _json(value)
    if not text.isascii():
        for character, escaped in _LINE_BREAKS:
            text = text.replace(character, escaped)
    return b"data: " + text.encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A response whose body is a generator of events.

    It owns the generator and closes it however the response ends, so that a client that has gone
    cancels its task at once and not when the garbage collector comes by.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            # A proxy that buffers would turn a stream into one late answer.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})},
        )
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events; close their generator on every way out."""
        async with aclosing(self._events):
            await super().stream_response(send)


async def relay(
    events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
) -> EventStream:
    """The response that sends these events and ``DONE``.

    Nothing is sent before the first event is there, so that an error until then is an HTTP error
    and not an event in a successful answer.

    Raises:
        TaskError: what the generator raised before its first event.
    """
    try:
        first = await anext(events)
    except StopAsyncIteration:
        raise TaskExecutionError("the engine ended the task without an answer") from None
    return EventStream(_to_the_end(first, events), headers)


async def _to_the_end(
    first: bytes, events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """After the first event an error cannot be a status: it is the last event."""
    try:
        async with aclosing(events):
            yield first
            async for following in events:
                yield following
    except Exception as fault:  # noqa: BLE001 - one of ours ends the stream as clients know it too
        error = as_task_error(fault)
        entry().error = error.code
        yield event(error.to_dict())
    yield DONE
