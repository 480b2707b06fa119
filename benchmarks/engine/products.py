"""What a model's matrix products cost on this CPU: ``python -m benchmarks.engine.products``.

The machine itself: the fastest large products in bfloat16, float32 and INT8, and the fastest read
of a buffer that no cache holds. Then, for each way in which the engine holds weights, the products
of one forward at several numbers of rows. The model is loaded by the engine's own loader and its
layers are called one after the other, each with its own weights, so none is found in a cache. They
stand beside the roofline: no product takes less time than reading its weights, nor less than its
operations at the machine's peak. bitsandbytes' NF4 computes in bfloat16; its roofline does too.

A layer's time is what a quarter of its calls did not exceed, so that a machine that others use for
moments disturbs little. With ``--disturbed`` the question is how much such a use disturbs: another
process wakes a thousand times a second for a fifth of a millisecond, and a layer's time is the mean
of its calls. Prints a table; writes ``products.json`` and ``products.png``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, quantiles
from typing import Any

import torch

from benchmarks.engine.products_report import Group, Machine, Row, panels, text
from benchmarks.harness import command
from benchmarks.harness.engine_api import (
    EngineConfig,
    Executor,
    OneDNNProduct,
    PackedLinear,
    load_model,
    make_deterministic,
    packed_product,
    prepack,
)
from benchmarks.harness.report import about, say, write
from demo.random_model import GEOMETRIES, save_model
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

_NEIGHBOUR = """
import time
while True:
    end = time.perf_counter() + 200e-6
    while time.perf_counter() < end:
        pass
    time.sleep(800e-6)
"""
_READ_BYTES = 512 << 20
_PEAK_SIZE = 2048
_PEAK_CALLS = 12


@dataclass(frozen=True)
class HeldAs:
    """How the engine holds the weights of the linear layers, and in what it multiplies them."""

    dtype: Dtype
    quantize_bits: QuantizeBits | None
    packed: bool
    computes_in: str
    make: Callable[..., Any] = packed_product


PATHS = {
    "float32": HeldAs("float32", None, False, "float32"),
    "float32, prepacked": HeldAs("float32", None, True, "float32"),
    "bfloat16": HeldAs("bfloat16", None, False, "bfloat16"),
    "bfloat16, prepacked": HeldAs("bfloat16", None, True, "bfloat16"),
    "bfloat16, oneDNN": HeldAs("bfloat16", None, True, "bfloat16", make=OneDNNProduct),
    "NF4": HeldAs("bfloat16", 4, True, "bfloat16"),
    "INT8": HeldAs("bfloat16", 8, True, "int8"),
}


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
            names = [name for name in options.paths if PATHS[name].dtype == dtype]
            rows += _measure(names, directory, options)
            machine = machine.best(measure_machine())
    rows.sort(key=lambda row: options.paths.index(row.path))
    print(text(machine, rows))
    data = about("products", options, "torch", "transformers", "bitsandbytes")
    data |= {"machine": asdict(machine), "runs": [asdict(row) for row in rows]}
    write(options.out, "products", data, panels(machine, rows), columns=2, size=(12, 4.5))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.engine.products", __doc__)
    paths, add = list(PATHS), parser.add_argument
    add("--geometry", default="qwen2.5-0.5b", choices=list(GEOMETRIES))
    add("--paths", nargs="+", default=paths, choices=paths, metavar="PATH")
    add("--rows", nargs="+", type=int, default=list(ROWS), metavar="N")
    add("--rounds", type=int, default=3, help="passes over all layers")
    add("--disturbed", action="store_true", help="beside a process that uses a fifth of a core")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
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


def _measure(names: Sequence[str], directory: str, options: argparse.Namespace) -> Iterator[Row]:
    """All row counts of the paths of a dtype, in turns: the machine's speed changes with time.

    The models are dropped at the end.
    """
    held: dict[str, list[_Call]] = {}
    for name in names:
        say(f"{name} ...")
        held[name] = list(_calls(_loaded(PATHS[name], directory)))
    for rows in options.rows:
        seconds = {name: defaultdict[str, list[float]](list) for name in names}
        with _neighbour() if options.disturbed else nullcontext():
            for round_index in range(1 + options.rounds):
                for name, calls in held.items():
                    times = _call_seconds(calls, rows, getattr(torch, PATHS[name].dtype))
                    if round_index > 0:  # in the first one bitsandbytes packs its weights
                        for call, taken in zip(calls, times, strict=True):
                            seconds[name][call.group].append(taken)
        for name, calls in held.items():
            typical = fmean if options.disturbed else _usual
            of_groups = {
                group: typical(times) * len(times) / options.rounds
                for group, times in seconds[name].items()
            }
            yield _row(name, rows, calls, of_groups)


def _loaded(path: HeldAs, directory: str) -> Any:
    """A model whose weights are held in one way."""
    config = EngineConfig(
        model=directory,
        dtype=path.dtype,
        quantize_bits=path.quantize_bits,
        device="cpu",
        local_files_only=True,
    )
    loaded = load_model(config)
    trial = Executor(loaded).measure
    if path.packed and not prepack(loaded.model, trial=trial, make=path.make):
        raise RuntimeError("the model's weights could not be prepacked")
    return loaded.model


def _row(name: str, rows: int, calls: Sequence[_Call], seconds: Mapping[str, float]) -> Row:
    """What the groups of layers took, beside what they need."""
    path = PATHS[name]
    groups = {}
    for group, taken in seconds.items():
        own = [call for call in calls if call.group == group]
        dtype = path.dtype if group == "head" else path.computes_in  # a head is never quantized
        flop = 2.0 * rows * sum(call.weights for call in own)
        groups[group] = Group(taken, dtype, flop, sum(call.weight_bytes for call in own))
    return Row(name, rows, path.computes_in, groups)


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


def _call_seconds(calls: Sequence[_Call], rows: int, dtype: torch.dtype) -> list[float]:
    """Seconds of each call, one after the other."""
    widths = {call.modules[0].in_features for call in calls}
    inputs = {width: torch.randn(rows, width).to(dtype) for width in widths}
    return [_seconds(partial(_run, call, inputs[call.modules[0].in_features])) for call in calls]


@contextmanager
def _neighbour() -> Iterator[None]:
    """Another process uses a fifth of a core, in many small parts, while the body runs."""
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _run(call: _Call, x: torch.Tensor) -> None:
    for module in call.modules:
        module(x)


def _usual(times: Sequence[float]) -> float:
    return quantiles(times, n=4)[0] if len(times) > 3 else min(times)


if __name__ == "__main__":
    main()
