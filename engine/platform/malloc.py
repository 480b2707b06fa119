"""Makes glibc's allocator give back memory that loading a model used for a moment.

Quantizing a weight makes copies of it that are ten times its final size. glibc raises its own
threshold (``M_MMAP_THRESHOLD``, mallopt(3)) when such blocks are freed, and from then on takes them
from heaps, where a small weight that stays keeps the large hole before it: loading 1 GB in INT8
needed up to 925 MB more than the model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_WHILE_LOADING = 1 << 20
# The highest that glibc itself would raise it to. Activations come from heaps again, because pages
# that are given back have to be cleared by the kernel when they are asked for again.
_AFTERWARDS = 32 << 20
# Memory kept at the end of a heap. glibc raises this with the other threshold, but not if that was
# set explicitly: a forward of 256 rows then had 15,000 pages cleared, and has none now.
_KEPT = 256 << 20


@contextmanager
def large_blocks_given_back() -> Iterator[None]:
    """Freed blocks of a megabyte and more go back to the system at once; no effect without glibc.

    For the whole process, and for what all of its threads allocate meanwhile.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _WHILE_LOADING)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _AFTERWARDS)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.malloc_trim(0)
