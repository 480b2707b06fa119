"""Products of bfloat16 on a CPU: sums in registers, in one order, shared out as threads have time.

An element of a product is one chain of float32 sums over the pairs of its inputs, from the first
to the last, by the instruction ``vdpbf16ps``; then the bias is added, and the result is rounded
once. Nothing in it depends on the other rows, on their number or on the threads: a row has the
same bits in every product. Like oneDNN's, the instruction takes denormal numbers as zero.

The product is made of tiles of `PANEL` columns and up to `MOST_ROWS` rows, whose sums stay in
registers. Threads take the next few tiles when they are done with the last ones. With shares of
equal size all wait for the one from which the system takes its core for a moment, in nearly every
product where other processes are awake.

Numba compiles it at its first use (`engine.platform.compiled`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from engine.platform.compiled import compiled, has_instructions, use_torch_threads

PANEL = 64
"""Columns whose weights lie together."""
STEP = 2
"""Inputs that are multiplied and added at once."""
MOST_ROWS = 6
"""Rows of the largest tile: its sums take 24 of the 32 registers, weights and inputs some more."""
_BLOCK = 96  # rows that a thread multiplies with a panel while a core's cache has it
_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512bf16")


@lru_cache
def has_kernel() -> bool:
    """Whether this CPU, as Numba compiles for it, has the instructions, and none that are better.

    AMX multiplies eight times as much at once, which oneDNN makes use of.
    """
    return has_instructions(*_FEATURES) and not has_instructions("amx-bf16")


def packed(weight: torch.Tensor) -> torch.Tensor:
    """A weight bfloat16 [out, in] as the kernel reads it: [panels, steps, PANEL, STEP].

    Filled up with zeros to whole panels and steps.
    """
    missing = (0, -weight.shape[1] % STEP, 0, -weight.shape[0] % PANEL)
    whole = torch.nn.functional.pad(weight, missing).contiguous()
    pairs = whole.view(torch.int32).view(len(whole) // PANEL, PANEL, -1)
    panels = pairs.transpose(1, 2).contiguous()
    return panels.view(torch.bfloat16).view(*panels.shape, STEP)


def in_panels(bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    """A bias [out] as the kernel reads it: float32 [panels * PANEL].

    Without one it is -0.0, which changes no number: 0.0 would turn -0.0 into 0.0.
    """
    numbers = torch.full((out_features,), -0.0) if bias is None else bias.float()
    return torch.nn.functional.pad(numbers, (0, -out_features % PANEL))


def product(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out_features: int
) -> torch.Tensor:
    """The product of rows with a weight.

    Args:
        rows: bfloat16 [n, in], with at least one input.
        weight: of `packed`.
        bias: of `in_panels`.
        out_features: columns of the product.

    Returns:
        bfloat16 [n, out].
    """
    steps = weight.shape[1]
    if rows.shape[1] < steps * STEP:  # no row may be read beyond its end
        rows = torch.nn.functional.pad(rows, (0, steps * STEP - rows.shape[1]))
    rows = rows.contiguous()
    output = rows.new_empty(len(rows), out_features)
    kernel = _compiled()
    kernel(
        use_torch_threads(),
        rows.data_ptr(),
        len(rows),
        steps,
        weight.data_ptr(),
        bias.data_ptr(),
        output.data_ptr(),
        out_features,
    )
    return output


@lru_cache
def _compiled() -> Callable[..., None]:
    """The kernel; the first call takes seconds where no cache has it."""
    return compiled(types.void(*[types.int64] * 8), _multiply, fast_math=False)


# --- What follows is compiled --------------------------------------------------------------------

_VECTOR = 16  # sums in a register
_NUM_VECTORS = PANEL // _VECTOR
_PANEL_STEP = 2 * PANEL * STEP  # bytes of a panel that a step reads
_LINE = 64  # bytes of a cache line


class _BFloatType(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloatType)

    def __hash__(self) -> int:
        return hash(_BFloatType)


_BYTE, _WORD, _INDEX, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _SUMS = ir.VectorType(_WORD, _VECTOR), ir.VectorType(_FLOAT, _VECTOR)
_PAIRS = ir.VectorType(_BFloatType(), _VECTOR * STEP)
_ROUNDED, _SHORTS = ir.VectorType(_BFloatType(), _VECTOR), ir.VectorType(ir.IntType(16), _VECTOR)
_EVERYWHERE = ir.Constant(_WORDS, [0] * _VECTOR)


class _Code:
    """Writes the instructions of a tile."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def vector_at(self, address: Any, index: int, num_bytes: int) -> Any:
        """The address of one of the vectors behind an address, by the size of an element."""
        return self.builder.add(address, ir.Constant(_INDEX, index * _VECTOR * num_bytes))

    def times(self, number: Any, factor: int) -> Any:
        """A number times a constant."""
        return self.builder.mul(number, ir.Constant(_INDEX, factor))

    def pointer(self, address: Any, of: Any) -> Any:
        """To a value of a type at an address."""
        return self.builder.inttoptr(address, ir.PointerType(of))

    def load(self, address: Any, of: Any) -> Any:
        """A value of a type, at any address."""
        return self.builder.load(self.pointer(address, of), align=1)

    def everywhere(self, number: Any) -> Any:
        """A vector of one number."""
        undefined = ir.Constant(ir.VectorType(number.type, _VECTOR), ir.Undefined)
        one = self.builder.insert_element(undefined, number, ir.Constant(_WORD, 0))
        return self.builder.shuffle_vector(one, undefined, _EVERYWHERE)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """An intrinsic function of LLVM."""
        form = ir.FunctionType(result, [each.type for each in arguments])
        function = self.builder.module.declare_intrinsic(name, (), form)
        return self.builder.call(function, arguments)

    def multiply_add(self, sums: Any, weights: Any, inputs: Any) -> Any:
        """Sums, and to each of them the products of two inputs with two weights."""
        pairs = [self.builder.bitcast(each, _PAIRS) for each in (inputs, weights)]
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", _SUMS, sums, *pairs)

    def prefetch(self, address: Any) -> None:
        """Let the core's second cache fetch a line."""
        to_read, second, data = (ir.Constant(_WORD, number) for number in (0, 2, 1))
        line = self.pointer(address, _BYTE)
        self.call("llvm.prefetch.p0", ir.VoidType(), line, to_read, second, data)

    def store_rounded(self, sums: Any, address: Any, count: Any) -> None:
        """Write the first of a vector of sums, rounded to the nearest, ties to even."""
        rounded = self.call("llvm.x86.avx512bf16.cvtneps2bf16.512", _ROUNDED, sums)
        places = ir.Constant(ir.VectorType(_INDEX, _VECTOR), list(range(_VECTOR)))
        among = self.builder.icmp_signed("<", places, self.everywhere(count))
        self.call(
            "llvm.masked.store.v16i16.p0",
            ir.VoidType(),
            self.builder.bitcast(rounded, _SHORTS),
            self.pointer(address, _SHORTS),
            ir.Constant(_WORD, 1),  # any address
            among,
        )


@dataclass(frozen=True)
class _Tile:
    """Rows of a product in the columns of a panel; numbers of the compiled code.

    Attributes:
        size: rows, 1 to `MOST_ROWS`.
        inputs: address of [size, steps, STEP].
        panel: address of [steps, PANEL, STEP].
        steps: at least 1.
        bias: address of [PANEL].
        output: address of the first row's elements in these columns.
        row_bytes: of the output.
        columns: of the panel that the output has.
        following: address of weights that are needed next.
        line_bytes: how much of these each step fetches: a line or none. Without one, ``following``
            is not read, and may be any number.
    """

    size: Any
    inputs: Any
    panel: Any
    steps: Any
    bias: Any
    output: Any
    row_bytes: Any
    columns: Any
    following: Any
    line_bytes: Any

    def write(self, code: _Code) -> None:
        """The code that computes it, in one way for each size."""
        builder = code.builder
        end = builder.append_basic_block("tile_end")
        ways = builder.switch(self.size, end)
        for size in range(1, 1 + MOST_ROWS):
            start = builder.append_basic_block("tile")
            ways.add_case(ir.Constant(_INDEX, size), start)
            builder.position_at_end(start)
            self._store(code, self._sums(code, size))
            builder.branch(end)
        builder.position_at_end(end)

    def _sums(self, code: _Code, size: int) -> list[list[Any]]:
        """The sums of each row, in vectors."""
        builder = code.builder
        width = code.times(self.steps, 2 * STEP)
        places = [self.inputs]
        while len(places) < size:
            places.append(builder.add(places[-1], width))
        before, loop, after = builder.block, *map(builder.append_basic_block, ("loop", "sums"))
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_INDEX)
        held = [[builder.phi(_SUMS) for _ in range(_NUM_VECTORS)] for _ in places]
        panel = builder.add(self.panel, code.times(step, _PANEL_STEP))
        weights = [code.load(code.vector_at(panel, v, 4), _WORDS) for v in range(_NUM_VECTORS)]
        code.prefetch(builder.add(self.following, builder.mul(step, self.line_bytes)))
        offset = code.times(step, 2 * STEP)
        sums = []
        for place, own in zip(places, held, strict=True):
            inputs = code.everywhere(code.load(builder.add(place, offset), _WORD))
            pairs = zip(own, weights, strict=True)
            sums.append([code.multiply_add(sum_, weight, inputs) for sum_, weight in pairs])
        next_step = builder.add(step, ir.Constant(_INDEX, 1))
        builder.cbranch(builder.icmp_unsigned("<", next_step, self.steps), loop, after)
        step.add_incoming(ir.Constant(_INDEX, 0), before)
        step.add_incoming(next_step, loop)
        for phi, added in zip(chain(*held), chain(*sums), strict=True):
            phi.add_incoming(ir.Constant(_SUMS, [0.0] * _VECTOR), before)
            phi.add_incoming(added, loop)
        builder.position_at_end(after)
        return sums

    def _store(self, code: _Code, sums: list[list[Any]]) -> None:
        """Write the rows of the output, with the bias."""
        biases = [code.load(code.vector_at(self.bias, v, 4), _SUMS) for v in range(_NUM_VECTORS)]
        row = self.output
        for own in sums:
            for v, (each, bias) in enumerate(zip(own, biases, strict=True)):
                left = code.builder.sub(self.columns, ir.Constant(_INDEX, v * _VECTOR))
                place = code.vector_at(row, v, 2)
                code.store_rounded(code.builder.fadd(each, bias), place, left)
            row = code.builder.add(row, self.row_bytes)


def _multiply_tile(_context: Any, tile: Any) -> Any:
    """Compute a `_Tile`, given as a tuple."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        numbers = (builder.extract_value(arguments[0], place) for place in range(len(tile)))
        _Tile(*numbers).write(_Code(builder))
        return ir.Constant(_BYTE.as_pointer(), None)

    return types.void(tile), generate


def _next_of(_context: Any, counter: Any) -> Any:
    """The number at an address, which is one more for the next thread that asks."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.PointerType(_INDEX))
        return builder.atomic_rmw("add", place, ir.Constant(_INDEX, 1), "monotonic")

    return types.int64(counter), generate


_next: Any = intrinsic(_next_of)
_tile: Any = intrinsic(_multiply_tile)


def _multiply(
    num_threads: int,
    rows: int,  # addresses: [num_rows, steps * STEP]
    num_rows: int,
    steps: int,
    weight: int,  # [panels, steps, PANEL, STEP]
    bias: int,  # [panels * PANEL]
    output: int,  # [num_rows, num_columns]
    num_columns: int,
) -> None:
    """The product; a unit of work are all columns of a panel for some of the rows."""
    panel_bytes = steps * _PANEL_STEP
    num_blocks = (num_rows + _BLOCK - 1) // _BLOCK
    num_units = (num_columns + PANEL - 1) // PANEL * num_blocks
    counter = np.empty(1, np.int64)  # `np.zeros` would be a parallel loop, which threads wait for
    counter[0] = 0
    for _thread in prange(num_threads):
        unit = _next(counter.ctypes.data)
        while unit < num_units:
            panel, first = unit // num_blocks, unit % num_blocks * _BLOCK
            column = panel * PANEL
            unit = _next(counter.ctypes.data)
            following = weight + unit // num_blocks * panel_bytes
            # While tiles after the first one have their weights in a cache, memory would be idle.
            # With one tile it never is, and fetching by the program is slower than by the core.
            line = _LINE if unit < num_units and num_rows > MOST_ROWS else 0
            end = following + panel_bytes
            left = min(num_rows - first, _BLOCK)
            for tiles in range((left + MOST_ROWS - 1) // MOST_ROWS, 0, -1):
                size = (left + tiles - 1) // tiles
                tile = (
                    size,
                    rows + first * steps * 2 * STEP,
                    weight + panel * panel_bytes,
                    steps,
                    bias + column * 4,
                    output + (first * num_columns + column) * 2,
                    num_columns * 2,
                    num_columns - column,
                    following,
                    line,
                )
                _tile(tile)
                first += size
                left -= size
                following += steps * line
                if following == end:
                    line = 0
