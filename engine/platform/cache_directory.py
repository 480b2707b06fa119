"""Where this program keeps what it can make again: machine code of models."""

from __future__ import annotations

import os
from pathlib import Path


def compiled_dir() -> Path:
    """The directory of compiled layers, in the user's cache directory (XDG)."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "gpt-task-serve" / "compiled"
