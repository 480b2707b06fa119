"""What the kernels take of a GPU, as its assembler says; no GPU is needed to ask.

``python -m engine.execution.kernels.compiled 120`` compiles them for compute capability 12.0 and
prints a table: registers of a thread, bytes that did not fit into them, shared memory of a program.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.execution.kernels import paged
from engine.execution.kernels.tiles import Heads, Tile, prompt_tile, token_tile

SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have, by compute capability (CUDA C++ Programming Guide,
Technical Specifications per Compute Capability).
"""
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

_INTEGERS = ("row_starts", "contexts", "block_table", "seen_until")
_STATES = ("output", "query", "keys", "values", "sinks")  # in the dtype of the model
_ANY_STRIDE = "table_stride"  # others are multiples of the size of a head


@dataclass(frozen=True)
class Usage:
    """What a program of a kernel takes.

    Attributes:
        kernel: its name.
        tile: its size; of `combine_splits`, that of the kernel before it.
        registers: of each thread.
        spilled: bytes of each thread that are in memory instead.
        shared: bytes of shared memory of a program.
    """

    kernel: str
    tile: Tile
    registers: int
    spilled: int
    shared: int


def usages(heads: Heads, capability: int, *, everything: bool = False) -> Iterator[Usage]:
    """Compile the three kernels for heads of a size.

    Args:
        heads: what to compile for.
        capability: such as 120 for 12.0.
        everything: with soft caps, sinks, and tokens that see later ones; else with none of them.
    """
    of_gpu = divmod(capability, 10)
    prompts, tokens = prompt_tile(heads, of_gpu), token_tile(heads, of_gpu)
    yield _usage(paged.attend_prompts, heads, prompts, capability, everything)
    yield _usage(paged.attend_tokens, heads, tokens, capability, everything)
    yield _usage(paged.combine_splits, heads, tokens, capability, everything)


def _usage(kernel: Any, heads: Heads, tile: Tile, capability: int, everything: bool) -> Usage:
    constants: dict[str, Any] = heads.constants(tile, capped=everything, widen=False)
    if not everything:
        constants |= {"sinks": None, "seen_until": None}
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    source = ASTSource(
        kernel,
        {
            name: "constexpr" if name in constants else _type(name, heads)
            for name in kernel.arg_names
        },
        constants,
        {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if name not in constants and _is_aligned(name)
        },
    )
    options = {} if kernel is paged.combine_splits else tile.options
    compiled = triton.compile(source, GPUTarget("cuda", capability, 32), options)
    registers, spilled = _registers(compiled.asm["cubin"])
    return Usage(kernel.__name__, tile, registers, spilled, compiled.metadata.shared)


def _type(name: str, heads: Heads) -> str:
    """The type of an argument, as Triton writes it."""
    if name in _STATES:
        return f"*{DTYPES[heads.dtype]}"
    if name in _INTEGERS:
        return "*i32"
    if name.startswith("partial_"):
        return "*fp32"
    return "fp32" if name in ("scale", "softcap") else "i32"


def _is_aligned(name: str) -> bool:
    """Whether a launch finds an argument to be a multiple of 16, which makes loads wide."""
    return _type(name, _ANY_HEADS)[0] == "*" or (name.endswith("_stride") and name != _ANY_STRIDE)


_ANY_HEADS = Heads(4, 64, 64, 256, torch.bfloat16)
_TABLE = [
    *((replace(_ANY_HEADS, key_dim=size, value_dim=size), False) for size in (64, 128, 256)),
    *((replace(_ANY_HEADS, key_dim=size, value_dim=size), True) for size in (128, 256)),
    *(
        (replace(_ANY_HEADS, key_dim=128, value_dim=128, dtype=dtype), False)
        for dtype in (torch.float16, torch.float32)
    ),
]
"""Heads, and whether with everything."""


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        told = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    if found is None:
        raise RuntimeError(f"cuobjdump tells no registers: {told}")
    return int(found[1]), int(found[2])


def main() -> None:
    """Print the table of a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capability", type=int, choices=SHARED_KIB, help="120 for RTX 50")
    capability = parser.parse_args().capability
    print("| kernel | heads | form | rows x block, warps | registers | spilled | shared memory |")
    print("|---|---|---|---|---|---|---|")
    for heads, everything in _TABLE:
        for usage in usages(heads, capability, everything=everything):
            tile = usage.tile
            print(
                f"| {usage.kernel} | {heads.key_dim}, {DTYPES[heads.dtype]} "
                f"| {'everything' if everything else 'usual'} "
                f"| {tile.rows} x {tile.block}, {tile.warps} "
                f"| {usage.registers} | {usage.spilled} B | {usage.shared / 1024:.0f} KiB |"
            )


if __name__ == "__main__":
    main()
