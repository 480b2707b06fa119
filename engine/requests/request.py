"""A task inside the engine: a `Request`, and the `SequenceState`s that answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from math import isnan
from typing import Any

import torch

from engine.loading.adapters.adapter import Adapter
from engine.requests.outputs import ChoiceDelta, RequestOutput, Sink
from engine.requests.prompt import Prompt
from engine.requests.prompt_report import PromptReport
from engine.requests.verification.claimed_tokens import ClaimCheck, Loss
from engine.sampling.beam_search import BeamSearch
from engine.sampling.draws.noise import Place
from engine.sampling.grammar import Matcher
from engine.sampling.logprobs import TokenTexts
from engine.sampling.sampler import Sampler, invalid_logits
from engine.sampling.settings import SamplingParams
from engine.text.detokenizer import Detokenizer
from engine.vision.features import Features
from engine.vision.rotary import MRopePositions
from schema.answers.response import FinishReason, TokenLogprob
from schema.errors import Cancelled, TaskError

_ids = count()


class Status(IntEnum):
    """The state of a request; it only moves forward."""

    WAITING = 0
    PREFILL = 1
    DECODE = 2
    FINISHED = 3


@dataclass(eq=False)
class RecurrentState:
    """The state of a sequence in a model that keeps one (`engine.execution.modules.recurrence`).

    Attributes:
        row: where it is; None before the first token, and in models without such layers.
        num_tokens: after how many tokens it is.
        fixed: forwards read it and leave it as it is; of measurements.
        settle: after a forward with drafts, takes how many of them were right.
    """

    row: int | None = None
    num_tokens: int = 0
    fixed: bool = False
    settle: Callable[[int], None] | None = None


@dataclass(frozen=True)
class ScheduledTokens:
    """Consecutive tokens of one sequence that a forward computes.

    Attributes:
        start: the place of the first token in its sequence.
        num_tokens: how many there are.
        pages: the sequence's.
        rotary: the sequence's rotary positions, where they differ from the places of its tokens.
        bidirectional_spans: runs (start, stop) of the sequence, within these tokens, whose tokens
            attend to each other.
        spans_in_windows: whether they do so in layers with a window only.
        features: of the image tokens among them.
        ahead: of a decode row, how many drafts its sequence has up to it in this forward; 0 for its
            last token.
        state: the sequence's; None where a recurrence begins with nothing and is not kept.
        request: the owner; None in a measurement, and on ranks other than the first.
        sequence: which of its sequences.
    """

    start: int
    num_tokens: int
    pages: Sequence[int]
    rotary: MRopePositions | None = None
    bidirectional_spans: Sequence[tuple[int, int]] = ()
    spans_in_windows: bool = False
    features: Features | None = None
    ahead: int = 0
    state: RecurrentState | None = None
    request: Request | None = None
    sequence: SequenceState | None = None

    @property
    def stop(self) -> int:
        """The place after the last token: the number of tokens that it attends to, with itself."""
        return self.start + self.num_tokens

    @property
    def owner(self) -> Request:
        """The request, of tokens that have one."""
        assert self.request is not None
        return self.request

    @property
    def draft(self) -> int | None:
        """The token, of a row that is a draft; None of others."""
        return self.sequence.drafts[self.ahead - 1] if self.sequence and self.ahead else None

    @property
    def of_prompt(self) -> bool:
        """Whether they are a chunk of the prompt, not a token that was sampled."""
        return self.start < self.owner.prompt_tokens

    @property
    def completes_prompt(self) -> bool:
        """Whether they are the last chunk of the prompt."""
        return self.stop == self.owner.prompt_tokens

    def positions(self, axes: int) -> Sequence[Sequence[int]]:
        """The rotary positions [axes, num_tokens] of the tokens."""
        if self.rotary is None:
            return [range(self.start, self.stop)] * axes
        return self.rotary.of(self.start, self.stop)

    def __getstate__(self) -> dict[str, Any]:
        """What another rank needs: neither the request nor positions of a complete prompt."""
        state = self.__dict__ | {"request": None, "sequence": None, "state": None}
        if self.rotary is not None and self.start >= self.rotary.prompt.shape[1]:
            state["rotary"] = self.rotary.without_prompt()
        return state


@dataclass(eq=False)
class SequenceState:
    """One answer of a request, or one beam of its search.

    The tokens of beams belong to their search (`beam_search`) until the end; then the first
    sequences get those of the best beams.

    Attributes:
        state: of recurrent layers, in a model that has them.
        token_ids: the tokens so far.
        num_sampled: the number of these tokens and of those that are launched but not read yet.
        last_token: the last one sampled, a scalar on the device.
        logprobs: of tokens that no delta has reported yet, where the task asks for them.
        logits: of its tokens, the model's own, where the task has a trace.
        num_reported: how many tokens deltas have reported, where the task asks for their ids.
        known: what the first tokens are expected to be: of an answer that another engine has begun.
            They are read instead of generated as far as they are right, and change nothing.
        drafts: tokens that may come next, in the step that is in flight: rows of it beside the last
            token's. While there are any it takes no further step.
        num_right: how many of these drafts were what was drawn.
        waits: it takes no further step before its last token has been read, because there will be
            drafts then.
        check: of what is claimed to be the answer, where it is verified token by token.
        matcher: its place in the grammar that constrains it, if there is one.
    """

    index: int
    detokenizer: Detokenizer
    pages: list[int] = field(default_factory=list)
    state: RecurrentState = field(default_factory=RecurrentState)
    token_ids: list[int] = field(default_factory=list)
    num_sampled: int = 0
    last_token: torch.Tensor | None = None
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)
    num_reported: int = 0
    known: Sequence[int] = ()
    drafts: Sequence[int] = ()
    num_right: int = 0
    waits: bool = False
    check: ClaimCheck | None = None
    matcher: Matcher | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason is not None

    def place(self, ahead: int = 0) -> Place:
        """Where the token after its last one is drawn, or after so many drafts."""
        return Place(self.index, self.num_sampled + ahead)

    @property
    def is_read(self) -> bool:
        """Whether all of its tokens that were sampled have been read."""
        return self.num_sampled == len(self.token_ids)

    @property
    def is_awaited(self) -> bool:
        """Whether its last token has to be read before its next step."""
        return self.waits and not self.is_read


@dataclass(eq=False)
class Request:
    """A task that the engine has accepted.

    Built on the caller's thread, then touched by the engine's thread alone, except
    ``cancel_requested``, which any thread may set.
    """

    prompt: Prompt
    settings: SamplingParams
    seed: int
    sequences: list[SequenceState]
    sink: Sink
    adapter: Adapter | None = None
    id: int = field(default_factory=lambda: next(_ids))
    status: Status = Status.WAITING
    num_prefilled: int = 0
    chunk_keys: list[bytes] | None = None  # of the prompt, once they are needed
    features: Features | None = None  # of the prompt's image tokens, less those skipped
    features_skipped: int = 0
    rotary: MRopePositions | None = None  # where positions differ from the places of tokens
    sampler: Sampler | None = None
    beams: BeamSearch | None = None
    token_texts: TokenTexts | None = None  # for log probabilities
    report: PromptReport | None = None  # where the task wants to know of its prompt
    reports_token_ids: bool = False  # whether deltas have the ids of their tokens
    is_traced: bool = False  # whether the logits of its tokens are kept, for a receipt
    log_id: str = "-"  # what log lines call it
    cancel_requested: bool = False

    @property
    def verifies(self) -> bool:
        """Whether claimed answers are verified token by token."""
        return self.sequences[0].check is not None

    @property
    def losses(self) -> list[Sequence[Loss]]:
        """Of each answer that was verified token by token and has ended, the claimed tokens that
        lost."""
        return [s.check.found(len(s.token_ids)) for s in self.sequences if s.check is not None]

    @property
    def scores_prompt(self) -> bool:
        """Whether log probabilities of the prompt are reported, which takes a forward of all."""
        return self.settings.prompt_logprobs is not None

    @property
    def reports_end(self) -> bool:
        """Whether an end token is among the log probabilities.

        It is beside the ids of all tokens, with which clients pair them, and beside those of the
        prompt: who cuts off one generated token must not cut off one of the prompt.
        """
        return self.scores_prompt or self.reports_token_ids

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, image tokens included."""
        return len(self.prompt.token_ids)

    @property
    def worst_case_tokens(self) -> int:
        """KV tokens that one sequence may need at most."""
        return self.prompt_tokens + self.settings.max_new_tokens

    @property
    def running(self) -> list[SequenceState]:
        """Sequences that are not finished, in order of index."""
        return [sequence for sequence in self.sequences if not sequence.finished]

    @property
    def to_decode(self) -> list[SequenceState]:
        """Running sequences that may get more tokens than have been sampled.

        Beams continue only when the last step has chosen among them: either none of them, or all.
        What a grammar allows is known only when the last token is known.
        """
        if self.beams is not None and self.beams.in_flight:
            return []
        running = self.running
        if any(s.matcher and s.num_sampled > len(s.token_ids) for s in running):
            return []
        limit = self.settings.max_new_tokens
        return [
            sequence
            for sequence in running
            if sequence.num_sampled < limit and not sequence.drafts and not sequence.is_awaited
        ]

    def prefill_chunk(self, start: int, stop: int) -> ScheduledTokens:
        """The tokens ``start .. stop`` of the prompt, without their images' features."""
        spans = self.prompt.bidirectional_spans
        first = self.sequences[0]
        return ScheduledTokens(
            start,
            stop - start,
            first.pages,
            self.rotary,
            [(a, b) for a, b in spans if start <= a and b <= stop],
            self.prompt.spans_in_windows,
            state=first.state,
            request=self,
            sequence=first,
        )

    def decode_step(self) -> list[ScheduledTokens]:
        """The last sampled token of each sequence of `to_decode`."""
        return [
            ScheduledTokens(
                self.prompt_tokens + sequence.num_sampled - 1,
                1,
                sequence.pages,
                self.rotary,
                state=sequence.state,
                request=self,
                sequence=sequence,
            )
            for sequence in self.to_decode
        ]

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, over all sequences, end-of-sequence tokens included."""
        return sum(len(sequence.token_ids) for sequence in self.sequences)

    def accept(
        self,
        sequence: SequenceState,
        token_id: int,
        report: Sequence[float] | None = None,
        logit: float | None = None,
    ) -> ChoiceDelta | None:
        """Append a token to a sequence; returns new text or the end, if there is any to report.

        ``report`` has its log probabilities (`of`) if the task wants them, and ``logit`` is its
        logit if the task has a trace.

        Raises:
            TaskExecutionError: these are not numbers.
        """
        sequence.token_ids.append(token_id)
        ends = token_id in self.settings.eos_token_ids
        if report is not None and (not ends or self.reports_end):
            assert self.token_texts is not None
            if isnan(report[0]):  # processors may have hidden it from sampling
                raise invalid_logits()
            sequence.logprobs.append(self.token_texts.entry(token_id, report))
        if logit is not None:
            if isnan(logit):
                raise invalid_logits()
            sequence.logits.append(logit)
        text = sequence.detokenizer.push(token_id)
        if sequence.matcher is not None:
            sequence.matcher.accept(token_id)
        sequence.finish_reason = self._reason(sequence)
        if sequence.finished:
            text += sequence.detokenizer.flush()
        if not text and not sequence.finished:
            return None
        reported = None
        if self.settings.logprobs is not None:
            reported, sequence.logprobs = tuple(sequence.logprobs), []
        token_ids = self._new_token_ids(sequence)
        return ChoiceDelta(sequence.index, text, sequence.finish_reason, reported, token_ids)

    def answer(self, answers: Sequence[Sequence[int]]) -> None:
        """End the task with whole answers, as a beam search has them: their tokens, best first.

        So does a task that generates nothing. The tokens take the same path as those that come one
        by one. Other sequences were beams only.
        """
        deltas: list[ChoiceDelta] = []
        for sequence, token_ids in zip(self.sequences, answers, strict=False):
            sequence.token_ids.extend(token_ids)
            text = sequence.detokenizer.push(*token_ids) + sequence.detokenizer.flush()
            # If no limit was reached, the search has ended because no beam can continue.
            sequence.finish_reason = self._reason(sequence) or "stop"
            logprobs = None if self.settings.logprobs is None else ()  # beams have none
            new = self._new_token_ids(sequence)
            deltas.append(ChoiceDelta(sequence.index, text, sequence.finish_reason, logprobs, new))
        for sequence in self.sequences[len(answers) :]:
            sequence.finish_reason = "stop"
        self.emit(deltas)

    def _new_token_ids(self, sequence: SequenceState) -> tuple[int, ...] | None:
        """The tokens that no delta has reported yet; None if the task does not ask for them."""
        if not self.reports_token_ids:
            return None
        new = tuple(sequence.token_ids[sequence.num_reported :])
        sequence.num_reported += len(new)
        return new

    def _reason(self, sequence: SequenceState) -> FinishReason | None:
        """Why a sequence ends with its last token, if it does."""
        last = sequence.token_ids[-1:]
        if sequence.check is not None and sequence.check.decided:
            return "stop"
        if sequence.detokenizer.stopped or not self.settings.eos_token_ids.isdisjoint(last):
            return "stop"
        if sequence.matcher is not None and sequence.matcher.done:
            return "stop"
        return "length" if len(sequence.token_ids) >= self.settings.max_new_tokens else None

    def emit(self, deltas: list[ChoiceDelta]) -> None:
        """Report new text; reports the end as well when all sequences are finished."""
        done = not self.running
        if done:
            self.status = Status.FINISHED
        if deltas or done:
            prompt = None if self.report is None else self.report.take()
            self.sink(RequestOutput(tuple(deltas), self.completion_tokens, done, prompt=prompt))

    def fail(self, error: TaskError) -> None:
        """End the task with an error. Does nothing when it has ended already."""
        if self.status < Status.FINISHED:
            self.status = Status.FINISHED
            self.sink(RequestOutput(completion_tokens=self.completion_tokens, error=error))

    def cancel(self) -> None:
        """End the task because its answer is not needed any more."""
        self.fail(Cancelled("the task was cancelled"))


def log_ids(requests: Sequence[Request]) -> str:
    """The names of some requests in log lines."""
    return ", ".join(request.log_id for request in requests)
