"""Has the weights of a model read from the disk while this process does something else."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from engine.config import EngineConfig

_SHARE = 0.5  # of the machine's memory: more would evict pages that were read first


def read_ahead(config: EngineConfig) -> int:
    """Ask the kernel to read a model's files of weights; does not wait.

    It finds them as loading does: in a directory, or in the local cache; it never asks the hub.
    Files that are missing, or too large for this machine's memory, are left to loading.

    Returns:
        The bytes that the kernel was asked to read.
    """
    files = _files(config)
    total = sum(file.stat().st_size for file in files)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total > _SHARE * memory or not hasattr(os, "posix_fadvise"):  # Linux has it
        return 0
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return total


def _files(config: EngineConfig) -> list[Path]:
    """Where the weights are; `snapshot` says so too, but needs more libraries and the hub."""
    path = Path(config.model)
    if not config.from_hub and path.is_file():
        return [path]
    if not config.from_hub and path.is_dir():
        return _in(path)
    name = config.repository_file or "config.json"
    known = try_to_load_from_cache(config.repository, name, revision=config.revision)
    if not isinstance(known, str):
        return []
    return [Path(known)] if config.repository_file else _in(Path(known).parent)


def _in(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.safetensors"))
    return files or sorted(directory.glob("*.gguf"))
