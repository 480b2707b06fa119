"""Measures, at load, what the rest of the engine relies on instead of assuming it.

Two questions are asked of the real model with its real dtype, quantization, device and threads:

* `find_row_counts`: at which numbers of rows does a forward give a row the same bits? Kernels pick
  their order of summation by the shape of their input, so this is a fact of the machine, not of the
  model.
* `batched_lane_problem`: does the packed, paged forward compute what the model's own does?
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from engine.attention import PAGED
from engine.kv_cache import KVCache
from engine.runner import Piece, RowCounts, Runner

logger = logging.getLogger(__name__)

_CONTEXT = 7  # tokens before the probed row; any number that is not special
# Distinct sequences that must agree. In bfloat16 two orders of summation round to the same bits in
# most rows (four of five, at 4864 terms): few probes would miss that they differ.
_PROBES = 16
_LANE_TOKENS = 24  # prompt of the lane check

# Largest difference between packed and plain logits, relative to the largest logit. Loose: it tells
# a wrong mask, position or layer state, which changes logits by their own size, from rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


class ProbeFailedError(RuntimeError):
    """No row count serves: the model cannot keep the promise in the batch loop."""


def candidate_rows(max_sequences: int, prefill_chunk: int) -> tuple[int, ...]:
    """Row counts worth probing: 2, 3, 4, 6, 8, 12 ... up to twice the chunk, and both limits.

    At most a third of a batch is padding then. One row is left out: it takes another kernel almost
    everywhere, and two rows cost the same.
    """
    largest = max(2 * prefill_chunk, max_sequences)
    steps = {k << i for i in range(largest.bit_length()) for k in (2, 3)}
    return tuple(sorted(n for n in steps | {max_sequences, prefill_chunk} if 2 <= n <= largest))


def any_row_counts(max_sequences: int, prefill_chunk: int) -> RowCounts:
    """Every row count, agreeing or not: no padding and no promise."""
    return RowCounts(
        decode=tuple(range(1, max_sequences + 1)), prefill=tuple(range(1, 2 * prefill_chunk + 1))
    )


def find_row_counts(
    runner: Runner, *, vocab_size: int, max_sequences: int, prefill_chunk: int
) -> RowCounts:
    """Row counts for decode and for prefill whose results agree bit for bit.

    Raises:
        ProbeFailedError: a row's bits depend on its position or on the content of the other rows.
    """
    candidates = candidate_rows(max_sequences, prefill_chunk)
    # Each count is probed with places and neighbours of its own, so counts that agree have shown
    # that these do not matter either.
    bits = {n: _probe(runner, n, vocab_size, seed=n) for n in candidates}
    classes: dict[bytes, list[int]] = {}
    for num_rows, result in bits.items():
        classes.setdefault(result, []).append(num_rows)
    for result, members in list(classes.items()):
        if len(members) == 1 and _probe(runner, members[0], vocab_size, seed=0) != result:
            del classes[result]
    decode = _choose(classes.values(), needed=max_sequences)
    prefill = _choose(classes.values(), needed=prefill_chunk)
    if decode is None or prefill is None:
        raise ProbeFailedError("a row's result depends on its position or on the other rows")
    logger.info("row counts that agree bit for bit: decode %s, prefill %s", decode, prefill)
    return RowCounts(decode=decode, prefill=prefill)


def _choose(classes: Iterable[list[int]], *, needed: int) -> tuple[int, ...] | None:
    """Of the classes that reach ``needed`` rows, the one with most counts."""
    reaching = [sorted(members) for members in classes if max(members) >= needed]
    best: list[int] = max(reaching, key=len, default=[])
    return tuple(best) or None


def _probe(runner: Runner, num_rows: int, vocab_size: int, *, seed: int) -> bytes:
    """Decode `_PROBES` fixed sequences in forwards of ``num_rows`` rows; all bits that they get.

    ``seed`` shuffles the sequences' places and the content of the other rows: none of it may show.
    """
    cache = runner.cache
    num_pages = cache.pages_for(_CONTEXT + 1)
    page_runs = [list(range(i * num_pages, (i + 1) * num_pages)) for i in range(_PROBES)]
    # Filler rows are sequences too; they share the scratch pages behind the probes' pages.
    scratch = list(range(_PROBES * num_pages, (_PROBES + 1) * num_pages))
    fixed = torch.Generator().manual_seed(0)
    slots = cache.slots([page for run in page_runs for page in run], 0, _probe_tokens(cache))
    for layer in cache.layers.values():  # the same random context in every call
        for stored in (layer.keys, layer.values):
            stored[slots] = torch.randn(stored[slots].shape, generator=fixed).to(stored)
    tokens = torch.randint(vocab_size, (_PROBES,), generator=fixed).tolist()

    shuffle = torch.Generator().manual_seed(seed)
    seen: list[bytes] = []
    probes_at_once = min(_PROBES, num_rows)
    for first in range(0, _PROBES, probes_at_once):
        probes = range(first, min(first + probes_at_once, _PROBES))
        fillers = torch.randint(vocab_size, (num_rows,), generator=shuffle).tolist()
        places = torch.randperm(num_rows, generator=shuffle).tolist()
        pieces = [Piece([token], 0, scratch) for token in fillers]
        for probe, place in zip(probes, places, strict=False):
            pieces[place] = Piece([tokens[probe]], _CONTEXT, page_runs[probe])
        logits = runner.forward(pieces, num_rows=num_rows, keep=range(num_rows), num_keep=num_rows)
        for probe, place in zip(probes, places, strict=False):
            slot = cache.slots(page_runs[probe], _CONTEXT, _CONTEXT + 1)
            seen.append(_bits(logits[place]))
            for layer in cache.layers.values():
                seen += [_bits(layer.keys[slot]), _bits(layer.values[slot])]
    return b"".join(seen)


def pages_needed(cache: KVCache) -> int:
    """Pages that a cache must have for the probes of this module."""
    return (_PROBES + 1) * cache.pages_for(_CONTEXT + 1) + cache.pages_for(_LANE_TOKENS + 1)


def _probe_tokens(cache: KVCache) -> int:
    """Tokens in the pages of all probes."""
    return _PROBES * cache.pages_for(_CONTEXT + 1) * cache.page_size


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())


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
            [Piece(tokens[start:stop], start, pages)],
            num_rows=stop - start,
            keep=[stop - start - 1],
            num_keep=1,
        )[0]
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
