"""What is set in the environment before torch is loaded, which reads it then.

``GOMP_SPINCOUNT`` says how long threads that compute wait awake for each other. An operation is cut
into as many parts as there are threads, and all wait for the last one. libgomp's threads do that by
looking again and again, by default for 4 to 7 ms. That is fastest while each has a core of its own.
Where another process has taken one of the cores, the thread that was to use it waits for its turn,
and the one that looks keeps a core from it. Beside busy neighbours on two cores, decode steps of 16
rows took 3.4 s so, and 1.2 s with threads that sleep after half a millisecond (medians of runs in
turns). Most operations of a forward follow each other faster than that. With a quarter of a
millisecond a replica with one client was 11 % slower than with one: it slept once in each layer.

Answers do not depend on it: the parts are the same, wherever they are computed.
"""

from __future__ import annotations

import os
import sys

_SPIN_COUNT = "20000"


def prepare() -> None:
    """Set what the operator has not set. No effect once torch is loaded."""
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
