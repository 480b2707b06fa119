"""Process-wide settings that the promise of equal bytes needs. Set once, at the start."""

from __future__ import annotations

import torch

from engine.platform.platforms import PLATFORMS


def make_deterministic(threads: int | None) -> None:
    """Pin everything that lets the same operation give other bits; never relaxed again."""
    for platform in PLATFORMS.values():
        platform.make_deterministic()
    # Raise on kernels without a deterministic form, rather than warn.
    torch.use_deterministic_algorithms(True)
    # But do not fill every fresh tensor with NaN, which that mode does by default and which costs a
    # pass over memory: the engine reads no memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # The number of threads decides how sums are split. It is set on every thread that computes: a
    # thread that has neither set nor read it uses all cores, even if another thread has set it.
    torch.set_num_threads(threads if threads is not None else torch.get_num_threads())
