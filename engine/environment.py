"""What is set in the environment before torch is loaded, which reads it then.

``GOMP_SPINCOUNT`` says how long threads that compute wait awake for each other. An operation is cut
into as many parts as there are threads, and all wait for the last one. libgomp's threads do that by
looking again and again, by default for 4 to 7 ms. That is fastest while each has a core of its own.
Where another process has taken one of the cores, the thread that was to use it waits for its turn,
and the one that looks keeps a core from it. Beside busy neighbours on two cores, decode steps of 16
rows took 3.4 s so, and 0.7 s with threads that sleep after a quarter of a millisecond (medians of
runs in turns). Operations of a forward follow each other faster than that, so that a machine of
one's own should lose nothing; threads that sleep ten times sooner cost it 4 to 13 %.

Answers do not depend on it: the parts are the same, wherever they are computed.
"""

from __future__ import annotations

import os
import sys

_SPIN_COUNT = "10000"


def prepare() -> None:
    """Set what the operator has not set. No effect once torch is loaded."""
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
