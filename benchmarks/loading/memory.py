"""Measures what loading a model takes: ``python -m benchmarks.loading.memory``.

Loads one checkpoint of random weights on CPU with each setting, every time in its own process,
and watches the memory of that process from outside. Prints a table, writes ``load.json``.

Anonymous memory is what loading takes from others. File-backed memory is the mapped checkpoint,
which the kernel may drop at any time; it is shown beside it. Weights that are used as they lie in
the checkpoint stay mapped: they count as part of the model and are not anonymous memory. Both count
from the level before loading, when the process has loaded a tiny model in the same way already, so
that no library is counted. A quantized model should not need more than itself and one shard of the
checkpoint. The checkpoint was written a moment ago: the time is that of files in memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.harness import command
from benchmarks.harness.engine_api import EngineConfig, load_model, weight_bytes
from benchmarks.harness.processes import in_own_process, memory_of, own_process
from benchmarks.harness.report import about, say, table, write
from demo.random_model import GEOMETRIES, save_model
from schema.task import Dtype, QuantizeBits

_SAMPLE_S = 0.001


@dataclass(frozen=True)
class Setting:
    """How a model is loaded."""

    dtype: Dtype
    quantize_bits: QuantizeBits | None = None


SETTINGS = {
    "float32": Setting("float32"),
    "bfloat16": Setting("bfloat16"),
    "int8": Setting("bfloat16", 8),
    "nf4": Setting("bfloat16", 4),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    directory: str
    disk_bytes: int
    largest_shard_bytes: int


@dataclass(frozen=True)
class Row:
    """One setting. Peaks are above the level before loading."""

    setting: str
    disk_bytes: int
    largest_shard_bytes: int
    model_bytes: int
    peak_anonymous_bytes: int
    peak_file_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """How many times the model itself the loading needed."""
        return self.peak_anonymous_bytes / self.model_bytes

    @property
    def surplus_bytes(self) -> int:
        """What the loading needed beyond the model itself."""
        return self.peak_anonymous_bytes - self.model_bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the processes inherit it
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        say(f"model of {options.geometry}'s geometry in bfloat16, random weights")
        warm_up = _checkpoint("tiny", options.shard_mb, f"{folder}/warm-up")
        checkpoint = _checkpoint(options.geometry, options.shard_mb, f"{folder}/model")
        for name in options.settings:
            rows.append(_measure(name, warm_up, checkpoint))
            say(f"{name}: loaded in {rows[-1].seconds:.1f} s")
    print(table(rows, _COLUMNS))
    data = about("load", options, "torch", "transformers", "bitsandbytes", "safetensors")
    data["cpu"] = torch.backends.cpu.get_cpu_capability()
    data["model"] = asdict(GEOMETRIES[options.geometry])
    data["runs"] = [
        asdict(row) | {"ratio": row.ratio, "surplus_bytes": row.surplus_bytes} for row in rows
    ]
    write(options.out, "load", data)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.loading.memory", __doc__)
    names, add = list(SETTINGS), parser.add_argument
    add("--geometry", default="llama-0.5b", choices=list(GEOMETRIES))
    add("--settings", nargs="+", default=names, choices=names, metavar="SETTING")
    add("--shard-mb", type=float, default=100, metavar="MB", help="of 10^6 bytes")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    return parser.parse_args(arguments)


def _checkpoint(geometry: str, shard_mb: float, directory: str) -> Checkpoint:
    in_own_process(save_model, geometry, "bfloat16", directory, int(shard_mb * 1e6))
    sizes = [file.stat().st_size for file in Path(directory).glob("*.safetensors")]
    return Checkpoint(directory, sum(sizes), max(sizes))


def _measure(name: str, warm_up: Checkpoint, checkpoint: Checkpoint) -> Row:
    """Load in a new process, and look at its memory from here meanwhile."""
    with own_process() as process:
        pid = process.submit(_warm_up, SETTINGS[name], warm_up.directory).result()
        seen = [before := memory_of(pid)]
        loading = process.submit(_load, SETTINGS[name], checkpoint.directory)
        while wait([loading], _SAMPLE_S).not_done:
            seen.append(memory_of(pid))
        model_bytes, seconds = loading.result()
    return Row(
        setting=name,
        disk_bytes=checkpoint.disk_bytes,
        largest_shard_bytes=checkpoint.largest_shard_bytes,
        model_bytes=model_bytes,
        peak_anonymous_bytes=max(memory["RssAnon"] for memory in seen) - before["RssAnon"],
        peak_file_bytes=max(memory["RssFile"] for memory in seen) - before["RssFile"],
        seconds=seconds,
    )


# --- In the new process --------------------------------------------------------------------------


def _warm_up(setting: Setting, directory: str) -> int:
    """Load a tiny model in the same way; returns the process's id."""
    transformers_logging.disable_progress_bar()
    load_model(_config(setting, directory))
    gc.collect()
    return os.getpid()


def _load(setting: Setting, directory: str) -> tuple[int, float]:
    """Load the model; returns how large it is, and the time."""
    start = time.perf_counter()
    loaded = load_model(_config(setting, directory))
    seconds = time.perf_counter() - start
    return weight_bytes(loaded.model), seconds


def _config(setting: Setting, directory: str) -> EngineConfig:
    return EngineConfig(
        model=directory,
        dtype=setting.dtype,
        quantize_bits=setting.quantize_bits,
        device="cpu",
        local_files_only=True,
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "setting": lambda row: row.setting,
    "on disk": lambda row: _mb(row.disk_bytes),
    "shard": lambda row: _mb(row.largest_shard_bytes),
    "model": lambda row: _mb(row.model_bytes),
    "peak": lambda row: _mb(row.peak_anonymous_bytes),
    "peak/model": lambda row: f"{row.ratio:.2f}",
    "peak-model": lambda row: _mb(row.surplus_bytes),
    "file peak": lambda row: _mb(row.peak_file_bytes),
    "seconds": lambda row: f"{row.seconds:.1f}",
}


if __name__ == "__main__":
    main()
