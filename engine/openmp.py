"""How long threads that compute wait for each other before they sleep; set before torch is loaded.

A product is cut in as many parts as there are threads, and all wait for the last one. libgomp's
threads wait by looking again and again, by default for 4 to 7 ms (``GOMP_SPINCOUNT``). That is
fastest while each has a core of its own. Where another process has taken one of the cores, the
thread that was to use it waits for its turn, and the others keep theirs from it by looking: on two
cores that both other jobs used, decode steps of 16 rows took 1.1 to 3.3 s instead of the 0.3 s that
the rest of the cores' time is good for. After about half a millisecond asleep, they leave it their
core. Between two operations of a forward less time passes, so on a quiet machine nothing is lost.

Bits do not depend on it: the parts are the same, whoever computes them when.
"""

from __future__ import annotations

import os
import sys

_SPIN_COUNT = "20000"


def sleep_soon() -> None:
    """Have waiting threads sleep soon, unless the environment says how they wait.

    libgomp reads this when it is loaded, which importing torch does; no effect after that.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
