"""Measures, at load, what the rest of the engine relies on instead of assuming it.

Two questions are asked of the real model with its real dtype, quantization, device and threads:

* `find_batch_sizes`: at which numbers of rows does a forward give a row the same bits? Kernels pick
  their order of summation by the shape of their input, so this is a fact of the machine, not of the
  model.
* `batched_lane_problem`: does the packed, paged forward compute what the model's own does?
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from engine.execution.attention.packing import ScheduledTokens
from engine.execution.attention.paged import PAGED
from engine.execution.batch_sizes import BatchSizes
from engine.execution.kv_cache import KVCache, bits_of
from engine.execution.model_runner import Runner

logger = logging.getLogger(__name__)

_CONTEXT = 7  # tokens before the probed row; any number that is not special
# Distinct sequences that must agree. In bfloat16 two orders of summation round to the same bits in
# most rows (four of five, at 4864 terms): few probes would miss that they differ.
_PROBES = 16
_LANE_TOKENS = 24  # prompt of the lane check
_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 5  # of timing; no more begin after so many seconds:
_TIMED_S = 1.0
_CLEARLY = 0.9  # of the time of the smaller count
_MOST_PADDING = 4  # times the rows

# Largest difference between packed and plain logits, relative to the largest logit. Loose: it tells
# a wrong mask, position or layer state, which changes logits by their own size, from rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


class ProbeFailedError(RuntimeError):
    """No row count serves: the model cannot keep the promise in the batch loop."""


def candidate_rows(max_sequences: int, prefill_chunk: int) -> tuple[int, ...]:
    """Row counts worth probing: 2, 3, 4, 6, 8, 12 ... and eighths of a chunk, up to two chunks.

    At most a third of a small batch is padding then, and little of a large one. One row is left
    out: it takes another kernel almost everywhere, and two rows cost the same.
    """
    largest = max(2 * prefill_chunk, max_sequences)
    steps = {k << i for i in range(largest.bit_length()) for k in (2, 3)}
    eighth = max(prefill_chunk // 8, 1)
    steps.update(range(eighth, largest + 1, eighth))
    return tuple(sorted(n for n in steps | {max_sequences, prefill_chunk} if 2 <= n <= largest))


def any_batch_sizes(runner: Runner, *, max_sequences: int, prefill_chunk: int) -> BatchSizes:
    """Every row count, agreeing or not: no padding and no promise."""
    return BatchSizes(
        decode=tuple(range(1, max_sequences + 1)),
        prefill=tuple(range(1, 2 * prefill_chunk + 1)),
        can_mix_prefill_and_decode=not runner.decodes_apart,
    )


def find_batch_sizes(
    runner: Runner, *, vocab_size: int, max_sequences: int, prefill_chunk: int
) -> BatchSizes:
    """Row counts for decode and for prefill whose results agree bit for bit.

    Raises:
        ProbeFailedError: a row's bits depend on its position or on the content of the other rows.
    """
    candidates = candidate_rows(max_sequences, prefill_chunk)
    at_once = max(max_sequences, 2)
    probe = _Probe(runner, vocab_size, max_head_rows=at_once)
    prefill_classes = _classes(probe, candidates)
    decode_probe, decode_classes = probe, prefill_classes
    if runner.decodes_apart:
        decode_probe = _Probe(runner, vocab_size, max_head_rows=at_once, decode=True)
        decode_classes = _classes(decode_probe, [n for n in candidates if n <= at_once])
    decode = _choose(decode_classes, needed=max_sequences)
    prefill = _choose(prefill_classes, needed=prefill_chunk)
    if decode is None or prefill is None:
        raise ProbeFailedError("a row's result depends on its position or on the other rows")
    logger.info("row counts that agree bit for bit: decode %s, prefill %s", decode, prefill)
    used = decode[: bisect_left(decode, max_sequences) + 1]
    return BatchSizes(
        decode,
        prefill,
        can_mix_prefill_and_decode=decode == prefill and not runner.decodes_apart,
        faster=_faster(_timed(decode_probe, used)),
    )


def _classes(probe: _Probe, candidates: Sequence[int]) -> list[list[int]]:
    """The row counts whose results agree, ascending in each class.

    Each count is probed with places and neighbours of its own, so counts that agree have shown that
    these do not matter either; one that agrees with no other is probed with another two.
    """
    classes: dict[bytes, list[int]] = {}
    for num_rows in candidates:
        classes.setdefault(probe.bits(num_rows, seed=num_rows), []).append(num_rows)
    return [
        members
        for result, members in classes.items()
        if len(members) > 1 or probe.bits(members[0], seed=0) == result
    ]


def _timed(probe: _Probe, counts: Sequence[int]) -> dict[int, float]:
    """Seconds of a forward at each row count: the best of a few rounds over all of them.

    In rounds, so that a machine that is busy for a moment is so for all. Slow forwards are timed
    less often: a moment is a small part of one, and loading waits for them.
    """
    until = time.perf_counter() + _TIMED_S
    rounds: list[dict[int, float]] = []
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() > until:
            break
        rounds.append({n: probe.seconds(n) for n in counts})
    return {n: min(seconds[n] for seconds in rounds) for n in counts}


def _faster(seconds: Mapping[int, float]) -> dict[int, int]:
    """For each row count that a larger one clearly beats, the fastest of these.

    Kernels are tuned for some shapes: 4 rows can take three quarters of the time of 2. A much
    larger count only seems to win, on a busy machine.
    """
    best: dict[int, int] = {}
    for rows, time_taken in seconds.items():
        larger = [n for n in seconds if rows < n <= _MOST_PADDING * rows]
        fastest = min(larger, key=seconds.__getitem__, default=rows)
        if seconds[fastest] < _CLEARLY * time_taken:
            best[rows] = fastest
    return best


def _choose(classes: Iterable[list[int]], *, needed: int) -> tuple[int, ...] | None:
    """Of the classes that reach ``needed`` rows, the one with most counts."""
    reaching = [members for members in classes if members[-1] >= needed]
    best: list[int] = max(reaching, key=len, default=[])
    return tuple(best) or None


class _Probe:
    """Decodes `_PROBES` fixed sequences, which lie in the cache, at any row count."""

    def __init__(
        self, runner: Runner, vocab_size: int, *, max_head_rows: int, decode: bool = False
    ) -> None:
        self._runner = runner
        self._decode_step = decode
        self._vocab_size = vocab_size
        self._max_head_rows = max_head_rows  # the head runs at the counts of decoding only
        self._cache = runner.cache
        num_pages = self._cache.pages_for(_CONTEXT + 1)
        self._pages = [list(range(i * num_pages, (i + 1) * num_pages)) for i in range(_PROBES)]
        # Filler rows are sequences too; they share the scratch pages behind the probes' pages.
        self._scratch = list(range(_PROBES * num_pages, (_PROBES + 1) * num_pages))
        self._cache.fill_randomly([page for run in self._pages for page in run], seed=0)
        generator = torch.Generator().manual_seed(1)
        self._tokens = torch.randint(vocab_size, (_PROBES,), generator=generator)

    def bits(self, num_rows: int, *, seed: int) -> bytes:
        """All bits that the probes get in forwards of ``num_rows`` rows.

        ``seed`` shuffles their places and the content of the other rows: none of it may show.
        """
        shuffle = torch.Generator().manual_seed(seed)
        seen: list[bytes] = []
        at_once = min(_PROBES, num_rows, self._max_head_rows)
        for first in range(0, _PROBES, at_once):
            probes = range(first, min(first + at_once, _PROBES))
            token_ids = torch.randint(self._vocab_size, (num_rows,), generator=shuffle)
            places = torch.randperm(num_rows, generator=shuffle).tolist()[: len(probes)]
            for probe, row in zip(probes, self._decode(token_ids, probes, places), strict=True):
                seen.append(bits_of(row))
                seen.append(self._cache.bits(self._pages[probe], _CONTEXT, _CONTEXT + 1))
        return b"".join(seen)

    def seconds(self, num_rows: int) -> float:
        """How long a forward takes, once."""
        token_ids = torch.zeros(num_rows, dtype=torch.long)
        start = time.perf_counter()
        self._decode(token_ids, range(1), [0]).cpu()
        return time.perf_counter() - start

    def _decode(
        self, token_ids: torch.Tensor, probes: range, places: Sequence[int]
    ) -> torch.Tensor:
        """Logits [len(probes), vocab] of some probes at their places in a batch."""
        num_rows = len(token_ids)
        pieces = [ScheduledTokens(0, 1, self._scratch)] * num_rows
        for probe, place in zip(probes, places, strict=True):
            token_ids[place] = self._tokens[probe]
            pieces[place] = ScheduledTokens(_CONTEXT, 1, self._pages[probe])
        return self._runner.forward(
            token_ids.to(self._runner.device),
            pieces,
            num_rows=num_rows,
            keep=places,
            num_keep=min(num_rows, self._max_head_rows),
            decode=self._decode_step,
        )


def pages_needed(cache: KVCache) -> int:
    """Pages that a cache must have for the probes of this module."""
    return (_PROBES + 1) * cache.pages_for(_CONTEXT + 1) + cache.pages_for(_LANE_TOKENS + 1)


def batched_lane_problem(runner: Runner, *, vocab_size: int) -> str | None:
    """Compare the packed forward with the model's own on a random prompt; None when they agree.

    The prompt is prefilled in two chunks and extended by one decode step, so that state other than
    keys and values (recurrent layers), and positions that the packed forward gets wrong, show.
    """
    length = _LANE_TOKENS
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (length + 1,), generator=generator).tolist()
    pages = list(range(runner.cache.pages_for(length + 1)))
    middle = length // 2 + 1
    parts = [(0, middle), (middle, length), (length, length + 1)]
    packed = [
        runner.forward(
            torch.tensor(tokens[start:stop], device=runner.device),
            [ScheduledTokens(start, stop - start, pages)],
            num_rows=stop - start,
            keep=[stop - start - 1],
            num_keep=1,
            decode=start == length,
        )[0].clone()
        for start, stop in parts
    ]
    with plain_attention(runner):
        plain = runner.plain_logits(tokens)
    tolerance = _TOLERANCE[next(iter(runner.cache.layers.values())).keys.dtype]
    for (_, stop), ours in zip(parts, packed, strict=True):
        theirs = plain[stop - 1]
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= tolerance:
            return f"packed logits differ from the model's own by {error:.1e} of their size"
    return None


@contextmanager
def plain_attention(runner: Runner) -> Iterator[None]:
    """The model's own attention, for `generate` and as a reference."""
    runner.set_attention(runner.own_attention)
    try:
        yield
    finally:
        runner.set_attention(PAGED)
