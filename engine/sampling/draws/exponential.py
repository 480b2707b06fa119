"""Numbers of Exp(1) from torch's CPU generator: the same to the last bit, ten times as fast.

``tensor.exponential_(generator=...)`` makes each number of two outputs of a Mersenne twister and
computes its logarithm, one by one: 2.9 ms for a row of 152k. Here a block is computed in vector
instructions, and several generators at once, each on a thread. The logarithms are computed in
another way than libm's; where both could be rounded to different numbers of float32, libm's is
taken.

The twister: M. Matsumoto and T. Nishimura, *Mersenne Twister*, ACM TOMACS 8 (1998); the bits of a
number: ``random64`` and ``uniform_real_distribution`` in torch's ATen/core. The logarithm has the
coefficients of fdlibm's ``e_log.c``; its error is below 1 ulp.

Numba compiles it at its first use (`engine.platform.compiled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from numba import prange, types

from engine.platform.compiled import FAST_MATH, compiled, pointer, use_torch_threads

_OUTPUTS = 624  # of a block of the twister
_NUMBERS = _OUTPUTS // 2
_HEADER_BYTES = 24  # before the state, in what a torch generator tells of itself


class ExponentialStream:
    """The numbers of ``torch.Generator("cpu").manual_seed(seed)``, in order."""

    def __init__(self, seed: int) -> None:
        told = torch.Generator().manual_seed(seed).get_state().numpy()
        state = told[_HEADER_BYTES : _HEADER_BYTES + 8 * _OUTPUTS].view(np.uint64)
        self._state = state.astype(np.uint32)
        # The numbers of the last block, and how many of them have been given out.
        self._block = np.empty(_NUMBERS, np.float32)
        self._used = np.full(1, _NUMBERS, np.int64)

    def addresses(self) -> tuple[int, int, int]:
        """For the kernel."""
        return self._state.ctypes.data, self._block.ctypes.data, self._used.ctypes.data


def draw(wanted: Sequence[tuple[ExponentialStream, torch.Tensor]]) -> None:
    """Fill contiguous float32 tensors with the next numbers of their streams, each another one."""
    kernel = _compiled()
    use_torch_threads()
    addresses = np.array([stream.addresses() for stream, _ in wanted], dtype=np.int64)
    outputs = np.array([output.data_ptr() for _, output in wanted], dtype=np.int64)
    sizes = np.array([output.numel() for _, output in wanted], dtype=np.int64)
    kernel(addresses, outputs, sizes)


def prepare() -> None:
    """Compile, so that no task waits for it."""
    _compiled()


@lru_cache
def _compiled() -> Callable[..., None]:
    """The kernel; the first call takes seconds where no cache has it."""
    numbers = types.int64[::1]
    return compiled(types.void(types.int64[:, ::1], numbers, numbers), _draw)


# --- What follows is compiled: Numba's Python, in which loops are fast ----------------------------

_u32 = np.uint32
_UPPER, _LOWER, _MATRIX = _u32(0x80000000), _u32(0x7FFFFFFF), _u32(0x9908B0DF)
_MARGIN = 2.0**-46
"""Of a logarithm: many times its error, and rarely where float32 is rounded up or down."""

_array_at: Any = numba.carray  # type: ignore[attr-defined]
_inner = numba.njit(fastmath=FAST_MATH, error_model="numpy")


@_inner
def _next_state(state: Any) -> None:
    """The next block of the twister, in place."""
    for i in range(227):
        mixed = (state[i] & _UPPER) | (state[i + 1] & _LOWER)
        state[i] = state[i + 397] ^ (mixed >> _u32(1)) ^ (_MATRIX * (mixed & _u32(1)))
    for i in range(227, 623):
        mixed = (state[i] & _UPPER) | (state[i + 1] & _LOWER)
        state[i] = state[i - 227] ^ (mixed >> _u32(1)) ^ (_MATRIX * (mixed & _u32(1)))
    mixed = (state[623] & _UPPER) | (state[0] & _LOWER)
    state[623] = state[396] ^ (mixed >> _u32(1)) ^ (_MATRIX * (mixed & _u32(1)))


@_inner
def _complements(state: Any, result: Any) -> None:
    """1 - u of a block's numbers u of [0, 1), float64 and exact."""
    for i in range(_NUMBERS):
        a, b = state[2 * i], state[2 * i + 1]
        a ^= a >> _u32(11)
        a ^= (a << _u32(7)) & _u32(0x9D2C5680)
        a ^= (a << _u32(15)) & _u32(0xEFC60000)
        a ^= a >> _u32(18)
        b ^= b >> _u32(11)
        b ^= (b << _u32(7)) & _u32(0x9D2C5680)
        b ^= (b << _u32(15)) & _u32(0xEFC60000)
        b ^= b >> _u32(18)
        bits = ((np.int64(a) << np.int64(32)) | np.int64(b)) & np.int64((1 << 53) - 1)
        result[i] = 1.0 - np.float64(bits) * (1.0 / 9007199254740992.0)


@_inner
def _split(bits: Any, mantissa: Any, exponent: Any) -> None:
    """Bits of float64 into those of numbers between the roots of 1/2 and of 2, and exponents."""
    for i in range(_NUMBERS):
        k = (bits[i] - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
        mantissa[i] = bits[i] - (k << np.int64(52))
        exponent[i] = np.float64(np.int32(k))


@_inner
def _negative_logs(mantissa: Any, exponent: Any, result: Any) -> Any:
    """Their -log as float32; whether one of them could be rounded otherwise."""
    uncertain = np.int32(0)
    for i in range(_NUMBERS):
        f = mantissa[i] - 1.0
        s = f / (2.0 + f)
        z = s * s
        w = z * z
        even = w * (
            3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01)
        )
        odd = z * (
            6.666666666666735130e-01
            + w
            * (
                2.857142874366239149e-01
                + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)
            )
        )
        half = 0.5 * f * f
        low = s * (half + even + odd) + exponent[i] * 1.90821492927058770002e-10
        y = -(exponent[i] * 6.93147180369123816490e-01 - ((half - low) - f))
        down, up = np.float32(y * (1 - _MARGIN)), np.float32(y * (1 + _MARGIN))
        result[i] = down
        uncertain |= np.int32(down != up)
    return uncertain


def _draw(streams: Any, outputs: Any, sizes: Any) -> None:
    """Fill each output; see `draw`."""
    for n in prange(len(outputs)):
        state = _array_at(pointer(streams[n, 0]), (_OUTPUTS,), np.uint32)
        block = _array_at(pointer(streams[n, 1]), (_NUMBERS,), np.float32)
        used = _array_at(pointer(streams[n, 2]), (1,), np.int64)
        output = _array_at(pointer(outputs[n]), (sizes[n],), np.float32)
        rest, mantissa, exponent = np.empty(_NUMBERS), np.empty(_NUMBERS), np.empty(_NUMBERS)
        done = 0
        while done < sizes[n]:
            if used[0] == _NUMBERS:
                _next_state(state)
                _complements(state, rest)
                _split(rest.view(np.int64), mantissa.view(np.int64), exponent)
                if _negative_logs(mantissa, exponent, block):
                    for i in range(_NUMBERS):
                        block[i] = np.float32(-math.log(rest[i]))
                used[0] = 0
            count = min(_NUMBERS - used[0], sizes[n] - done)
            output[done : done + count] = block[used[0] : used[0] + count]
            used[0] += count
            done += count
