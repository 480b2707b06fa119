"""The engine and its libraries, imported by those processes that compute, and when they need them.

torch and transformers take seconds to import. The process that builds the graph and the ingress
only name the classes of the other deployments and need neither, so no module of this package
imports the engine's at its beginning.
"""

from __future__ import annotations

import gc


def load_libraries() -> None:
    """Import the engine with torch and transformers; the first time takes seconds.

    Without garbage collection, which would look through everything that has been imported so far
    again and again and find nothing: a quarter of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        import engine.engine  # noqa: F401, PLC0415
    finally:
        if collects:
            gc.enable()
