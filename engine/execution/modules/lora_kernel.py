"""What LoRA adapters add to rows on a CPU: one compiled call for all rows of a layer.

As products of torch, two for each adapter and layer, it took longer to call them than to compute.
Here each row is computed by itself: what is added to it is a function of the row and its adapter.

Numba compiles it at its first use (`engine.platform.compiled`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import prange, types

from engine.loading.adapters.adapter import filled_rank
from engine.platform.compiled import compiled, pointer, use_torch_threads
from engine.platform.platforms import platform_of


class LoraMatrices(NamedTuple):
    """The matrices of an adapter for one layer, float32: [rank, in] and [rank, out].

    The rank is filled up with zeros to a multiple of `RANK_MULTIPLE`.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def matrices(a: torch.Tensor, b: torch.Tensor, scale: float) -> LoraMatrices:
    """Those of A [rank, in] and B [out, rank]."""
    missing = filled_rank(len(a)) - len(a)
    down, up = (torch.nn.functional.pad(each, (0, 0, 0, missing)) for each in (a, b.t()))
    return LoraMatrices(down.contiguous(), up.contiguous(), scale)


def has_kernel(device: torch.device) -> bool:
    """Whether the kernel can read tensors of a device."""
    return platform_of(device).shares_host_memory


def added(
    rows: torch.Tensor, members: np.ndarray[Any, Any], layers: Sequence[LoraMatrices]
) -> torch.Tensor:
    """What is added to the outputs of rows.

    Args:
        rows: float32 [n, in].
        members: int64 [n]: which of the layers each row has.
        layers: of the same sizes.

    Returns:
        float32 [n, out].
    """
    output = torch.empty(len(rows), layers[0].up.shape[1])
    kernel = _compiled()
    use_torch_threads()
    kernel(
        rows.contiguous().numpy(),
        members,
        np.array([layer.down.data_ptr() for layer in layers]),
        np.array([layer.up.data_ptr() for layer in layers]),
        np.array([len(layer.down) for layer in layers]),
        np.array([layer.scale for layer in layers], np.float32),
        output.numpy(),
    )
    return output


@lru_cache
def _compiled() -> Callable[..., None]:
    """The kernel; the first call takes seconds where no cache has it."""
    numbers = types.int64[::1]
    matrix = types.float32[:, ::1]
    signature = types.void(matrix, numbers, numbers, numbers, numbers, types.float32[::1], matrix)
    return compiled(signature, _add)


# --- What follows is compiled --------------------------------------------------------------------


_f32 = np.float32
_array_at: Any = numba.carray  # type: ignore[attr-defined]


def _add(
    rows: Any,  # [n, in]
    members: Any,  # [n]
    downs: Any,  # addresses of [rank, in], by member
    ups: Any,  # addresses of [rank, out]
    ranks: Any,
    scales: Any,
    output: Any,  # [n, out]
) -> None:
    in_features, out_features = rows.shape[1], output.shape[1]
    for n in prange(len(rows)):
        member = members[n]
        rank, scale = ranks[member], scales[member]
        down = _array_at(pointer(downs[member]), (rank, in_features), np.float32)
        up = _array_at(pointer(ups[member]), (rank, out_features), np.float32)
        output[n, :] = 0
        for j in range(0, rank, 4):  # `RANK_MULTIPLE`: more of the sums are in registers then
            s0, s1, s2, s3 = _f32(0), _f32(0), _f32(0), _f32(0)
            for k in range(in_features):
                s0 += down[j, k] * rows[n, k]
                s1 += down[j + 1, k] * rows[n, k]
                s2 += down[j + 2, k] * rows[n, k]
                s3 += down[j + 3, k] * rows[n, k]
            s0, s1, s2, s3 = s0 * scale, s1 * scale, s2 * scale, s3 * scale
            for o in range(out_features):
                output[n, o] += (s0 * up[j, o] + s1 * up[j + 1, o]) + (
                    s2 * up[j + 2, o] + s3 * up[j + 3, o]
                )
