"""Parts of a step that the device computes, to be finished when their results are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.platform.transfer import AsyncCopy
from engine.requests.request import Request, SequenceState


@dataclass(frozen=True)
class SampledTokens:
    """Tokens in the order of their owners; log probabilities by the id of the request."""

    owners: Sequence[tuple[Request, Sequence[SequenceState]]]
    download: AsyncCopy
    reports: Mapping[int, AsyncCopy]


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


InFlight = SampledTokens | Proposed | ScoredChunk
"""A launched part of a step, to be finished."""
