"""Imports the engine and its libraries, only in processes that compute, and when they need them.

torch and transformers take seconds to import. The process that builds the graph and the ingress
only name the classes of the other deployments and need neither, so no module of this package
imports a module of the engine at its top.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config import EngineConfig


def load_libraries(config: EngineConfig | None = None) -> None:
    """Import the engine with torch and transformers; the first time takes seconds.

    Garbage collection is off meanwhile: it would look repeatedly through all that has been imported
    and find nothing, which takes a quarter of the time.

    Args:
        config: of the model that will be loaded next. The kernel reads its weights meanwhile.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        if config is not None:
            from engine.loading.reading.read_ahead import read_ahead  # noqa: PLC0415

            with suppress(OSError, ValueError):  # loading reports what is wrong with the files
                read_ahead(config)
        import engine.engine  # noqa: F401, PLC0415
    finally:
        if collects:
            gc.enable()
