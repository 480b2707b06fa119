"""What the engine's thread reports of a task: text deltas, usage, the end or the error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schema.answers.response import FinishReason, PromptTokenLogprob, TokenLogprob
from schema.errors import TaskError


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """New text of one choice; ``finish_reason`` is None until the choice's last delta.

    ``logprobs`` and ``token_ids`` are of the tokens since the last delta; None if the task does not
    ask for them.
    """

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...] | None = None
    token_ids: tuple[int, ...] | None = None


class PromptOutput(NamedTuple):
    """What is reported of the prompt; None for what the task does not ask for."""

    text: str | None
    token_ids: Sequence[int] | None
    logprobs: list[PromptTokenLogprob] | None


class RequestOutput(NamedTuple):
    """New output of a task. ``completion_tokens`` is cumulative, ``done`` or ``error`` ends it.

    ``prompt`` comes once, with the first deltas.
    """

    deltas: tuple[ChoiceDelta, ...] = ()
    completion_tokens: int = 0
    done: bool = False
    error: TaskError | None = None
    prompt: PromptOutput | None = None


Sink = Callable[[RequestOutput], None]
"""Receives a task's outputs on the engine's thread. Must return at once and never raise."""


def join(deltas: Iterable[ChoiceDelta]) -> list[ChoiceDelta]:
    """One delta for each choice, its texts joined; in order of index."""
    texts: dict[int, list[str]] = {}
    reasons: dict[int, FinishReason | None] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    token_ids: dict[int, list[int]] = {}
    for delta in deltas:
        texts.setdefault(delta.index, []).append(delta.text)
        reasons[delta.index] = delta.finish_reason
        if delta.logprobs is not None:
            logprobs.setdefault(delta.index, []).extend(delta.logprobs)
        if delta.token_ids is not None:
            token_ids.setdefault(delta.index, []).extend(delta.token_ids)
    return [
        ChoiceDelta(
            i,
            "".join(texts[i]),
            reasons[i],
            tuple(logprobs[i]) if i in logprobs else None,
            tuple(token_ids[i]) if i in token_ids else None,
        )
        for i in sorted(texts)
    ]


def merge(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """One output made of several (at least one): cumulative fields are those of the last."""
    deltas = join(delta for item in outputs for delta in item.deltas)
    prompt = next((item.prompt for item in outputs if item.prompt is not None), None)
    return outputs[-1]._replace(deltas=tuple(deltas), prompt=prompt)
