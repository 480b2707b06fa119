"""INT8 products on a CPU: one compiled call from rows to rows, with bitsandbytes' arithmetic.

Each row of the input is rounded to float16 and scaled so that its largest element is 127. Its
products with the weights are summed in int32, which is exact: so what becomes of a row depends on
neither the other rows nor their number. The sums are scaled back in float32 by the scales of the
row and of the weight, the bias is added, and the result is rounded once. Every operation is the one
of bitsandbytes at threshold 0 (bitsandbytes/backends/default/ops.py of version 0.50), in its order,
and none of them has more than one right result: the bits are the same.

The product is made of tiles of `PANEL` columns and up to `MOST_ROWS` rows, whose sums stay in
registers. Their instruction, ``vpdpbusd``, adds four products of an unsigned and a signed byte:
inputs have 128 added to them, and 128 times the sum of a column's weights is taken off in the end.

Numba compiles it at its first use (`engine.platform.compiled`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from engine.platform.compiled import compiled, has_instructions, pointer, use_torch_threads

PANEL = 64
"""Columns whose weights lie together."""
MOST_ROWS = 6
"""Rows of the largest tile: its sums take 24 of the 32 registers, and few are left to be spread."""
_BLOCK = 8 * MOST_ROWS  # rows of a thread's share: a few columns are enough for several threads
STEP = 4
"""Inputs that are multiplied and added at once."""
MOST_INPUTS = 2**31 // (255 * 127) // STEP * STEP
"""The sums of a product with more inputs may not fit into 32 bits."""

# How each dtype of torch comes as an array; neither numpy nor Numba has bfloat16, and Numba's
# float16 is CUDA's only.
_ELEMENTS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.float32: (torch.float32, types.float32),
    torch.bfloat16: (torch.uint16, types.uint16),
    torch.float16: (torch.int16, types.int16),
}
_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c")


@lru_cache
def has_kernel() -> bool:
    """Whether this CPU, as Numba compiles for it, has the instructions."""
    return has_instructions(*_FEATURES)


def packed(weight: torch.Tensor) -> torch.Tensor:
    """A weight int8 [out, in] as the kernel reads it: int8 [panels, steps, PANEL, STEP].

    Filled up with zeros to whole panels and steps.
    """
    missing = (0, -weight.shape[1] % STEP, 0, -weight.shape[0] % PANEL)
    whole = torch.nn.functional.pad(weight, missing)
    parts = whole.view(len(whole) // PANEL, PANEL, whole.shape[1] // STEP, STEP)
    return parts.transpose(1, 2).contiguous()


def in_panels(columns: torch.Tensor) -> torch.Tensor:
    """A number for each column [out] as the kernel reads it: [panels, PANEL]."""
    return torch.nn.functional.pad(columns, (0, -len(columns) % PANEL)).view(-1, PANEL)


def product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    column_sums: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor,
    out_features: int,
) -> torch.Tensor:
    """The product of rows with a weight.

    Args:
        rows: [n, in], contiguous, of a dtype of `_ELEMENTS`.
        weight: of `packed`.
        column_sums: int32 [panels, PANEL]: 128 times the sum of each column's weights.
        scales: float32 [panels, PANEL]: the largest absolute value of each column.
        bias: float32 [panels, PANEL]; -0.0 where there is none, which changes no number.
        out_features: columns of the product.

    Returns:
        [n, out], in the dtype of ``rows``.
    """
    output = torch.empty(len(rows), out_features, dtype=rows.dtype)
    view = _ELEMENTS[rows.dtype][0]
    kernel = _compiled(rows.dtype)
    use_torch_threads()
    kernel(
        rows.detach().view(view).numpy(),
        weight.data_ptr(),
        column_sums.data_ptr(),
        scales.data_ptr(),
        bias.data_ptr(),
        output.view(view).numpy(),
    )
    return output


@lru_cache
def _compiled(dtype: torch.dtype) -> Callable[..., None]:
    """The kernel for a dtype; the first call takes seconds where no cache has it."""
    rows = _ELEMENTS[dtype][1][:, ::1]
    address = types.int64
    signature = types.void(rows, address, address, address, address, rows)
    return compiled(signature, _multiply, fast_math=False)


# --- What follows is compiled --------------------------------------------------------------------

_VECTOR = 16  # sums of int32 in a register
_f32 = np.float32
_array_at: Any = numba.carray  # type: ignore[attr-defined]
_BACK = np.float32(6.200124e-05)  # 1 / 127 ** 2, as bitsandbytes writes it


def _half_bits_of(_context: Any, value: Any) -> Any:
    """The bits of an element that is rounded to float16, as int16."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        (number,) = arguments
        if value == types.int16:
            return number
        if value == types.uint16:  # bfloat16 is the upper half of a float32
            word = builder.zext(number, ir.IntType(32))
            word = builder.shl(word, ir.Constant(ir.IntType(32), 16))
            number = builder.bitcast(word, ir.FloatType())
        return builder.bitcast(builder.fptrunc(number, ir.HalfType()), ir.IntType(16))

    return types.int16(value), generate


def _from_half_bits(_context: Any, value: Any) -> Any:
    """float16 bits as float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

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


def _tile_of(num_rows: int) -> Any:
    """Sums of a tile: an intrinsic for so many rows.

    It takes addresses: of inputs uint8 [steps, num_rows, STEP], of a panel int8
    [steps, PANEL, STEP], and of the sums int32 [num_rows, PANEL]; and the number of steps, which is
    at least 1.
    """
    num_vectors = PANEL // _VECTOR
    byte, word, index = ir.IntType(8), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(word, _VECTOR)

    def typed(_context: Any, inputs: Any, panel: Any, sums: Any, steps: Any) -> Any:
        def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            def at(base: Any, offset: Any, of: Any) -> Any:
                place = builder.gep(base, [offset])
                return builder.bitcast(place, ir.PointerType(of))

            def constant(number: int) -> Any:
                return ir.Constant(index, number)

            pointers = [builder.inttoptr(each, ir.PointerType(byte)) for each in arguments[:3]]
            of_inputs, of_panel, of_sums = pointers
            name = "llvm.x86.avx512.vpdpbusd.512"
            multiply = builder.module.declare_intrinsic(
                name, (), ir.FunctionType(vector, [vector, vector, vector])
            )
            before = builder.block
            loop = builder.append_basic_block("tile")
            after = builder.append_basic_block("tile_end")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(index)
            step.add_incoming(constant(0), before)
            held = [[builder.phi(vector) for _ in range(num_vectors)] for _ in range(num_rows)]
            weights_at = builder.mul(step, constant(PANEL * STEP))
            weights = [
                builder.load(
                    at(of_panel, builder.add(weights_at, constant(v * _VECTOR * STEP)), vector),
                    align=1,
                )
                for v in range(num_vectors)
            ]
            inputs_at = builder.mul(step, constant(num_rows * STEP))
            everywhere = ir.Constant(ir.VectorType(word, _VECTOR), [0] * _VECTOR)
            for row, own in enumerate(held):
                place = at(of_inputs, builder.add(inputs_at, constant(row * STEP)), word)
                one = builder.insert_element(
                    ir.Constant(vector, ir.Undefined),
                    builder.load(place, align=1),
                    ir.Constant(word, 0),
                )
                four = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), everywhere)
                for v, phi in enumerate(own):
                    phi.add_incoming(ir.Constant(vector, [0] * _VECTOR), before)
                    phi.add_incoming(builder.call(multiply, [phi, four, weights[v]]), loop)
            following = builder.add(step, constant(1))
            step.add_incoming(following, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, arguments[3]), loop, after)
            builder.position_at_end(after)
            for row, own in enumerate(held):
                for v, phi in enumerate(own):
                    offset = constant((row * PANEL + v * _VECTOR) * STEP)
                    builder.store(phi.incomings[1][0], at(of_sums, offset, vector), align=1)
            return ir.Constant(ir.IntType(8).as_pointer(), None)

        return types.void(inputs, panel, sums, steps), generate

    return intrinsic(typed)


_half_bits: Any = intrinsic(_half_bits_of)
_from_half: Any = intrinsic(_from_half_bits)
_narrow: Any = intrinsic(_narrow_float)
_tile1, _tile2, _tile4, _tile6 = (_tile_of(rows) for rows in (1, 2, 4, MOST_ROWS))


def _rows_of_tile(left: Any) -> Any:
    """The rows of the next tile, where so many are left; more than that at the end."""
    if left > 4:
        return MOST_ROWS
    if left > 2:
        return 4
    return left


_tile_rows = numba.njit(inline="always")(_rows_of_tile)


def _quantize_row(row: Any, inputs: Any) -> Any:
    """Write a row's numbers, with 128 added to them, and return its scale."""
    halves = np.zeros(len(inputs), np.int16)
    largest = np.int16(0)
    for k in range(len(row)):
        halves[k] = _half_bits(row[k])
    for k in range(len(row)):
        largest = max(largest, np.int16(halves[k] & 0x7FFF))  # NaN is the largest whole number
    scale = _from_half(largest)
    # Of a row of zeros, or one that is not finite, the scale makes 0 or NaN of any sum.
    if 0 < largest < 0x7C00:
        factor = _f32(1.0) / scale * _f32(127.0)  # as torch divides a number by a tensor
        for k in range(len(inputs)):
            inputs[k] = np.uint8(np.int32(np.rint(_from_half(halves[k]) * factor)) + np.int32(128))
    else:
        inputs[:] = 128
    return scale


_quantize = numba.njit(inline="always")(_quantize_row)


def _multiply(
    rows: Any,  # [n, in]
    weight: Any,  # addresses: int8 [panels, steps, PANEL, STEP]
    column_sums: Any,  # int32 [panels, PANEL]
    scales: Any,  # float32 [panels, PANEL]
    bias: Any,  # float32 [panels, PANEL]
    output: Any,  # [n, out]
) -> None:
    num_rows, num_inputs = rows.shape
    num_columns = output.shape[1]
    num_panels = (num_columns + PANEL - 1) // PANEL
    steps = (num_inputs + STEP - 1) // STEP
    width = steps * STEP
    sums_of = _array_at(pointer(column_sums), (num_panels, PANEL), np.int32)
    scales_of = _array_at(pointer(scales), (num_panels, PANEL), np.float32)
    bias_of = _array_at(pointer(bias), (num_panels, PANEL), np.float32)
    # Tile by tile [steps, rows, STEP]. The last tile may have more rows, whose sums nobody reads.
    inputs = np.empty((num_rows + MOST_ROWS) * steps, np.uint32)
    row_scales = np.empty(num_rows, np.float32)
    for n in prange(num_rows):
        first = n // MOST_ROWS * MOST_ROWS
        size = _tile_rows(num_rows - first)
        quantized = np.empty(width, np.uint8)
        row_scales[n] = _quantize(rows[n], quantized)
        fours = quantized.view(np.uint32)
        place = first * steps + n - first
        for s in range(steps):
            inputs[place + s * size] = fours[s]
    num_blocks = (num_rows + _BLOCK - 1) // _BLOCK
    for unit in prange(num_panels * num_blocks):
        panel, block = unit // num_blocks, unit % num_blocks
        start = panel * PANEL
        count = min(num_columns - start, PANEL)
        sums = np.empty((MOST_ROWS, PANEL), np.int32)
        numbers = np.empty(PANEL, np.float32)
        panel_at = weight + panel * width * PANEL
        first = block * _BLOCK
        end = min(first + _BLOCK, num_rows)
        while first < end:
            size = _tile_rows(num_rows - first)
            inputs_at = inputs.ctypes.data + first * width
            if size == MOST_ROWS:
                _tile6(inputs_at, panel_at, sums.ctypes.data, steps)
            elif size == 4:
                _tile4(inputs_at, panel_at, sums.ctypes.data, steps)
            elif size == 2:
                _tile2(inputs_at, panel_at, sums.ctypes.data, steps)
            else:
                _tile1(inputs_at, panel_at, sums.ctypes.data, steps)
            for n in range(first, min(first + size, end)):
                scale = row_scales[n]
                for c in range(PANEL):
                    exact = np.int32(sums[n - first, c] - sums_of[panel, c])
                    number = _f32(exact) * (scale * scales_of[panel, c]) * _BACK
                    numbers[c] = number + bias_of[panel, c]
                for c in range(count):
                    output[n, start + c] = _narrow(numbers[c], output[n, start + c])
            first += size
