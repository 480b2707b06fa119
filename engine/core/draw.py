"""From the logits of a forward to the next tokens of its sequences.

A sequence with drafts has several rows. The token of its first row is always one of its answer. The
token of the next row is one too if the first draft is the token that was drawn, and so on. What is
drawn in a row assumes that the drafts before it are right, so all rows can be drawn before the host
has read a token. Without lookahead it reads them at once, and drawing stops at the first wrong
draft.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch

from engine.core.faults import fail_on_error
from engine.core.in_flight import Draw, DrawnTokens, Round, Row
from engine.core.speculation.speculation import Speculation
from engine.core.verification import Judgement, judge
from engine.platform.transfer import AsyncCopy, upload
from engine.requests.outputs import ChoiceDelta, join
from engine.requests.request import Request, SequenceState, Status
from engine.sampling.draws.noise import draw_noise
from engine.sampling.grammar import Matcher
from engine.sampling.sampler import INVALID_LOGITS, Candidates, invalid_logits, sample
from engine.sampling.trace import logits_of

logger = logging.getLogger(__name__)


@dataclass
class Wanted:
    """The tokens that a request gets in this step.

    Attributes:
        request: one without beams.
        rows: of logits, the first of each sequence before its others.
        logits: float32 [rows, vocab].
        probes: matchers that go ahead of those of the sequences, by the drafts.
        at_once: whether the tokens of all rows are drawn in the first round, because the drafts are
            most probably right: known tokens, and claimed ones.
    """

    request: Request
    rows: Sequence[Row]
    logits: torch.Tensor
    probes: dict[SequenceState, Matcher] = field(default_factory=dict)
    at_once: bool = field(init=False)

    def __post_init__(self) -> None:
        """See ``at_once``."""
        self.at_once = any(row.sequence.known or row.sequence.check for row in self.rows)


class _Input(NamedTuple):
    request: Request
    rows: Sequence[Row]
    candidates: Candidates


class Drawing:
    """Draws tokens and appends them to their sequences. Belongs to the engine's thread."""

    def __init__(self, speculation: Speculation, *, lookahead: bool) -> None:
        """``lookahead``: the next step is launched before the tokens of the last one are read."""
        self._speculation = speculation
        self._lookahead = lookahead

    # --- Launch ----------------------------------------------------------------------------------

    def launch(self, wanted: Sequence[Wanted]) -> DrawnTokens:
        """Draw tokens. Those of sequences without drafts are the input of their next step.

        An error here must not fail the forward. It ends its own request.
        """
        drawn = DrawnTokens()
        _expect_drafts(wanted)
        _draw_noise(wanted)
        dropped: set[SequenceState] = set()
        for ahead in count():
            inputs = self._inputs(wanted, ahead, dropped)
            if not inputs:
                return drawn
            for group, tokens in self._sampled(inputs):
                judged = _judged(group, tokens)
                if judged:
                    tokens = _kept(group, tokens, judged)
                if not self._lookahead:
                    dropped |= _wrong(group, tokens)
                drawn.rounds.append(self._round(group, tokens, judged))
        raise AssertionError("unreachable")

    def _inputs(
        self, wanted: Sequence[Wanted], ahead: int, dropped: set[SequenceState]
    ) -> list[_Input]:
        """What the tokens of all rows are drawn from that have so many drafts before them."""
        inputs: list[_Input] = []
        for one in wanted:
            if one.at_once:
                if ahead or one.request.status == Status.FINISHED:
                    continue
                if (whole := _whole(one)) is not None:
                    inputs.append(whole)
                    continue
            numbers = [
                number
                for number, row in enumerate(one.rows)
                if row.ahead == ahead and row.sequence not in dropped
            ]
            if not numbers or one.request.status == Status.FINISHED:
                continue
            if not ahead:
                with fail_on_error([one.request]):
                    inputs.append(_input(one, numbers))
                continue
            try:
                inputs.append(_input(one, numbers))
            except torch.AcceleratorError:
                raise
            except Exception as error:  # noqa: BLE001 - it may never come to this place
                logger.debug("drafts of task %s are dropped: %r", one.request.log_id, error)
                dropped |= {one.rows[number].sequence for number in numbers}
        return inputs

    def _sampled(self, inputs: Sequence[_Input]) -> Iterator[tuple[Sequence[_Input], torch.Tensor]]:
        """The tokens of all inputs, at once; one by one if that fails."""
        try:
            tokens = sample([one.candidates for one in inputs])
        except torch.AcceleratorError:
            raise
        except Exception as error:  # noqa: BLE001 - any error: one member may be its cause
            logger.warning("sampling for %d failed, each follows alone: %r", len(inputs), error)
        else:
            yield inputs, tokens
            return
        for one in inputs:
            with fail_on_error([one.request]):
                yield [one], sample([one.candidates])

    def _round(
        self, group: Sequence[_Input], tokens: torch.Tensor, judged: Mapping[int, Judgement]
    ) -> Round:
        """Make tokens [rows of all] the last ones of sequences that have no drafts."""
        draws: list[Draw] = []
        parts = tokens.split([len(one.rows) for one in group])
        for one, part in zip(group, parts, strict=True):
            with fail_on_error([one.request]):
                logprobs = one.candidates.logprobs
                report = None if logprobs is None else AsyncCopy(logprobs.of(part))
                of_model = one.candidates.logits
                logits = None if of_model is None else AsyncCopy(logits_of(part, of_model))
                own = part.unbind()
                plain = [
                    (row.sequence, token)
                    for row, token in zip(one.rows, own, strict=True)
                    if not row.sequence.drafts
                ]
                _advance(one.request, plain)
                judgement = judged.get(one.request.id)
                told = None if judgement is None else judgement.report
                draws.append(Draw(one.request, one.rows, own, report, logits, told))
        return Round(draws, AsyncCopy(tokens))

    # --- Finish ----------------------------------------------------------------------------------

    def finish(self, drawn: DrawnTokens) -> None:
        """Append tokens that have been read, and report the new text."""
        of_requests: dict[int, list[tuple[Draw, list[int]]]] = {}
        for each in drawn.rounds:
            tokens = iter(each.download.wait().tolist())
            for draw in each.draws:
                read = [next(tokens) for _ in draw.rows]
                of_requests.setdefault(draw.request.id, []).append((draw, read))
        for draws in of_requests.values():
            request = draws[0][0].request
            if request.status < Status.FINISHED:
                with fail_on_error([request]):
                    self._append(request, draws)

    def _append(self, request: Request, draws: Sequence[tuple[Draw, list[int]]]) -> None:
        before = {row.sequence: len(row.sequence.token_ids) for row in draws[0][0].rows}
        last: dict[SequenceState, torch.Tensor] = {}
        deltas: list[ChoiceDelta] = []
        for draw, tokens in draws:
            reports, logits, judgements = (
                [None] * len(tokens) if each is None else each.wait().tolist()
                for each in (draw.report, draw.logits, draw.judged)
            )
            for row, token, on_device, report, logit, judgement in zip(
                draw.rows, tokens, draw.tokens, reports, logits, judgements, strict=True
            ):
                sequence = row.sequence
                if sequence.finished or row.ahead > sequence.num_right:
                    continue
                if token == INVALID_LOGITS:
                    raise invalid_logits()
                if sequence.check is not None and judgement is not None:
                    number, margin = judgement
                    sequence.check.judge(len(sequence.token_ids), int(number), margin)
                if delta := request.accept(sequence, token, report, logit):
                    deltas.append(delta)
                last[sequence] = on_device
                if token in sequence.drafts[row.ahead : row.ahead + 1]:
                    sequence.num_right = row.ahead + 1
        for sequence, done in before.items():
            self._settle(request, sequence, done, last.get(sequence))
        if request.running:
            assert request.sampler is not None
            request.sampler.forget(min(len(sequence.token_ids) for sequence in request.running))
        several = sum(len(draw.rows) for draw, _ in draws) > len(before)
        request.emit(join(deltas) if several else deltas)

    def _settle(
        self, request: Request, sequence: SequenceState, done: int, last: torch.Tensor | None
    ) -> None:
        """End a step of a sequence that had ``done`` tokens before it."""
        if sequence.drafts:
            assert last is not None
            sequence.num_sampled = len(sequence.token_ids) - 1
            _advance(request, [(sequence, last)])
        if sequence.drafts or sequence.known:
            self._speculation.settle(sequence, done)
        if sequence.state.settle is not None:
            sequence.state.settle(sequence.num_right)
        sequence.drafts, sequence.num_right = (), 0
        if self._lookahead and not sequence.finished:
            sequence.waits = self._speculation.promises(request, sequence)


def _expect_drafts(wanted: Sequence[Wanted]) -> None:
    for one in wanted:
        for row in one.rows:
            if row.sequence.drafts and not row.ahead:
                assert one.request.sampler is not None
                one.request.sampler.expect(row.sequence.place(), row.sequence.drafts)


def _draw_noise(wanted: Sequence[Wanted]) -> None:
    """Draw what the rows of all requests need, at once."""
    needs = [
        need
        for one in wanted
        if one.request.sampler is not None
        for need in one.request.sampler.noise_for(
            [row.sequence.place(row.ahead) for row in one.rows]
        )
    ]
    if needs:
        draw_noise(needs, wanted[0].logits.shape[1])


def _judged(group: Sequence[_Input], drawn: torch.Tensor) -> dict[int, Judgement]:
    """Of the requests that verify claims, by their ids, what the tokens [rows of all] mean."""
    judged: dict[int, Judgement] = {}
    if not any(one.request.verifies for one in group):
        return judged
    parts = drawn.split([len(one.rows) for one in group])
    for one, part in zip(group, parts, strict=True):
        if one.request.verifies:
            with fail_on_error([one.request]):
                judged[one.request.id] = judge(one.rows, one.candidates, part)
    return judged


def _kept(
    group: Sequence[_Input], drawn: torch.Tensor, judged: Mapping[int, Judgement]
) -> torch.Tensor:
    """The tokens [rows of all] with which answers go on: claimed ones where they are forgiven."""
    parts = drawn.split([len(one.rows) for one in group])
    return torch.cat(
        [
            judged[one.request.id].tokens if one.request.id in judged else part
            for one, part in zip(group, parts, strict=True)
        ]
    )


def _whole(one: Wanted) -> _Input | None:
    """All rows of a request; None, and ``at_once`` no more, if that fails for one of them."""
    try:
        return _input(one, range(len(one.rows)))
    except torch.AcceleratorError:
        raise
    except Exception as error:  # noqa: BLE001 - it may never come to the place that fails
        logger.debug("rows of task %s are drawn one by one: %r", one.request.log_id, error)
        one.at_once = False
        one.probes.clear()
        return None


def _input(one: Wanted, numbers: Sequence[int]) -> _Input:
    """Some rows of a request's, by their numbers."""
    rows = [one.rows[number] for number in numbers]
    logits = one.logits
    if len(rows) < len(one.rows):
        first, last = numbers[0], numbers[-1]
        consecutive = last - first + 1 == len(numbers)
        logits = (
            logits[first : last + 1]
            if consecutive
            else logits.index_select(0, upload(numbers, logits.device))
        )
    constrained = rows[0].sequence.matcher is not None
    matchers = [_matcher(one, row) for row in rows] if constrained else []
    places = [row.sequence.place(row.ahead) for row in rows]
    assert one.request.sampler is not None
    return _Input(one.request, rows, one.request.sampler.candidates(logits, places, matchers))


def _matcher(one: Wanted, row: Row) -> Matcher:
    """Where a sequence stands in its grammar after the drafts before a row.

    Raises:
        TaskExecutionError: the grammar does not allow them, or nothing after them.
    """
    sequence = row.sequence
    assert sequence.matcher is not None
    if not row.ahead:
        return sequence.matcher
    probe = one.probes.get(sequence)
    if probe is None or one.at_once:  # then the matcher of the row before is read later
        probe = one.probes[sequence] = (probe or sequence.matcher).fork()
    probe.accept(sequence.drafts[row.ahead - 1])
    return probe


def _wrong(group: Sequence[_Input], tokens: torch.Tensor) -> set[SequenceState]:
    """The sequences whose next draft is not the token that was drawn."""
    rows = [row for one in group for row in one.rows]
    if not any(row.sequence.drafts for row in rows):
        return set()
    return {
        row.sequence
        for row, token in zip(rows, tokens.tolist(), strict=True)
        if token not in row.sequence.drafts[row.ahead : row.ahead + 1]
    }


def _advance(request: Request, tokens: Sequence[tuple[SequenceState, torch.Tensor]]) -> None:
    """Make tokens, scalars on the device, the last ones of their sequences."""
    if not tokens:
        return
    assert request.sampler is not None
    request.sampler.advance([(sequence.place(), token) for sequence, token in tokens])
    for sequence, token in tokens:
        sequence.last_token = token
        sequence.num_sampled += 1
