"""`torch.nn.attention.varlen.varlen_attn` over a paged pool, in plain operations, for any device.

Torch's own runs on CUDA only. This one refuses what that one refuses in torch 2.13, where no other
implementation of flash attention is activated: torch/nn/attention/varlen.py (whose checks run for
real here, on tensors without content), and behind it ``_flash_attention_forward`` of
aten/src/ATen/native/transformers/cuda/attention.cu and ``mha_varlen_fwd`` of
aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp. What torch would compute without
an error, but wrongly or with bits that depend on the load, is an assertion.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch.nn.attention import varlen
from torch.utils._python_dispatch import _disable_current_modes

from engine.platform.cpu import CpuPlatform
from engine.platform.cuda import CudaPlatform

VARLEN = "engine.execution.attention.varlen"
"""The module that calls it."""

PAGE = 8
"""Tokens of a page in tests of tiny models, which would need contexts of thousands otherwise."""

_TORCH = varlen.varlen_attn  # tests replace the name elsewhere
_HALF = (torch.float16, torch.bfloat16)
_MOST_PAGES_READ = "the kernel would read beyond the table of pages"


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
    page_multiple: int = 256,
    dtypes: Collection[torch.dtype] = _HALF,
) -> torch.Tensor:
    """Attention of N sequences, each computed by itself in float64.

    Args:
        query: [T, H, D].
        key: [pages, page size, K, D].
        value: like ``key``.
        cu_seq_q: int32 [N + 1], the first row of each sequence, and T.
        cu_seq_k: int32 [N + 1]; torch wants it, and reads nothing in it where there are pages.
        max_q: at least the rows of any sequence.
        max_k: a window of as many tokens counts as none.
        scale: of the scores; None for one by the square root of D.
        window_size: tokens that are seen to the left and to the right; -1 for all.
        enable_gqa: whether query heads share keys.
        seqused_k: int32 [N], tokens of each context.
        block_table: int32 [N, pages of a sequence].
        num_splits: 1, with which bits do not depend on the other sequences.
        page_multiple: of which a page's size is a multiple; tests of tiny models have smaller ones.
        dtypes: of queries; tests that compare tokens with `generate`'s have float32 too.

    Returns:
        [T, H, D]; NaN in rows that torch would leave as they are.

    Raises:
        RuntimeError: torch refuses the arguments.
        ValueError: torch's Python code does.
    """
    assert seqused_k is not None, "the engine has pages"
    assert block_table is not None, "the engine has pages"
    assert num_splits == 1, "the number of splits would depend on the load"
    _check_by_torch(query, key, value, max_q, max_k, scale, window_size, enable_gqa)
    _check_numbers(query, cu_seq_q, cu_seq_k, seqused_k, block_table)
    _check_heads(query, key, value, page_multiple, dtypes)
    left, right = (-1 if side >= max_k else side for side in window_size)
    output = torch.full_like(query, float("nan"))
    group = query.shape[1] // key.shape[2]
    for n, (first, stop) in enumerate(pairwise(cu_seq_q.tolist())):
        context = int(seqused_k[n])
        assert 0 < stop - first <= max_q, "the kernel would leave rows out"
        assert context <= block_table.shape[1] * key.shape[1], _MOST_PAGES_READ
        k, v = (
            pool[block_table[n].long()].flatten(0, 1)[:context].repeat_interleave(group, dim=1)
            for pool in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[first:stop].double(), k.double())
        scores *= query.shape[2] ** -0.5 if scale is None else scale
        looking = torch.arange(context - (stop - first), context)[:, None]
        distance = torch.arange(context)[None] - looking
        seen = torch.ones_like(distance, dtype=torch.bool)
        if left >= 0:
            seen &= distance >= -left
        if right >= 0:
            seen &= distance <= right
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        output[first:stop] = torch.einsum("hqk,khd->qhd", weights, v.double()).to(query.dtype)
    return output


small_varlen_attn = partial(varlen_attn, page_multiple=PAGE, dtypes=(*_HALF, torch.float32))
"""The same for tiny models in float32, whose tokens are compared with those of `generate`."""


def use_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., torch.Tensor] = small_varlen_attn
) -> None:
    """Make engines on a CPU try the kernel first, as they do on CUDA."""
    monkeypatch.setattr(CpuPlatform, "attention_backends", CudaPlatform.attention_backends)
    monkeypatch.setattr(f"{VARLEN}.gpu_problem", lambda _: None)
    monkeypatch.setattr(f"{VARLEN}.varlen_attn", kernel)
    if kernel is small_varlen_attn:
        monkeypatch.setattr(f"{VARLEN}._PAGE_MULTIPLE", PAGE)
        monkeypatch.setattr(f"{VARLEN}._DTYPES", (*_HALF, torch.float32))


class Kernel(NamedTuple):
    """Which of flash attention's kernels computes a call (``set_params_fprop`` of flash_api.cpp).

    Each has loops, and so bits, of its own.
    """

    is_causal: bool
    is_local: bool


def kernel_of(max_k: int, window_size: tuple[int, int]) -> Kernel:
    """The kernel that torch chooses."""
    left, right = (-1 if side >= max_k else side for side in window_size)
    causal = left < 0 and right == 0
    return Kernel(causal, not causal and (left >= 0 or right >= 0))


def _check_by_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> None:
    """Torch's own Python code, and the schema of its operation, on tensors without content."""
    with _disable_current_modes():  # of tests that watch what runs
        numbers = torch.empty(2, dtype=torch.int32, device="meta")
        q, k, v = (
            torch.empty(part.shape, dtype=part.dtype, device="meta") for part in (query, key, value)
        )
        _TORCH(
            q,
            k,
            v,
            numbers,
            numbers,
            max_q,
            max_k,
            scale=scale,
            window_size=window_size,
            enable_gqa=enable_gqa,
            seqused_k=numbers,
            block_table=numbers[None],
            num_splits=1,
        )


def _check_numbers(
    query: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> None:
    if cu_seq_k is None:
        raise RuntimeError(
            "cumulative_sequence_length_q and cumulative_sequence_length_k must be both set or "
            "both not set"
        )
    sequences = cu_seq_q.numel() - 1
    wanted: list[tuple[str, torch.Tensor, tuple[int, ...]]] = [
        ("cu_seqlens_q", cu_seq_q, (sequences + 1,)),
        ("cu_seqlens_k", cu_seq_k, (sequences + 1,)),
        ("seqused_k", seqused_k, (sequences,)),
        ("block_table", block_table, (sequences, block_table.shape[-1])),
    ]
    for name, numbers, shape in wanted:
        _require(numbers.dtype == torch.int32, f"{name} must have dtype int32")
        _require(numbers.device == query.device, f"{name} must be on CUDA")
        _require(tuple(numbers.shape) == shape, f"{name} must have shape {shape}")
        of_rows = name == "block_table"
        contiguous = numbers.stride(-1) == 1 if of_rows else numbers.is_contiguous()
        _require(contiguous, f"{name} must be contiguous")
    _require(sequences > 0, "batch size must be positive")
    assert int(cu_seq_q[0]) == 0, "the kernel would leave rows out"
    assert int(cu_seq_q[-1]) == len(query), "the kernel would leave rows out"


def _check_heads(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    page_multiple: int,
    dtypes: Collection[torch.dtype],
) -> None:
    _require(query.dtype in dtypes, "FlashAttention only support fp16 and bf16 data type")
    for name, pool in (("key", key), ("value", value)):
        _require(pool.dtype == query.dtype, f"query and {name} must have the same dtype")
        _require(pool.device == query.device, f"{name} must be on CUDA")
        _require(pool.stride(-1) == 1, "Input tensor must have contiguous last dimension")
        same = pool.shape == key.shape and pool.shape[-1] == query.shape[-1]
        _require(same, f"{name} must have shape (pages, page size, heads, head size)")
    _require(query.stride(-1) == 1, "Input tensor must have contiguous last dimension")
    _require(
        key.shape[1] % page_multiple == 0, "Paged KV cache block size must be divisible by 256"
    )
    _require(query.shape[-1] % 8 == 0, "head_size must be a multiple of 8")
    _require(
        query.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256"
    )


def _require(fits: bool, why: str) -> None:
    """As TORCH_CHECK does."""
    if not fits:
        raise RuntimeError(why)
