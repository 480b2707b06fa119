"""How much a program of the kernels takes at once, by the GPU and the size of a model's heads.

A literal rule instead of an autotuner: what is chosen by timing differs from run to run, and sums
with it. `python -m engine.execution.kernels.compiled` prints what each choice takes of a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_MOST_ROWS = 64
_WIDE_HEAD = 128  # of more columns, blocks are half as long
_WARP_GROUPS = (9, 10)
"""Major compute capabilities whose matrix units are fed by four warps together. On others twice as
many warps share a tile of a wide head, whose sums would not fit into their registers.
"""


@dataclass(frozen=True)
class Heads:
    """The heads of a layer, which kernels are compiled for.

    Attributes:
        group: query heads that share a key/value head.
        key_dim: size of a query and of a key.
        value_dim: size of a value.
        page_size: tokens of a page of the KV cache.
        dtype: of queries, keys and values.
    """

    group: int
    key_dim: int
    value_dim: int
    page_size: int
    dtype: torch.dtype

    @property
    def key_columns(self) -> int:
        """``key_dim``, filled up as tiles need it: to a power of two, 16 at least."""
        return _power_of_two(self.key_dim)

    @property
    def value_columns(self) -> int:
        """The same of ``value_dim``."""
        return _power_of_two(self.value_dim)

    @property
    def columns(self) -> int:
        """Of the larger one of the two."""
        return max(self.key_columns, self.value_columns)

    def constants(self, tile: Tile, *, capped: bool, widen: bool) -> dict[str, Any]:
        """What is compiled into the kernels.

        Args:
            tile: the size of a program.
            capped: whether scores have a soft cap.
            widen: whether operands of products become float32 first.
        """
        return {
            "GROUP": self.group,
            "KEY_DIM": self.key_dim,
            "VALUE_DIM": self.value_dim,
            "PAGE_SIZE": self.page_size,
            "CAPPED": capped,
            "WIDEN": widen,
            "ROWS": tile.rows,
            "BLOCK": tile.block,
            "KEY_COLUMNS": self.key_columns,
            "VALUE_COLUMNS": self.value_columns,
        }


@dataclass(frozen=True)
class Tile:
    """The size of a program.

    Attributes:
        rows: pairs of a token and a head.
        block: tokens of the context that are read at once.
        warps: of 32 threads.
        stages: of the loop over blocks, which reads ahead: Triton's ``num_stages``.
    """

    rows: int
    block: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """As Triton takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def prompt_tile(heads: Heads, capability: tuple[int, int]) -> Tile:
    """For chunks of prompts on a GPU of a compute capability."""
    if heads.dtype == torch.float32:  # multiplied without matrix units, in registers
        return _float32_tile(heads)
    wide = heads.columns > _WIDE_HEAD
    narrow = heads.columns < _WIDE_HEAD
    warps = 4 if narrow or capability[0] in _WARP_GROUPS else 8
    return Tile(rows=_MOST_ROWS, block=32 if wide else 64, warps=warps, stages=2)


def token_tile(heads: Heads, capability: tuple[int, int]) -> Tile:
    """For single tokens: as many rows as heads share keys, because keys are read for each tile."""
    if heads.dtype == torch.float32:
        return _float32_tile(heads)
    rows = min(_power_of_two(heads.group), _MOST_ROWS)
    wide = heads.columns > _WIDE_HEAD
    return Tile(rows=rows, block=32 if wide else 64, warps=4, stages=3)


def _float32_tile(heads: Heads) -> Tile:
    if heads.columns >= _WIDE_HEAD:
        return Tile(rows=16, block=16, warps=4, stages=2)
    return Tile(rows=16, block=32, warps=8, stages=1)


def _power_of_two(size: int) -> int:
    """At least 16, the least that matrix units take."""
    return max(16, 1 << (size - 1).bit_length())
