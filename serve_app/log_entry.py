"""What the ingress will log about a request, filled in by whoever learns it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from schema.response import Usage


@dataclass(slots=True)
class Entry:
    """What is known of a request by now. Never its content, never a key.

    Attributes:
        status: of the answer, once its headers have been sent.
        error: the code of the error that it ended with, if it did.
        key: the name of the client's key.
    """

    request_id: str
    status: int | None = None
    error: str | None = None
    key: str | None = None
    model: str | None = None
    usage: Usage | None = None


current: ContextVar[Entry | None] = ContextVar("entry", default=None)
"""Set by `serve_app.request_log` while a request is answered."""


def entry() -> Entry:
    """The entry of the request that is being answered; outside of one, an entry nobody reads."""
    return current.get() or Entry("")
