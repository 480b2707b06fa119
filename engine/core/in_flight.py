"""Parts of a step that the device computes, to be finished when their results are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from engine.platform.transfer import AsyncCopy
from engine.requests.request import Request, SequenceState


class Row(NamedTuple):
    """A row of logits: it predicts what follows a sequence's last token and ``ahead`` drafts."""

    sequence: SequenceState
    ahead: int = 0


class Draw(NamedTuple):
    """Tokens of a request, scalars on the device.

    ``report`` has their log probabilities and ``logits`` their logits, where the task needs them.
    Of a request that verifies claims ``judged`` has, for each token, the one that was drawn and by
    how much the claimed one lost to it: float64 [rows, 2].
    """

    request: Request
    rows: Sequence[Row]
    tokens: Sequence[torch.Tensor]
    report: AsyncCopy | None
    logits: AsyncCopy | None = None
    judged: AsyncCopy | None = None


class Round(NamedTuple):
    """Tokens that were drawn at once, in the order of ``draws``."""

    draws: Sequence[Draw]
    download: AsyncCopy


@dataclass(frozen=True)
class DrawnTokens:
    """The tokens of a step: each round has those with one more draft before them."""

    rounds: list[Round] = field(default_factory=list)

    def wait(self) -> None:
        """Wait until all of them can be read."""
        for each in self.rounds:
            each.download.wait()


@dataclass(frozen=True)
class Proposed:
    """Candidates for the beams of a request (`engine.sampling.beam_search`)."""

    request: Request
    download: AsyncCopy


@dataclass(frozen=True)
class ScoredChunk:
    """Log probabilities of the tokens of a prompt that a chunk of it predicts.

    Attributes:
        request: whose prompt it is.
        download: as `Logprobs.of` reports them; None if the chunk predicts none.
        completes_prompt: whether it is the last chunk.
    """

    request: Request
    download: AsyncCopy | None
    completes_prompt: bool

    def finish(self) -> None:
        """Add them to the request's report; this ends a request that generates nothing."""
        assert self.request.report is not None
        self.request.report.add([] if self.download is None else self.download.wait().tolist())
        if self.completes_prompt and not self.request.settings.max_new_tokens:
            self.request.answer([()] * self.request.settings.num_sequences)


InFlight = DrawnTokens | Proposed | ScoredChunk
"""A launched part of a step, to be finished."""
