"""What the ingress will log and count of a request; filled in where a value becomes known."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from schema.answers.response import Usage
from schema.answers.verification import Verdict


@dataclass(slots=True)
class Entry:
    """What is known of a request so far. Never its content, never a key.

    Attributes:
        status: of the answer, once its headers have been sent.
        error: the code of the error that it ended with, if it did.
        key: the name of the client's key.
        model: as the task names it; not checked.
        deployment: runs the task; empty until it is known.
        num_answers: the number of answers that the task asks for.
        first_token_s: seconds from the request to the first chunk of a stream; `None` until then.
        first_tokens: the number of tokens in that chunk.
        last_token_s: seconds from the request to the last chunk.
        verdict: on the response that was to be verified.
        error_form: how the route writes errors (`serve_app.http.errors.ErrorForm`).
    """

    request_id: str
    status: int | None = None
    error: str | None = None
    key: str | None = None
    model: str | None = None
    usage: Usage | None = None
    deployment: str = ""
    num_answers: int = 1
    first_token_s: float | None = None
    first_tokens: int = 0
    last_token_s: float = 0.0
    verdict: str | None = None
    error_form: str = "error"
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.begun

    def streamed(self, usage: Usage) -> None:
        """Note a chunk that goes to the client; ``usage`` is of the stream up to its end."""
        self.usage = usage
        self.last_token_s = self.seconds
        if self.first_token_s is None:
            self.first_token_s, self.first_tokens = self.last_token_s, usage["completion_tokens"]

    def judged(self, verdict: Verdict) -> None:
        """Note the verdict on a response, and how many tokens were read for it."""
        prompt, checked = verdict["prompt_tokens"], verdict["tokens_checked"]
        self.verdict = verdict["verdict"]
        self.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": checked,
            "total_tokens": prompt + checked,
        }


current: ContextVar[Entry | None] = ContextVar("entry", default=None)
"""Set by `serve_app.http.middleware.access_log` while a request is answered."""


def entry() -> Entry:
    """The entry of the request that is being answered; outside of one, a new entry."""
    return current.get() or Entry("")
