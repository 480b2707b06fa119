"""Functions that Numba compiles for this CPU, on torch's threads.

Machine code is kept beside the file of a function, or in the user's cache directory, until that
file changes: so all that a kernel calls has to stand in its own file, but for `pointer`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# OpenMP's threads are torch's own: both libraries then compute on the same ones.
config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]

FAST_MATH = {"reassoc", "contract", "nsz"}
"""What the compiler may change: the order of a sum, and whether a product is rounded before it is
added. Not among them is the assumption that all numbers are finite."""

_set = threading.local()
"""``threads`` of Numba on this thread."""


def compiled(
    signature: Any, function: Callable[..., None], *, fast_math: bool = True
) -> Callable[..., None]:
    """A function with parallel loops; compiling takes seconds where no cache has it.

    Call `use_torch_threads` before it. Without ``fast_math`` every operation is the one that is
    written, in its order (`FAST_MATH`).
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(1)  # starts Numba's threads, and with them sets torch's to all cores
    _set.threads = 1
    torch.set_num_threads(threads)
    options: dict[str, Any] = {
        "parallel": True,
        "nogil": True,
        "fastmath": FAST_MATH if fast_math else False,
        "error_model": "numpy",  # a division by zero gives infinity, and needs no test
    }
    try:
        kernel: Callable[..., None] = numba.njit(signature, cache=True, **options)(function)
    except RuntimeError:  # neither directory can be written to
        kernel = numba.njit(signature, **options)(function)
    return kernel


def has_instructions(*features: str) -> bool:
    """Whether the CPU that Numba compiles for has these, by LLVM's names such as ``avx512vnni``."""
    host: Callable[[], str] = get_host_cpu_features
    wanted: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]
    found = (host() if wanted is None else wanted).split(",")
    return all(f"+{feature}" in found for feature in features)


def _address(_context: Any, number: Any) -> Any:
    """A number as an address."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.PointerType(ir.IntType(8)))

    return types.voidptr(number), generate


pointer: Any = intrinsic(_address)
"""In compiled code, for `numba.carray`: the memory at an address, such as ``tensor.data_ptr()``."""


def use_torch_threads() -> int:
    """Let compiled functions run on as many threads as torch does now; how many these are."""
    most: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    threads = min(torch.get_num_threads(), most)
    if getattr(_set, "threads", None) != threads:  # asking Numba takes a lock, in every layer
        numba.set_num_threads(threads)
        _set.threads = threads
    return threads
