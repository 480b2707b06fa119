"""Process-wide settings that the promise of equal bytes needs. Set once, before CUDA is used."""

from __future__ import annotations

import os

import torch


def make_deterministic(threads: int | None) -> None:
    """Pin everything that lets the same operation give other bits; never relaxed again."""
    # cuBLAS picks its workspace per stream; with this it always has the same.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Raise on kernels without a deterministic form, rather than warn.
    torch.use_deterministic_algorithms(True)
    # But do not fill every fresh tensor with NaN, which that mode does by default and which costs a
    # pass over memory: the engine reads no memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuDNN's autotuner times kernels and so picks differently from run to run.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # fp32 means fp32: TF32 would round inputs on cards that have it.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # The number of threads decides how sums are split. It is set on every thread that computes:
    # a thread that has neither set nor read it uses all cores, whatever another one has set.
    torch.set_num_threads(threads if threads is not None else torch.get_num_threads())
