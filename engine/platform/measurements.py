"""Results of measurements, kept on disk: a model that was measured here is not measured again.

A file has one result and all that it depends on: the model's files, the settings of the engine,
this package's code, versions of libraries, the CPU and the device, threads, and the variables of
the environment that libraries of numbers read. It is used only where all of that is the same;
whoever uses it checks a sample of it. A file that cannot be read counts as none, and all of them
may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

DIRECTORY_VARIABLE = "GPT_TASK_SERVE_CACHE"
"""Names the directory of caches; with an empty value nothing is kept."""

_LIBRARIES = (
    *("torch", "transformers", "bitsandbytes", "numba", "llvmlite", "numpy", "triton", "gguf"),
    *("safetensors", "kernels", "flash-attn"),
)
_VARIABLES = (
    *("ATEN_", "BNB_", "CUBLAS", "CUDNN_", "DNNL_", "GOMP_", "KMP_", "LD_PRELOAD", "MKL_"),
    *("NUMBA_", "NVIDIA_TF32", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH", "TRITON_"),
)
_OF_CPU = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "cache size"),
    *("flags", "CPU implementer", "CPU part", "CPU variant", "CPU revision", "Features"),
)
_MOST_FILES = 256
_PACKAGE = Path(__file__).parents[1]


def cache_directory() -> Path | None:
    """Where caches are, by the variables of the environment; None for nowhere."""
    if (named := os.environ.get(DIRECTORY_VARIABLE)) is not None:
        return Path(named).expanduser() if named else None
    home = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):  # a user without a home directory
        return (Path(home) if home else Path.home() / ".cache") / "gpt-task-serve"
    return None


def machine() -> dict[str, Any]:
    """What the results of forwards may depend on, beside the model and its settings."""
    return {
        "code": _code_digest(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "torch": [torch.__version__, torch.version.git_version, torch.__config__.show()],
        "cuda": [torch.version.cuda, torch.backends.cudnn.version()],
        "system": [platform.system(), platform.release(), platform.machine()],
        "cpu": [*_cpu(), os.cpu_count()],
        "threads": torch.get_num_threads(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)
        },
    }


class KeptMeasurement:
    """One result, of one model with its settings. Belongs to one thread."""

    def __init__(
        self, depends_on: Mapping[str, Any], digest: Callable[[], str], directory: Path | None
    ) -> None:
        """What may be kept.

        Args:
            depends_on: all that the result depends on but for the model's files, as JSON can say.
            digest: of these; it may take seconds, so it is called only if there is a result.
            directory: where it is; None keeps nothing.
        """
        self._depends_on = _plain(depends_on)
        self._digest = digest
        text = json.dumps(self._depends_on, sort_keys=True).encode()
        name = f"{hashlib.sha256(text).hexdigest()[:32]}.json"
        self._path = None if directory is None else directory / "measurements" / name

    def recall(self) -> Any:
        """The result, as JSON has it; None if there is none for exactly this."""
        if self._path is None:
            return None
        try:
            kept = json.loads(self._path.read_bytes())
            if kept["depends_on"] != self._depends_on or kept["files"] != self._digest():
                return None
            result = kept["result"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not used: %r", self._path, error)
            return None
        with suppress(OSError):
            self._path.touch()  # it is in use
        return result

    def keep(self, result: Any) -> None:
        """Keep a result in place of another; one that cannot be written is not kept."""
        if self._path is None:
            return
        whole = {"depends_on": self._depends_on, "files": self._digest(), "result": _plain(result)}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, suffix=".part", delete=False, encoding="utf-8"
            ) as file:
                json.dump(whole, file)
            Path(file.name).replace(self._path)  # a reader sees all of it, or the one before
            _drop_oldest(self._path.parent)
        except OSError as error:
            logger.info("measurements are not kept: %s", error)


def _drop_oldest(directory: Path) -> None:
    files = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[_MOST_FILES:]:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """As it comes back from a file: tuples are lists then, and keys strings."""
    return json.loads(json.dumps(value))


@cache
def _code_digest() -> str:
    """Of all code of the engine: a change of any of it may change what is measured."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> list[str]:
    """What the system says of the first core; libraries choose kernels by it."""
    try:
        first = (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")
        )
    except OSError:  # no Linux
        return [platform.processor()]
    lines = [line for line in first[0].splitlines() if line.partition(":")[0].strip() in _OF_CPU]
    return [" ".join(line.split()) for line in lines]
