"""Measures what a model's matrix products cost on this CPU: ``python -m benchmarks.products``.

First the machine: the fastest large products in bfloat16, float32 and INT8, and the fastest read of
a buffer that no cache holds. Then, for each way in which the engine holds weights, the products of
one forward at several numbers of rows. The model is loaded by the engine's own loader and its
layers are called one after the other, each with its own weights, so none is found in a cache. They
stand beside the roofline: no product takes less time than reading its weights, nor less than its
operations at the machine's peak. bitsandbytes' NF4 computes in bfloat16; its roofline does too.

A layer's time is what a quarter of its calls did not exceed, so that a machine that others use for
moments disturbs little. Prints a table; writes ``products.json`` and ``products.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from benchmarks.report import aligned, pyplot, say
from benchmarks.workload import GEOMETRIES, save_model
from engine import EngineConfig
from engine.determinism import make_deterministic
from engine.loader import load_model
from engine.prepack import PackedLinear, prepack
from engine.runner import Runner
from schema.task import Dtype, QuantizeBits

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Layers with the same input. Where they are packed, the first one computes for all of them.
GROUPS = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate+up",
    "up_proj": "gate+up",
    "down_proj": "down",
    "lm_head": "head",
}

_READ_BYTES = 512 << 20
_PEAK_SIZE = 2048
_PEAK_CALLS = 12


@dataclass(frozen=True)
class HeldAs:
    """How the engine holds the weights of the linear layers, and in what it multiplies them."""

    dtype: Dtype
    quantize_bits: QuantizeBits | None
    packed: bool
    peak: str


PATHS = {
    "float32": HeldAs("float32", None, False, "float32"),
    "float32, prepacked": HeldAs("float32", None, True, "float32"),
    "bfloat16": HeldAs("bfloat16", None, False, "bfloat16"),
    "bfloat16, prepacked": HeldAs("bfloat16", None, True, "bfloat16"),
    "NF4": HeldAs("bfloat16", 4, True, "bfloat16"),
    "INT8": HeldAs("bfloat16", 8, True, "int8"),
}


@dataclass(frozen=True)
class Machine:
    """What this machine can do: operations a second by type, bytes read a second."""

    flops: dict[str, float]
    bandwidth: float


@dataclass(frozen=True)
class Row:
    """The products of one forward. ``groups`` has the seconds of each kind of layer, all layers."""

    path: str
    rows: int
    seconds: float
    roofline_s: float
    flop: float
    weight_bytes: int
    groups: dict[str, float]


@dataclass(frozen=True)
class _Call:
    """The layers that one input goes to."""

    group: str
    modules: tuple[Any, ...]
    weight_bytes: int
    weights: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    make_deterministic(options.threads)
    machine = measure_machine()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, torch.inference_mode():
        for dtype in dict.fromkeys(PATHS[name].dtype for name in options.paths):
            directory = f"{folder}/{dtype}"
            save_model(options.geometry, dtype, directory)
            for name in options.paths:
                if PATHS[name].dtype == dtype:
                    say(f"{name} ...")
                    rows += _measure(name, directory, options.rows, options.rounds, machine)
    rows.sort(key=lambda row: options.paths.index(row.path))
    print(_table(machine, rows))
    print("written:", *_save(options, machine, rows))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.products",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paths = list(PATHS)
    parser.add_argument("--geometry", default="qwen2.5-0.5b", choices=list(GEOMETRIES))
    parser.add_argument("--paths", nargs="+", default=paths, choices=paths, metavar="PATH")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="passes over all layers")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    return parser.parse_args(arguments)


# --- The machine ---------------------------------------------------------------------------------


def measure_machine() -> Machine:
    """The best of many large products and reads."""
    n = _PEAK_SIZE
    flops = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(n, n).to(getattr(torch, name)) for _ in range(2))
        flops[name] = 2 * n**3 / _best(partial(torch.mm, a, b))
    a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8) for _ in range(2))
    flops["int8"] = 2 * n**3 / _best(partial(torch._int_mm, a, b))
    buffer = torch.ones(_READ_BYTES // 4)
    vector = torch.ones(n)
    reads: list[Callable[[], object]] = [buffer.sum, partial(torch.mv, buffer.view(-1, n), vector)]
    return Machine(flops, _READ_BYTES / min(_best(read) for read in reads))


def _best(call: Callable[[], object]) -> float:
    call()
    return min(_seconds(call) for _ in range(_PEAK_CALLS))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# --- The model -----------------------------------------------------------------------------------


def _measure(
    name: str, directory: str, counts: Sequence[int], rounds: int, machine: Machine
) -> Iterator[Row]:
    """All row counts of one path. The model is dropped at the end."""
    path = PATHS[name]
    config = EngineConfig(
        model=directory,
        dtype=path.dtype,
        quantize_bits=path.quantize_bits,
        device="cpu",
        local_files_only=True,
    )
    loaded = load_model(config)
    if path.packed and not prepack(loaded.model, trial=Runner(loaded, 0).kv_shapes):
        raise RuntimeError("the model's weights could not be prepacked")
    calls = list(_calls(loaded.model))
    flop = 2 * sum(call.weights for call in calls)
    nbytes = sum(call.weight_bytes for call in calls)
    for rows in counts:
        groups = _group_seconds(calls, rows, rounds, getattr(torch, path.dtype))
        roofline = sum(
            max(
                call.weight_bytes / machine.bandwidth,
                2 * call.weights * rows / machine.flops[_peak(path, call)],
            )
            for call in calls
        )
        yield Row(name, rows, sum(groups.values()), roofline, flop * rows, nbytes, groups)


def _peak(path: HeldAs, call: _Call) -> str:
    return path.dtype if call.group == "head" else path.peak  # the head is never quantized


def _calls(model: Any) -> Iterator[_Call]:
    """The linear layers in the order of a forward, those with the same input together."""
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if last in GROUPS:
            found[parent, GROUPS[last]].append(module)
    for (_, group), modules in found.items():
        weights = sum(module.in_features * module.out_features for module in modules)
        yield _Call(group, tuple(modules), _bytes(modules), weights)


def _bytes(modules: Sequence[Any]) -> int:
    """Bytes of the weights of a few layers, as they are stored."""
    tensors: dict[int, torch.Tensor] = {}
    for module in modules:
        parts = [module.weight] if not isinstance(module, PackedLinear) else module.stored()
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        parts += [state.absmax] if state is not None else []
        tensors |= {id(part): part for part in parts}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _group_seconds(
    calls: Sequence[_Call], rows: int, rounds: int, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds that all layers of each group take together."""
    widths = {call.modules[0].in_features for call in calls}
    inputs = {width: torch.randn(rows, width).to(dtype) for width in widths}
    seconds: dict[str, list[float]] = defaultdict(list)
    for round_index in range(
        1 + rounds
    ):  # the first warms up: bitsandbytes packs its weights in it
        for call in calls:
            x = inputs[call.modules[0].in_features]
            taken = _seconds(partial(_run, call, x))
            if round_index > 0:
                seconds[call.group].append(taken)
    return {name: _usual(times) * len(times) / rounds for name, times in seconds.items()}


def _run(call: _Call, x: torch.Tensor) -> None:
    for module in call.modules:
        module(x)


def _usual(times: Sequence[float]) -> float:
    return quantiles(times, n=4)[0] if len(times) > 3 else min(times)


# --- What comes out ------------------------------------------------------------------------------


def _table(machine: Machine, rows: Sequence[Row]) -> str:
    peaks = ", ".join(f"{name} {flops / 1e9:.0f}" for name, flops in machine.flops.items())
    lines = [
        [
            "rows",
            "weights",
            "products",
            "roofline",
            "reached",
            "GFLOP/s",
            "of peak",
            "GB/s",
            "of read",
        ]
    ]
    for row in rows:
        speed = row.flop / row.seconds
        bandwidth = row.weight_bytes / row.seconds
        lines.append(
            [
                str(row.rows),
                row.path,
                f"{row.seconds * 1e3:.1f} ms",
                f"{row.roofline_s * 1e3:.1f} ms",
                f"{row.roofline_s / row.seconds:.0%}",
                f"{speed / 1e9:.0f}",
                f"{speed / machine.flops[PATHS[row.path].peak]:.0%}",
                f"{bandwidth / 1e9:.1f}",
                f"{bandwidth / machine.bandwidth:.0%}",
            ]
        )
    header = f"peak in GFLOP/s: {peaks}; reading {machine.bandwidth / 1e9:.1f} GB/s"
    return "\n".join([header, aligned(lines, names=1)])


def _save(options: argparse.Namespace, machine: Machine, rows: Sequence[Row]) -> list[Path]:
    options.out.mkdir(parents=True, exist_ok=True)
    data, picture = options.out / "products.json", options.out / "products.png"
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "geometry": options.geometry,
        "threads": options.threads,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        "peaks": asdict(machine),
        "runs": [asdict(row) for row in rows],
    }
    data.write_text(json.dumps(about, indent=1) + "\n")
    return [data, picture] if _plot(picture, rows) else [data]


def _plot(file: Path, rows: Sequence[Row]) -> bool:
    """Time a row, and the share of the roofline; False where matplotlib is not installed."""
    if (plt := pyplot()) is None:
        return False
    figure, (times, shares) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for path in dict.fromkeys(row.path for row in rows):
        own = [row for row in rows if row.path == path]
        counts = [row.rows for row in own]
        (line,) = times.plot(counts, [row.seconds * 1e3 for row in own], marker="o", label=path)
        roofline = [row.roofline_s * 1e3 for row in own]
        times.plot(counts, roofline, linestyle=":", color=line.get_color())
        shares.plot(counts, [row.roofline_s / row.seconds for row in own], marker="o")
    times.set(title="products of a forward, ms (dotted: roofline)", yscale="log")
    shares.set(title="share of the roofline", ylim=(0, 1.05))
    for axis in (times, shares):
        axis.set(xlabel="rows", xscale="log")
        axis.set_xticks(sorted({row.rows for row in rows}))
        axis.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True


if __name__ == "__main__":
    main()
