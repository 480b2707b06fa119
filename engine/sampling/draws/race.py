"""The tokens that tasks sample, on a CPU: one compiled call for all rows of a step.

transformers prepares a row in four or more passes, of which two sort it, and each is a dozen calls
of torch: 15 ms for a row of 152k with ``top_p``. Here a row is one unit of work, and only what is
left after ``top_k`` is looked at closely.

What is chosen is what transformers' processors and `torch.multinomial` choose. They compute in
float32; this computes the same in float64, so where the choice is closer than the errors of float32
can decide, it says so (`UNCERTAIN`), and their own operations decide.

Numba compiles it at its first use (`engine.platform.compiled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import prange, types
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.platform.compiled import FAST_MATH, compiled, pointer, use_torch_threads

UNCERTAIN = -2
"""In place of a token: torch's own operations have to decide."""

MAX_TOP_K = 256
"""Up to which a row's best tokens are found here."""

_ORDER = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


class Rule(NamedTuple):
    """What of a row of scores a token is sampled from; in this order, as transformers has it.

    Attributes:
        temperature: scores are divided by it.
        top_k: how many of the best tokens are left; 0 for all.
        top_p: the best of them, which together have this probability; 1 for all.
        min_p: those that have this part of the best one's probability; 0 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @classmethod
    def of(cls, processors: Sequence[LogitsProcessor]) -> Rule | None:
        """The one of transformers' processors; None if it is not computed here."""
        kinds = [type(each) for each in processors]
        if kinds != [kind for kind in _ORDER if kind in kinds]:
            return None
        rule = cls()
        for each in processors:
            if getattr(each, "min_tokens_to_keep", 1) != 1:
                return None
            if getattr(each, "filter_value", -math.inf) != -math.inf:
                return None
            if isinstance(each, TemperatureLogitsWarper):
                rule = rule._replace(temperature=float(each.temperature))
            elif isinstance(each, TopKLogitsWarper):
                rule = rule._replace(top_k=int(each.top_k))
            elif isinstance(each, TopPLogitsWarper):
                rule = rule._replace(top_p=float(each.top_p))
            elif isinstance(each, MinPLogitsWarper):
                rule = rule._replace(min_p=float(each.min_p))
        if rule.top_k > MAX_TOP_K or (rule.top_p < 1 and not rule.top_k):
            return None  # probabilities of all tokens are sums that float32 decides
        return rule


class RowToSample(NamedTuple):
    """A row of scores [vocab] and its noise [vocab], contiguous float32, and what applies to it."""

    scores: torch.Tensor
    noise: torch.Tensor
    rule: Rule


def race(rows: Sequence[RowToSample]) -> torch.Tensor:
    """A token for each row, at least one, all of the same vocabulary: int64 [rows].

    `UNCERTAIN` where it is not certain, and where scores are not numbers.
    """
    kernel = _compiled()
    use_torch_threads()
    tokens = torch.empty(len(rows), dtype=torch.int64)
    kernel(
        np.array([row.scores.data_ptr() for row in rows], dtype=np.int64),
        np.array([row.noise.data_ptr() for row in rows], dtype=np.int64),
        rows[0].scores.shape[0],
        np.array([row.rule.temperature for row in rows], dtype=np.float32),
        np.array([row.rule.top_k for row in rows], dtype=np.int64),
        np.array([1 - row.rule.top_p for row in rows], dtype=np.float32),
        np.array([row.rule.min_p for row in rows], dtype=np.float64),
        tokens.numpy(),
    )
    return tokens


def prepare() -> None:
    """Compile, so that no task waits for it."""
    _compiled()


@lru_cache
def _compiled() -> Callable[..., None]:
    """The kernel; the first call takes seconds where no cache has it."""
    integers, floats = types.int64[::1], types.float32[::1]
    signature = types.void(
        *(integers, integers, types.int64),
        *(floats, integers, floats, types.float64[::1]),
        integers,
    )
    return compiled(signature, _race)


# --- What follows is compiled: Numba's Python, in which loops are fast ----------------------------

_array_at: Any = numba.carray  # type: ignore[attr-defined]
_inner = numba.njit(fastmath=FAST_MATH, error_model="numpy")
# Without NaN a largest element is found in vector instructions.
_inner_of_numbers = numba.njit(fastmath={*FAST_MATH, "nnan"}, error_model="numpy")

_BLOCK = 512
_LARGEST = np.float32(np.finfo(np.float32).max)
_MINUS_INFINITY = np.float32(-np.inf)
# Of probabilities and their quotients in float32, relative: torch's exponential function errs by up
# to 20 units in the last place (`exp_u20`), a sum of 256 terms and a division by less than that.
_ERROR = 1e-5
_TINY = 1e-30  # probabilities below this lose bits in float32, or are zero


@_inner
def _scale(scores: Any, temperature: Any, result: Any) -> Any:
    """Divide as torch does; how many are NaN or infinity."""
    wrong = 0
    for i in range(len(scores)):
        value = scores[i] / temperature
        result[i] = value
        wrong += not value <= _LARGEST
    return wrong


@_inner_of_numbers
def _largest(values: Any) -> Any:
    best = values[0]
    for value in values:
        best = max(best, value)
    return best


@_inner
def _kth_largest(scores: Any, k: Any) -> Any:
    """By a heap whose first is the smallest of the k largest so far."""
    heap = np.full(k, _MINUS_INFINITY, np.float32)
    for start in range(0, len(scores), _BLOCK):
        block = scores[start : start + _BLOCK]
        if _largest(block) <= heap[0]:
            continue
        for value in block:
            if value <= heap[0]:
                continue
            at = 0
            while True:
                child = 2 * at + 1
                if child + 1 < k and heap[child + 1] < heap[child]:
                    child += 1
                if child >= k or heap[child] >= value:
                    break
                heap[at] = heap[child]
                at = child
            heap[at] = value
    return heap[0]


@_inner
def _is_close(winner: Any, best: Any, second: Any, min_p: Any) -> Any:
    """Whether float32 may decide otherwise: by a weight, and the two largest quotients."""
    of_rule = winner <= min_p * (1 + _ERROR)
    return of_rule or winner < _TINY or second >= best * (1 - _ERROR)


@_inner
def _best_of_top(scores: Any, noise: Any, largest: Any, top_k: Any, tail: Any, min_p: Any) -> Any:
    """The token of a row with ``top_k``. ``tail`` is the probability that ``top_p`` cuts off."""
    kth = _kth_largest(scores, min(top_k, len(scores)))
    members = np.empty(2 * MAX_TOP_K, np.int64)
    count = 0
    for start in range(0, len(scores), _BLOCK):
        if _largest(scores[start : start + _BLOCK]) < kth:
            continue
        for i in range(start, min(start + _BLOCK, len(scores))):
            if scores[i] >= kth and scores[i] > _MINUS_INFINITY:
                if count == len(members):
                    return UNCERTAIN  # many are equal
                members[count] = i
                count += 1
    members = members[:count]
    members = members[np.argsort(scores[members])]
    weights = np.empty(count)
    total = 0.0
    for n in range(count):
        weights[n] = math.exp(np.float64(scores[members[n]] - largest))
        total += weights[n]
    # Of these, in ascending order, ``top_p`` cuts off all before ``first``, and none from ``kept``
    # on. Which ones of equal scores are cut off is up to torch.sort.
    first = kept = 0
    so_far = 0.0
    while kept < count - 1 and tail > 0:
        so_far += weights[kept]
        if so_far / total > tail * (1 + _ERROR):
            break
        kept += 1
        if so_far / total < tail * (1 - _ERROR):
            first = kept
    while first > 0 and weights[first - 1] == weights[first]:
        first -= 1
    while 0 < kept < count and weights[kept - 1] == weights[kept]:
        kept += 1
    token, best, second, winner = -1, 0.0, 0.0, 0.0
    for n in range(first, count):
        if noise[members[n]] == 0:
            return UNCERTAIN
        quotient = weights[n] / noise[members[n]]
        if weights[n] >= min_p * (1 - _ERROR) and quotient > best:
            token, best, second, winner = n, quotient, best, weights[n]
        else:
            second = max(second, quotient)
    if token < kept or _is_close(winner, best, second, min_p):
        return UNCERTAIN
    return members[token]


@_inner
def _weights(scores: Any, largest: Any, result: Any, power: Any) -> None:
    """exp(score - largest), by 2**n and a polynomial; within 1e-9."""
    powers = power.view(np.float64)
    for i in range(len(scores)):
        x = max(np.float64(scores[i] - largest), -700.0)
        n = math.floor(x * 1.4426950408889634 + 0.5)
        r = x - n * 0.6931471805599453
        power[i] = (np.int64(np.int32(n)) + np.int64(1023)) << np.int64(52)
        result[i] = 1 + r * (
            1
            + r
            * (
                1 / 2
                + r
                * (
                    1 / 6
                    + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040 + r / 40320))))
                )
            )
        )
    for i in range(len(scores)):
        result[i] *= powers[i]


@_inner
def _best_of_all(scores: Any, noise: Any, largest: Any, min_p: Any) -> Any:
    """The token of a row without ``top_k``."""
    token, best, second, winner = np.int64(UNCERTAIN), 0.0, 0.0, 0.0
    weights, quotients = np.empty(_BLOCK), np.empty(_BLOCK)
    power = np.empty(_BLOCK, np.int64)
    least = min_p * (1 - _ERROR)
    for start in range(0, len(scores), _BLOCK):
        count = min(_BLOCK, len(scores) - start)
        _weights(scores[start : start + count], largest, weights, power)
        zeros = 0
        for i in range(count):
            number = np.float64(noise[start + i])
            zeros += number == 0
            quotients[i] = weights[i] / number if weights[i] >= least else 0.0
        if zeros:
            return UNCERTAIN
        if _largest(quotients[:count]) <= second:
            continue
        for i in range(count):
            if quotients[i] > best:
                best, second, winner = quotients[i], best, weights[i]
                token = np.int64(start + i)
            else:
                second = max(second, quotients[i])
    return UNCERTAIN if _is_close(winner, best, second, min_p) else token


def _race(
    all_scores: Any,  # addresses, by row
    all_noise: Any,
    vocab_size: Any,
    temperatures: Any,
    top_ks: Any,
    tails: Any,
    min_ps: Any,
    tokens: Any,
) -> None:
    """Each row by itself; see `race`."""
    for n in prange(len(tokens)):
        noise = _array_at(pointer(all_noise[n]), (vocab_size,), np.float32)
        own = _array_at(pointer(all_scores[n]), (vocab_size,), np.float32)
        scores = np.empty(vocab_size, np.float32)
        wrong = _scale(own, temperatures[n], scores)
        tokens[n] = UNCERTAIN
        if wrong:
            continue
        largest = _largest(scores)
        if largest == _MINUS_INFINITY:
            continue
        if top_ks[n]:
            tokens[n] = _best_of_top(scores, noise, largest, top_ks[n], tails[n], min_ps[n])
        else:
            tokens[n] = _best_of_all(scores, noise, largest, min_ps[n])
