"""How long one process takes to load a model: ``python -m benchmarks.loading.load_time DIRECTORY``.

It does what a replica does, without Ray: the libraries, the model, its KV cache, the probe. Prints
one line of JSON: seconds and processor seconds from the start to each stage's end, and how long the
weights alone take to read. `benchmarks.loading.startup` calls it, each time in a new process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from serve_app.config.app_args import ModelArgs
from serve_app.replicas.lazy_imports import load_libraries

STAGES = {
    "libraries imported": "loading ",
    "model loaded": "loaded ",
    "KV cache made": "KV cache: ",
    "batch sizes known": "batch sizes that agree",
}
"""The ends of stages, and how the engine's lines in the log begin that tell of them."""
READY = "ready"

_CHUNK = 1 << 22


class _Stages(logging.Handler):
    """Notes when the engine's log tells of the end of a stage."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        for stage, text in STAGES.items():
            if record.getMessage().startswith(text):
                self.note(stage)

    def note(self, stage: str) -> None:
        """A stage ends now."""
        self.seconds[stage] = time.perf_counter() - self.start
        self.cpu_seconds[stage] = time.process_time()


def weights(directory: Path) -> list[Path]:
    """The files of weights of a model."""
    return sorted(directory.glob("*.safetensors"))


def forget(directory: Path) -> None:
    """Have the kernel drop the weights from its page cache, as if they had never been read."""
    for path in weights(directory):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(directory: Path) -> float:
    """Seconds that the weights take to read, once, and for nothing."""
    buffer = bytearray(_CHUNK)
    start = time.perf_counter()
    for path in weights(directory):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def load(directory: Path, dtype: str) -> dict[str, Any]:
    """Load a model as a replica does; seconds and processor seconds until each stage's end."""
    stages = _Stages()
    fields = {"id": "benchmark", "source": str(directory), "dtype": dtype}
    config = ModelArgs.model_validate(fields).engine_config("cpu")
    log = logging.getLogger("engine")
    log.addHandler(stages)
    log.setLevel(logging.INFO)
    load_libraries(config)
    from engine.engine import Engine  # noqa: PLC0415 - it is part of what is measured

    engine = Engine(config)
    stages.note(READY)
    engine.close()
    log.removeHandler(stages)
    return {"seconds": stages.seconds, "cpu_seconds": stages.cpu_seconds}


def main() -> None:
    """One measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading.load_time", description=__doc__
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cold", action="store_true", help="the weights are not in the page cache")
    options = parser.parse_args()
    directory: Path = options.directory.resolve()
    prepare = forget if options.cold else read
    prepare(directory)
    read_s = read(directory)
    prepare(directory)
    found = {"cold": options.cold, "read_seconds": read_s, **load(directory, options.dtype)}
    print(json.dumps(found | {"bytes": sum(path.stat().st_size for path in weights(directory))}))


if __name__ == "__main__":
    main()
