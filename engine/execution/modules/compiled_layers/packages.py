"""Graphs as machine code: compiled by Inductor with the system's C++ compiler, and kept on disk."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from llvmlite.binding import get_host_cpu_name

from engine.execution.kv_cache import bits_of

logger = logging.getLogger(__name__)

Run = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Computes a graph; it empties the list of its inputs."""


@lru_cache
def compiler_version() -> str | None:
    """The first line of what the C++ compiler says of itself; None where there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 - takes a second

    try:
        command = [get_cpp_compiler(), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (RuntimeError, OSError, subprocess.SubprocessError):
        return None
    return said.stdout.splitlines()[0]


def compiled(program: torch.export.ExportedProgram, directory: Path | None) -> Run:
    """The machine code of a graph, from the directory if it was compiled there before.

    Without one, or where it cannot be written to, every start compiles.

    Raises:
        Exception: of many kinds, from Inductor and the compiler.
    """
    options = _options()
    name = f"{_key(program, options)}.pt2"
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Replicas that start at the same time compile once.
            with FileLock(directory / f"{name}.lock"):
                return _kept(program, options, directory / name)
        except OSError as error:
            logger.warning("the machine code of layers is not kept: %s", error)
    with tempfile.TemporaryDirectory() as work:
        _compile(program, options, Path(work) / name)
        return _loaded(Path(work) / name)


def _kept(program: torch.export.ExportedProgram, options: dict[str, Any], path: Path) -> Run:
    if path.exists():
        try:
            return _loaded(path)
        except RuntimeError as error:
            logger.warning("%s is compiled again, because it cannot be loaded: %s", path, error)
    logger.info("compiling a kind of layer, which the next start finds in %s", path.parent)
    _compile(program, options, path)
    return _loaded(path)


def _loaded(path: Path) -> Run:
    run: Run = torch._inductor.aoti_load_package(str(path)).loader.boxed_run
    return run


def _compile(program: torch.export.ExportedProgram, options: dict[str, Any], path: Path) -> None:
    started = time.monotonic()
    # Beside its final place, so that what is there is whole.
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = Path(work) / path.name
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(made), inductor_configs=options
        )
        made.replace(path)
    logger.info("compiled a kind of layer in %.1f s", time.monotonic() - started)


def _options() -> dict[str, Any]:
    """Inductor's options, which decide what is compiled."""
    return {"cpp.threads": torch.get_num_threads(), "compile_threads": 1}


def _key(program: torch.export.ExportedProgram, options: dict[str, Any]) -> str:
    """A digest of all that the machine code depends on."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa  # noqa: PLC0415 - as above

    module = program.graph_module
    metas = [
        (node.name, str(node.meta.get("val")))
        for node in module.graph.nodes
        if node.op == "placeholder"
    ]
    constants = {
        name: bits_of(value.reshape(-1))
        for name, value in program.constants.items()
        if isinstance(value, torch.Tensor)
    }
    parts = [
        module.code,
        metas,
        str(program.range_constraints),
        constants,
        sorted(options.items()),
        torch.__version__,
        compiler_version(),
        get_host_cpu_name(),  # it is compiled for this one
        str(pick_vec_isa()),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
