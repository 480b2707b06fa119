"""The batch invariance check: at which batch sizes does a forward give a row the same bits?

It is measured at load, with the real model, dtype, quantization, device and threads. Kernels choose
their order of summation by the shape of their input, so this depends on the machine, not on the
model. That the forward computes the right thing is the question of `forward_check`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from engine.execution.batch_sizes import (
    BatchInvarianceError,
    BatchSizes,
    agreeing,
    largest_group,
)
from engine.execution.kv_cache import bits_of
from engine.execution.measuring.rounded import GrowingSizes, Rounded
from engine.execution.model_runner import ModelRunner
from engine.platform.platforms import platform_of
from engine.requests.request import ScheduledTokens

logger = logging.getLogger(__name__)

_CONTEXT = 7  # tokens before the compared row; any number that is not special
# Distinct sequences that must agree. In bfloat16 two orders of summation round to the same bits in
# most rows (four of five, at 4864 terms): with few sequences a difference could be missed.
_SEQUENCES = 16
_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 3  # of timing
_TIMED_S = 1.0  # no round begins after this time
_CLEARLY = 0.9  # of the time of the smaller size
_MOST_PADDING = 4  # times the rows
_LONG_CONTEXT, _LONG_ROWS = 1024, 8  # of the forward that shows what attention takes
_ROUNDED_ROWS = (8, 16)  # of the forwards that show how large their results are
_FURTHEST = 1024  # from a candidate to the next size at which all functions round alike
_KNOWN_ROWS = 64
"""Rows that a step may have at least: known tokens are read as so many at once. Twice as many would
take almost twice the time."""


class WantedSizes(NamedTuple):
    """Which batch sizes an engine needs.

    Attributes:
        max_sequences: rows that the largest decode size must hold.
        prefill_chunk: rows that the largest prefill size must hold.
        forward_rows: rows of the largest forward.
    """

    max_sequences: int
    prefill_chunk: int
    forward_rows: int


def candidate_rows(wanted: WantedSizes) -> tuple[int, ...]:
    """Batch sizes worth a check: 2, 3, 4, 6, 8, 12 ... and sixteenths of the largest forward.

    At most a third of a small batch is padding then, and little of a large one. One row is left
    out: it takes another kernel almost everywhere, and two rows cost the same.
    """
    most, chunk, rows = wanted
    largest = max(rows, most)
    steps = {k << i for i in range(largest.bit_length()) for k in (2, 3)}
    part = max(rows // 16, 1)
    steps.update(range(part, largest + 1, part))
    return tuple(sorted(n for n in steps | {most, chunk, rows} if 2 <= n <= largest))


def any_batch_sizes(runner: ModelRunner, wanted: WantedSizes) -> BatchSizes:
    """All batch sizes, whether they agree or not: no padding and no promise."""
    return BatchSizes(
        decode=tuple(range(1, wanted.max_sequences + 1)),
        prefill=tuple(range(1, wanted.forward_rows + 1)),
        max_head=wanted.max_sequences,
        can_mix_prefill_and_decode=not runner.backend.decodes_apart,
    )


def find_batch_sizes(runner: ModelRunner, wanted: WantedSizes, *, vocab_size: int) -> BatchSizes:
    """Batch sizes for decode and for prefill whose results agree bit for bit.

    Raises:
        BatchInvarianceError: a row's bits depend on its position or on the other rows.
    """
    at_once = max(wanted.max_sequences, _KNOWN_ROWS)
    check = _InvarianceCheck(runner, vocab_size, max_head_rows=at_once)
    decode_check = check
    if runner.backend.decodes_apart:
        decode_check = _InvarianceCheck(runner, vocab_size, max_head_rows=at_once, decode=True)
    try:
        return _batch_sizes(check, decode_check, wanted, at_once)
    finally:
        check.close()
        decode_check.close()


def bits_digest(
    runner: ModelRunner, sizes: BatchSizes, *, vocab_size: int, several: bool
) -> str | None:
    """A digest of the bits that forwards at these batch sizes give.

    It is the same for all sizes that agree: so it shows, in few forwards, whether batch sizes that
    were measured before still hold.

    Args:
        runner: of the model.
        sizes: of `find_batch_sizes`.
        vocab_size: of the model.
        several: whether to run at the largest size too; where decode steps are replayed from
            graphs, at all sizes of decoding, whose graphs are then there.

    Returns:
        The digest; None if these sizes do not agree.
    """
    decoding = [n for n in sizes.decode if n <= sizes.max_head]
    digest = hashlib.sha256()
    for decode, fitting in ((True, decoding), (False, sizes.prefill)):
        chosen = {next((n for n in fitting if n >= _SEQUENCES), fitting[-1])}
        if several:
            chosen |= set(fitting) if decode and runner.replays_decode else {fitting[-1]}
        decodes = decode and runner.backend.decodes_apart
        check = _InvarianceCheck(runner, vocab_size, max_head_rows=sizes.max_head, decode=decodes)
        try:
            # The largest first, as in `agreeing`.
            found = {check.bits(n, seed=n) for n in sorted(chosen, reverse=True)}
        finally:
            check.close()
        if len(found) > 1:
            return None
        digest.update(found.pop())
    return digest.hexdigest()


def _batch_sizes(
    check: _InvarianceCheck,
    decode_check: _InvarianceCheck,
    wanted: WantedSizes,
    at_once: int,
) -> BatchSizes:
    """See `find_batch_sizes`."""
    candidates = _rounding_alike(check, candidate_rows(wanted))
    prefill_groups = agreeing(check, candidates)
    decode_groups = prefill_groups
    if decode_check is not check:
        decode_groups = agreeing(decode_check, [n for n in candidates if n <= at_once])
    decode = largest_group(decode_groups, needed=wanted.max_sequences)
    prefill = largest_group(prefill_groups, needed=wanted.prefill_chunk)
    if decode is None or prefill is None:
        raise BatchInvarianceError("a row's result depends on its position or on the other rows")
    logger.info("batch sizes that agree bit for bit: decode %s, prefill %s", decode, prefill)
    max_head = min(at_once, decode[-1])
    seconds = _timed(decode_check, [n for n in decode if n <= max_head])
    return BatchSizes(
        decode,
        prefill,
        max_head,
        can_mix_prefill_and_decode=decode == prefill and decode_check is check,
        faster=_faster(seconds),
        seconds=_undisturbed(seconds),
        attention_seconds=decode_check.attention_seconds(
            next(n for n in decode if n >= _LONG_ROWS)
        ),
    )


def _rounding_alike(check: _InvarianceCheck, candidates: Sequence[int]) -> list[int]:
    """The candidates at which functions round alike in all rows; larger sizes in place of others.

    The comparison of bits would miss most of these differences: they are in few elements, and in
    few of these do two ways to round differ.
    """
    alike = platform_of(check.device).rounds_alike
    few, many = (check.rounded_sizes(rows) for rows in _ROUNDED_ROWS)
    sizes = GrowingSizes(_ROUNDED_ROWS, few, many)

    def fits(rows: int) -> bool:
        return all(map(alike, sizes.at(rows)))

    nearest = (next(filter(fits, range(n, n + _FURTHEST)), None) for n in candidates)
    return sorted({size for size in nearest if size is not None})


def _timed(check: _InvarianceCheck, sizes: Sequence[int]) -> dict[int, float]:
    """Seconds of a forward at each batch size: the best of a few rounds over all of them.

    In rounds, so that a machine that is busy for a moment is busy for all sizes. Slow forwards are
    timed less often: a short disturbance matters less for them, and loading waits for them.
    """
    until = time.perf_counter() + _TIMED_S
    rounds: list[dict[int, float]] = []
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() > until:
            break
        rounds.append({n: check.seconds(n) for n in sizes})
    return {n: min(seconds[n] for seconds in rounds) for n in sizes}


def _undisturbed(seconds: Mapping[int, float]) -> dict[int, float]:
    """What a size takes, or a larger one that took less time: then the machine was busy."""
    return {n: min(s for m, s in seconds.items() if m >= n) for n in seconds}


def _faster(seconds: Mapping[int, float]) -> dict[int, int]:
    """For each batch size that a larger one clearly beats, the fastest of these.

    Kernels are tuned for some shapes: 4 rows can take three quarters of the time of 2. If a much
    larger size seems faster, the machine was only busy.
    """
    best: dict[int, int] = {}
    for rows, time_taken in seconds.items():
        larger = [n for n in seconds if rows < n <= _MOST_PADDING * rows]
        fastest = min(larger, key=seconds.__getitem__, default=rows)
        if seconds[fastest] < _CLEARLY * time_taken:
            best[rows] = fastest
    return best


class _InvarianceCheck:
    """Decodes `_SEQUENCES` fixed sequences, which lie in the cache, at any batch size."""

    def __init__(
        self, runner: ModelRunner, vocab_size: int, *, max_head_rows: int, decode: bool = False
    ) -> None:
        self._runner = runner
        self._decode_step = decode
        self._vocab_size = vocab_size
        self._max_head_rows = max_head_rows  # the head runs at the sizes of decoding only
        self._cache = runner.cache
        num_pages = self._cache.pages_for(_CONTEXT + 1)
        self._pages = [list(range(i * num_pages, (i + 1) * num_pages)) for i in range(_SEQUENCES)]
        # Filler rows are sequences too; they share the scratch pages after the others' pages.
        self._scratch = list(range(_SEQUENCES * num_pages, (_SEQUENCES + 1) * num_pages))
        self._cache.fill_randomly([page for run in self._pages for page in run], seed=0)
        self._states = [runner.states.random_state(i) for i in range(_SEQUENCES)]
        generator = torch.Generator().manual_seed(1)
        self._tokens = torch.randint(vocab_size, (_SEQUENCES,), generator=generator)

    def close(self) -> None:
        """Free the states. Idempotent."""
        for state in self._states:
            self._runner.states.release(state)

    def bits(self, num_rows: int, *, seed: int) -> bytes:
        """All bits that the sequences get in forwards of ``num_rows`` rows.

        ``seed`` shuffles their places and the content of the other rows, which must not matter.
        """
        shuffle = torch.Generator().manual_seed(seed)
        seen: list[bytes] = []
        at_once = min(_SEQUENCES, num_rows, self._max_head_rows)
        for first in range(0, _SEQUENCES, at_once):
            members = range(first, min(first + at_once, _SEQUENCES))
            token_ids = torch.randint(self._vocab_size, (num_rows,), generator=shuffle)
            places = torch.randperm(num_rows, generator=shuffle).tolist()[: len(members)]
            for member, row in zip(members, self._decode(token_ids, members, places), strict=True):
                seen.append(bits_of(row))
                seen.append(self._cache.bits(self._pages[member], _CONTEXT, _CONTEXT + 1))
        return b"".join(seen)

    def seconds(self, num_rows: int, row: ScheduledTokens | None = None) -> float:
        """How long a forward takes, once. All its rows are this one, or one of a short context."""
        row = row or ScheduledTokens(_CONTEXT, 1, self._scratch)
        # Each reads a state of its own.
        states = [self._states[n % _SEQUENCES] for n in range(num_rows)]
        scheduled = [replace(row, state=state) for state in states]
        # Different tokens: experts are chosen by them, and each that is chosen is read.
        token_ids = torch.arange(num_rows) % self._vocab_size
        start = time.perf_counter()
        self._forward(token_ids, scheduled, [0]).cpu()
        return time.perf_counter() - start

    @property
    def device(self) -> torch.device:
        """Where forwards run."""
        return self._runner.device

    def rounded_sizes(self, num_rows: int) -> list[int]:
        """The sizes of all results of the functions of `Rounded` in a forward of equal rows."""
        scheduled = [ScheduledTokens(_CONTEXT, 1, self._scratch)] * num_rows
        seen = Rounded()
        with seen:
            self._forward(torch.zeros(num_rows, dtype=torch.long), scheduled, [0])
        return seen.sizes

    def attention_seconds(self, num_rows: int) -> float:
        """What a row takes more for each token of its context; 0 if the cache is too small to tell.

        ``num_rows`` are the rows of the forwards that are timed.
        """
        cache, longest = self._cache, min(_LONG_CONTEXT, self._runner.loaded.context_length)
        pages = list(range(min(cache.num_pages, longest // cache.page_size)))
        context = len(pages) * cache.page_size
        if context < _LONG_CONTEXT // 4:
            return 0.0
        rounds = [
            [self.seconds(num_rows, ScheduledTokens(place, 1, pages)) for place in (0, context - 1)]
            for _ in range(_FEWEST_ROUNDS + 1)
        ]
        short, long = map(min, zip(*rounds, strict=True))
        return float(max(0.0, long - short) / (num_rows * context))

    def _decode(
        self, token_ids: torch.Tensor, members: range, places: Sequence[int]
    ) -> torch.Tensor:
        """Logits [len(members), vocab] of some sequences at their places in a batch."""
        num_rows = len(token_ids)
        scheduled = [ScheduledTokens(0, 1, self._scratch)] * num_rows
        for member, place in zip(members, places, strict=True):
            token_ids[place] = self._tokens[member]
            state = self._states[member]
            scheduled[place] = ScheduledTokens(_CONTEXT, 1, self._pages[member], state=state)
        return self._forward(token_ids, scheduled, places)

    def _forward(
        self, token_ids: torch.Tensor, scheduled: Sequence[ScheduledTokens], places: Sequence[int]
    ) -> torch.Tensor:
        num_rows = len(token_ids)
        return self._runner.forward(
            token_ids.to(self._runner.device),
            scheduled,
            num_rows=num_rows,
            keep=places,
            num_keep=min(num_rows, self._max_head_rows),
            decode=self._decode_step,
        )


def tokens_needed(page_size: int) -> int:
    """Tokens that a cache must hold for this check, in whole pages."""
    return (_SEQUENCES + 1) * -(-(_CONTEXT + 1) // page_size) * page_size
