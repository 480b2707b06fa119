"""Attention of single tokens on a CPU: one compiled call for all sequences of a decode step.

Called for each sequence by itself, `scaled_dot_product_attention` took longer to be called than to
compute, and a sequence whose pages are scattered had to be copied first: at 64 sequences attention
was half of a step. This kernel reads the pages in place. What it computes for a sequence
is a function of that sequence alone: nothing in it depends on how many others there are.

Numba compiles it at its first use (`engine.platform.compiled`). Sums are in float32; their order is
the compiler's choice, the same on the same kind of CPU.

Shapes: N tokens, each the last of its sequence; H query heads, K key/value heads, D and E sizes of
a key and of a value, S slots of the cache, L tokens of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from engine.execution.attention.interface import AttentionForm
from engine.execution.kv_cache import KVCache, LayerKV
from engine.platform.compiled import FAST_MATH, compiled, use_torch_threads
from engine.platform.platforms import platform_of
from engine.requests.request import ScheduledTokens

# How each dtype of torch comes as an array; neither numpy nor Numba has bfloat16, and Numba's
# float16 is CUDA's only.
_ELEMENTS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.float32: (torch.float32, types.float32),
    torch.bfloat16: (torch.uint16, types.uint16),
    torch.float16: (torch.int16, types.int16),
}
_UNBOUNDED = 2**62
_NO_SINKS = np.empty(0, np.float32)


def has_kernel(cache: KVCache) -> bool:
    """Whether the kernel can read a cache: its device, its layout and its dtypes."""
    readable = platform_of(cache.device).shares_host_memory and cache.layout == "heads first"
    return readable and all(layer.keys.dtype in _ELEMENTS for layer in cache.layers.values())


@dataclass(frozen=True)
class DecodeTokens:
    """Rows of a packed batch that are one token each.

    Attributes:
        rows: int64 [N]: their rows in the batch.
        slots: int32 [sum of all L]: the slots of each context's tokens, with the token itself; one
            context after the other.
        ends: int64 [N]: where each context ends in ``slots``.
    """

    rows: np.ndarray[Any, np.dtype[np.int64]]
    slots: np.ndarray[Any, np.dtype[np.int32]]
    ends: np.ndarray[Any, np.dtype[np.int64]]

    def within_chunks(self, chunk: int) -> tuple[Any, Any]:
        """``slots`` and ``ends`` of the tokens in the same chunk as the last one of each."""
        starts = np.concatenate([[0], self.ends[:-1]])
        firsts = self.ends - 1 - (self.ends - 1 - starts) % chunk
        seen = [self.slots[first:end] for first, end in zip(firsts, self.ends, strict=True)]
        return np.concatenate(seen), np.cumsum(self.ends - firsts, dtype=np.int64)

    def attend(
        self,
        query: torch.Tensor,  # [H, T, D]
        stored: LayerKV,
        output: torch.Tensor,  # [T, H, E]
        form: AttentionForm,
    ) -> None:
        """Write the attention output of these rows."""
        scale = query.shape[2] ** -0.5 if form.scaling is None else form.scaling
        window = _UNBOUNDED if form.sliding_window is None else form.sliding_window
        softcap = sinks = None
        if not form.is_usual:
            softcap = form.softcap or 0.0
            sinks = _NO_SINKS if form.sinks is None else form.sinks.detach().float().numpy()
        slots, ends = self.slots, self.ends
        if form.chunk is not None:
            slots, ends = self.within_chunks(form.chunk)
        view = _ELEMENTS[query.dtype][0]
        kernel = _compiled(query.dtype, form.is_usual)
        use_torch_threads()
        kernel(
            query.view(view).numpy(),
            stored.keys.transpose(0, 1).view(view).numpy(),
            stored.values.transpose(0, 1).view(view).numpy(),
            self.rows,
            slots,
            ends,
            scale,
            window,
            softcap,
            sinks,
            output.view(view).numpy(),
        )


def decode_tokens(cache: KVCache, scheduled: Mapping[int, ScheduledTokens]) -> DecodeTokens:
    """Single tokens, by their rows in the batch."""
    within = np.arange(cache.page_size, dtype=np.int32)
    contexts = []
    for token in scheduled.values():
        used = np.array(token.pages[: cache.pages_for(token.stop)], dtype=np.int32)
        slots = (used[:, None] * cache.page_size + within).ravel()
        contexts.append(slots[: token.stop])
    ends = np.cumsum([len(slots) for slots in contexts], dtype=np.int64)
    return DecodeTokens(np.array(list(scheduled), dtype=np.int64), np.concatenate(contexts), ends)


@lru_cache
def _compiled(dtype: torch.dtype, is_usual: bool) -> Callable[..., None]:
    """The kernel for a dtype; the first call takes seconds where no cache has it.

    That of the usual form is compiled without what the others have besides: code that is not used
    could still change the order of its sums.
    """
    element = _ELEMENTS[dtype][1]
    signature = types.void(
        element[:, :, :],
        element[:, :, ::1],
        element[:, :, ::1],
        types.int64[::1],
        types.int32[::1],
        types.int64[::1],
        types.float32,
        types.int64,
        types.none if is_usual else types.float32,
        types.none if is_usual else types.float32[::1],
        element[:, :, ::1],
    )
    return compiled(signature, _attend)


# --- What follows is compiled: Numba's Python, in which loops are fast and arrays have to be made
# --- before they are filled.


def _widen_element(_context: Any, value: Any) -> Any:
    """An element of an array as float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        (bits,) = arguments
        if value == types.float32:
            return bits
        if value == types.int16:  # float16
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
        word = builder.zext(bits, ir.IntType(32))  # bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(value), generate


def _narrow_float(_context: Any, value: Any, like: Any) -> Any:
    """A float32 as an element, rounded to the nearest, ties to even."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        number = arguments[0]
        if like == types.float32:
            return number
        short, word = ir.IntType(16), ir.IntType(32)
        if like == types.int16:
            return builder.bitcast(builder.fptrunc(number, ir.HalfType()), short)
        bits = builder.bitcast(number, word)
        upper = builder.lshr(bits, ir.Constant(word, 16))
        odd = builder.and_(upper, ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        rounded = builder.lshr(rounded, ir.Constant(word, 16))
        not_a_number = builder.fcmp_unordered("uno", number, number)  # NaN must stay NaN
        quiet = ir.Constant(word, 0x7FC0)
        return builder.trunc(builder.select(not_a_number, quiet, rounded), short)

    return like(value, like), generate


def _power_of_two(_context: Any, exponent: Any) -> Any:
    """2 to a whole number between -126 and 127, by writing the exponent bits of a float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        biased = builder.add(builder.fptosi(arguments[0], word), ir.Constant(word, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(exponent), generate


_widen: Any = intrinsic(_widen_element)
_narrow: Any = intrinsic(_narrow_float)
_two_to_the: Any = intrinsic(_power_of_two)
_f32 = np.float32


def _exp_below_zero(x: Any) -> Any:
    """e to the ``x``, for x of at most 0, in operations that vectorize.

    Range reduction and polynomial are those of Cephes' ``expf``
    (https://www.netlib.org/cephes/, single/expf.c): within two units in the last place.
    """
    if x < _f32(-87.0):  # where float32 has no normal numbers left; false for NaN
        x = _f32(-87.0)
    whole = np.floor(x * _f32(1.44269504088896341) + _f32(0.5))
    rest = x - whole * _f32(0.693359375) + whole * _f32(2.12194440e-4)
    series = _f32(1.9875691500e-4)
    series = series * rest + _f32(1.3981999507e-3)
    series = series * rest + _f32(8.3334519073e-3)
    series = series * rest + _f32(4.1665795894e-2)
    series = series * rest + _f32(1.6666665459e-1)
    series = series * rest + _f32(5.0000001201e-1)
    return (series * rest * rest + rest + _f32(1.0)) * _two_to_the(whole)


_exp = numba.njit(inline="always", fastmath=FAST_MATH)(_exp_below_zero)


def _tanh_of(x: Any) -> Any:
    """The hyperbolic tangent, in operations that vectorize."""
    power = _exp(_f32(-2.0) * abs(x))
    size = (_f32(1.0) - power) / (_f32(1.0) + power)
    return size if x >= 0 else -size


_tanh = numba.njit(inline="always", fastmath=FAST_MATH)(_tanh_of)


def _widen_four(stored: Any, slots: Any, first: Any, four: Any) -> None:
    """Four rows of ``stored`` [S, D] as float32; after the last slot, the last one again."""
    for j in range(4):
        slot = slots[min(first + j, len(slots) - 1)]
        for d in range(stored.shape[1]):
            four[j, d] = _widen(stored[slot, d])


_read_four = numba.njit(inline="always", fastmath=FAST_MATH)(_widen_four)


def _attend(
    query: Any,  # [H, T, D]
    keys: Any,  # [K, S, D]
    values: Any,  # [K, S, E]
    rows: Any,
    slots: Any,
    ends: Any,
    scale: Any,
    window: Any,
    softcap: Any,  # 0: none; None, with sinks: the usual form
    sinks: Any,  # [H], or [0]: none
    output: Any,  # [T, H, E]
) -> None:
    """Softmax(query keys / scale) values, for each token and the heads that share keys.

    Keys and values are read once for all heads that share them, and four tokens at a time, which
    keeps more of the sums in registers (a quarter less time than one by one).
    """
    num_tokens, kv_heads = len(rows), len(keys)
    group = len(query) // kv_heads
    key_dim, value_dim = keys.shape[2], values.shape[2]
    # All tokens of one head, then of the next, so that threads get equal shares of the work.
    for unit in prange(num_tokens * kv_heads):
        kv_head, n = unit // num_tokens, unit % num_tokens
        row, stop = rows[n], ends[n]
        start = ends[n - 1] if n > 0 else 0
        start = max(start, stop - window)
        length = stop - start
        padded = (length + 3) // 4 * 4
        q = np.empty((group, key_dim), np.float32)
        for g in range(group):
            for d in range(key_dim):
                q[g, d] = _widen(query[kv_head * group + g, row, d]) * scale
        weights = np.empty((group, padded), np.float32)
        four = np.empty((4, max(key_dim, value_dim)), np.float32)
        for t in range(0, padded, 4):
            _read_four(keys[kv_head], slots[:stop], start + t, four)
            for g in range(group):
                s0, s1, s2, s3 = _f32(0), _f32(0), _f32(0), _f32(0)
                for d in range(key_dim):
                    s0 += q[g, d] * four[0, d]
                    s1 += q[g, d] * four[1, d]
                    s2 += q[g, d] * four[2, d]
                    s3 += q[g, d] * four[3, d]
                weights[g, t], weights[g, t + 1] = s0, s1
                weights[g, t + 2], weights[g, t + 3] = s2, s3
        totals = np.empty(group, np.float32)
        for g in range(group):
            if softcap is not None:  # noqa: SIM102 - Numba compiles no branch on None alone
                if softcap > 0:
                    for t in range(length):
                        weights[g, t] = softcap * _tanh(weights[g, t] / softcap)
            largest = weights[g, 0]
            for t in range(length):
                largest = max(largest, weights[g, t])
            total = _f32(0)
            if sinks is not None:  # noqa: SIM102 - as above
                if len(sinks) > 0:
                    sink = sinks[kv_head * group + g]
                    largest = max(largest, sink)
                    total = _exp(sink - largest)
            for t in range(length):
                weights[g, t] = _exp(weights[g, t] - largest)
                total += weights[g, t]
            weights[g, length:] = 0
            totals[g] = total
        mean = np.zeros((group, value_dim), np.float32)
        for t in range(0, padded, 4):
            _read_four(values[kv_head], slots[:stop], start + t, four)
            for g in range(group):
                w0, w1 = weights[g, t], weights[g, t + 1]
                w2, w3 = weights[g, t + 2], weights[g, t + 3]
                for d in range(value_dim):
                    mean[g, d] += (w0 * four[0, d] + w1 * four[1, d]) + (
                        w2 * four[2, d] + w3 * four[3, d]
                    )
        for g in range(group):
            for d in range(value_dim):
                out = kv_head * group + g
                output[row, out, d] = _narrow(mean[g, d] / totals[g], output[row, out, d])
