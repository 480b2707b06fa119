"""Measures what loading a model takes: ``python -m benchmarks.loading.memory``.

Loads one checkpoint of random weights on CPU with each setting, every time in a process of its own,
and watches the memory of that process from outside. Prints a table, writes ``load.json``.

Anonymous memory is what loading takes from others. File-backed memory is the mapped checkpoint,
which the kernel may drop at any time; it is shown beside it. Weights that are used as they lie in
the checkpoint stay mapped: they count as part of the model and are no anonymous memory. Both count
from the level before loading, when the process has loaded a tiny model in the same way already, so
that no library is counted. A quantized model should not need more than itself and one shard of the
checkpoint. The checkpoint was written a moment ago: the time is that of files in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.engine.report import aligned, say
from benchmarks.engine.worker import in_own_process
from benchmarks.harness import models as workload
from benchmarks.harness.models import Geometry
from engine import EngineConfig
from engine.loading.estimate import weight_bytes
from engine.loading.loader import load_model
from schema.task import Dtype, QuantizeBits

GEOMETRIES = workload.GEOMETRIES | {
    "llama-0.5b": Geometry("llama", 1536, 16, 12, 4, 4608, 32000, False, 5e5),  # 1.08 GB in bf16
}

_SAMPLE_S = 0.001
_SEED = 20260101


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
class Memory:
    """Resident memory of a process, in bytes."""

    anonymous: int
    file_backed: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """What the kernel counts for a process now."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        anonymous, file_backed = (
            int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")
        )
        return cls(anonymous, file_backed)


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
    print(_table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "load.json"
    path.write_text(json.dumps(_report(options, rows), indent=2) + "\n")
    print("written:", path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(SETTINGS)
    parser.add_argument("--geometry", default="llama-0.5b", choices=list(GEOMETRIES))
    parser.add_argument("--settings", nargs="+", default=names, choices=names, metavar="SETTING")
    parser.add_argument("--shard-mb", type=float, default=100, metavar="MB", help="of 10^6 bytes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    return parser.parse_args(arguments)


# --- In processes of their own -------------------------------------------------------------------


def _save(geometry: str, shard_mb: float, directory: str) -> None:
    """Save a random model in shards."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(_SEED)
    model = workload.random_model(GEOMETRIES[geometry], torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=int(shard_mb * 1e6))
    workload.word_tokenizer(GEOMETRIES[geometry].vocab_size).save_pretrained(directory)


def _load(pipe: Connection, setting: Setting, warm_up: str, directory: str) -> None:
    """Load a tiny model, wait for the start, load the model; says how large it is, and the time."""
    transformers_logging.disable_progress_bar()
    load_model(_config(setting, warm_up))
    gc.collect()
    pipe.send(None)
    pipe.recv()
    start = time.perf_counter()
    loaded = load_model(_config(setting, directory))
    seconds = time.perf_counter() - start
    pipe.send((weight_bytes(loaded.model), seconds))


def _config(setting: Setting, directory: str) -> EngineConfig:
    return EngineConfig(
        model=directory,
        dtype=setting.dtype,
        quantize_bits=setting.quantize_bits,
        device="cpu",
        local_files_only=True,
    )


# --- The measurement -----------------------------------------------------------------------------


def _checkpoint(geometry: str, shard_mb: float, directory: str) -> Checkpoint:
    in_own_process(_save, geometry, shard_mb, directory)
    sizes = [file.stat().st_size for file in Path(directory).glob("*.safetensors")]
    return Checkpoint(directory, sum(sizes), max(sizes))


def _measure(name: str, warm_up: Checkpoint, checkpoint: Checkpoint) -> Row:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_load, args=(theirs, SETTINGS[name], warm_up.directory, checkpoint.directory)
    )
    process.start()
    theirs.close()  # so that a process that dies is the end of the pipe
    assert process.pid is not None
    try:
        ours.recv()
        before = Memory.of(process.pid)
        ours.send(None)
        seen = [before]
        while not ours.poll(_SAMPLE_S):
            seen.append(Memory.of(process.pid))
        model_bytes, seconds = ours.recv()
    except EOFError:  # it has told why
        raise SystemExit(f"{name}: the process that loads ended early") from None
    finally:
        process.join()
    return Row(
        setting=name,
        disk_bytes=checkpoint.disk_bytes,
        largest_shard_bytes=checkpoint.largest_shard_bytes,
        model_bytes=model_bytes,
        peak_anonymous_bytes=max(memory.anonymous for memory in seen) - before.anonymous,
        peak_file_bytes=max(memory.file_backed for memory in seen) - before.file_backed,
        seconds=seconds,
    )


# --- The report ----------------------------------------------------------------------------------


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


def _table(rows: Sequence[Row]) -> str:
    lines = [list(_COLUMNS), *([show(row) for show in _COLUMNS.values()] for row in rows)]
    return aligned(lines)


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _report(options: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "benchmark": "load",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "geometry": options.geometry,
        "model": asdict(GEOMETRIES[options.geometry]),
        "threads": options.threads,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "bitsandbytes", "safetensors")
        },
        "runs": [
            asdict(row) | {"ratio": row.ratio, "surplus_bytes": row.surplus_bytes} for row in rows
        ],
    }


if __name__ == "__main__":
    main()
