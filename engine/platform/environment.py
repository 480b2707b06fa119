"""Environment variables that must be set before torch is loaded, or before it computes.

``CUBLAS_WORKSPACE_CONFIG`` gives cuBLAS the same workspace on all streams, without which its
results are not the same in each run. In deterministic mode torch refuses all products if it was
not set before the first one, in whoever's code that was.

``TORCH_DISABLE_NATIVE_JIT`` leaves torch's own kernels in their places. Where Triton or the CuTe
DSL is installed, torch 2.13 takes kernels in these languages for some shapes (outer products, which
rotary embeddings are; top_k; sums into indices), so what happens to be installed would change bits,
and an image without a C compiler could not run a single forward.

``GOMP_SPINCOUNT`` limits how long threads spin while they wait for each other. An operation is cut
into as many parts as there are threads, and all wait for the last one. libgomp's threads spin for 4
to 7 ms by default, which is fastest while each has a core of its own. If another process uses one
of the cores, the thread of that core waits for its turn, and a spinning thread takes core time from
it. Beside busy neighbours on two cores, decode steps of 16 rows took 3.4 s in this way, and 1.2 s
with threads that sleep after half a millisecond (medians of runs in turns). Most operations of a
forward follow each other faster than that. With a quarter of a millisecond a replica with one
client was 11 % slower than with one millisecond: it slept once in each layer.

Answers do not depend on it: the parts are the same on any core.
"""

from __future__ import annotations

import os
import sys

_SPIN_COUNT = "20000"
_WORKSPACES = ":4096:8"  # eight of 4 MiB, one of the two that NVIDIA documents as reproducible


def prepare() -> None:
    """Set the variables that the operator has not set."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACES)
    if "torch" in sys.modules:
        return  # it has read the others
    os.environ.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
