"""What changes bits on NVIDIA's GPUs, beside the name of a GPU and the versions of Python packages.

* **Multiprocessors**: libraries choose kernels by their number, and torch draws random numbers in a
  grid of a size that depends on it. One name of a GPU stands for several numbers of them, and a
  share of a GPU (MPS, MIG) has fewer.
* **CUDA and its libraries**: the same release of torch is built for several, and the loader may
  find others than those that were installed with it.
* **Variables** with which these libraries are told to compute otherwise.
* **Kernels in Triton**: the release that compiles them, and whether torch takes those of its own
  (`engine.platform.environment`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_VARIABLES = ("CUBLAS", "CUDNN_", "DISABLE_ADDMM_CUDA_LT", "NVIDIA_TF32", "TORCH_BLAS_")
"""How the names of these variables begin."""


def cuda_facts(devices: Sequence[torch.device]) -> dict[str, Any]:
    """The facts of a process that computes on these GPUs, for the fingerprint."""
    properties = [torch.cuda.get_device_properties(device) for device in devices]
    return {
        "multiprocessors": [each.multi_processor_count for each in properties],
        "capabilities": [f"{each.major}.{each.minor}" for each in properties],
        "cuda": torch.version.cuda,
        "cublas": _cublas_version(),
        "cudnn": torch.backends.cudnn.version(),
        "triton": _triton_version(),
        "native_jit": os.environ.get("TORCH_DISABLE_NATIVE_JIT") != "1",
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)
        },
    }


def _cublas_version() -> str | None:
    """What the loaded library says of itself; None where there is none."""
    major = (torch.version.cuda or "").partition(".")[0]
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(f"libcublas.so.{major}")
        parts = [ctypes.c_int() for _ in range(3)]
        for kind, part in enumerate(parts):  # libraryPropertyType: major, minor, patch level
            library.cublasGetProperty(kind, ctypes.byref(part))
        return ".".join(str(part.value) for part in parts)
    return None


def _triton_version() -> str | None:
    with suppress(PackageNotFoundError):
        return version("triton")
    return None
