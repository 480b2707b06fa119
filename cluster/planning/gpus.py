"""The nodes that a plan is made for, and the GPUs in them, in the notation of ``--nodes``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from serve_app.config.accelerators import GPU_TYPES, GpuType, plain_name

GIB = 2**30


@dataclass(frozen=True)
class Node:
    """A machine with GPUs of one type, or with none."""

    name: str
    gpu: GpuType | None
    num_gpus: int


_NODES = re.compile(r"(?:(\d+)\*)?(?:(\d+)x)?([A-Za-z][\w .-]*)")
_OWN_TYPE = re.compile(r"([A-Za-z][\w-]*)=(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")
MOST_GPUS = 10_000


def parse_nodes(text: str, own: tuple[GpuType, ...] = ()) -> list[Node]:
    """Nodes in the notation of ``--nodes``: ``4xRTX5090,2*8xH100,cpu`` is four machines.

    ``N*`` repeats a machine, ``Nx`` counts its GPUs (one where it is left out).

    Raises:
        ValueError: says what is wrong, and what could be meant.
    """
    nodes: list[Node] = []
    total = 0
    for part in (part.strip() for part in text.split(",")):
        match = _NODES.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a node: write 4xRTX5090, 2*8xH100 or cpu")
        repeated, count = int(match[1] or 1), int(match[2] or 1)
        gpu = None if match[3].lower() == "cpu" else find_gpu(match[3], own)
        total += repeated * count
        if total > MOST_GPUS or not repeated or not count:
            raise ValueError(f"{part!r}: give 1 to {MOST_GPUS} machines and GPUs in all")
        for _ in range(repeated):
            nodes.append(Node(f"node {len(nodes) + 1}", gpu, count if gpu else 0))
    return nodes


def find_gpu(name: str, own: tuple[GpuType, ...] = ()) -> GpuType:
    """The type of that name, or of Ray's name for it; A100 means the one with 40 GiB.

    Raises:
        ValueError: there is none; names the nearest one.
    """
    known = {plain_name(gpu.accelerator_type): gpu for gpu in reversed(GPU_TYPES)}
    known |= {plain_name(gpu.name): gpu for gpu in (*GPU_TYPES, *own)}
    if (plain := plain_name(name)) in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=1)
    names = ", ".join(gpu.name for gpu in GPU_TYPES)
    hint = f"did you mean {known[near[0]].name}?" if near else f"known are {names}."
    raise ValueError(
        f"GPU type {name!r} is not known; {hint} "
        f"Others: --gpu {name.replace(' ', '-')}=MEMORY_GIB:BANDWIDTH_GB_S"
    )


def parse_gpu_type(text: str) -> GpuType:
    """A type that the table lacks: ``NAME=MEMORY_GIB:BANDWIDTH_GB_S``; NAME may be Ray's.

    Raises:
        ValueError: it is not of that form.
    """
    match = _OWN_TYPE.fullmatch(text)
    if match is None or not float(match[2]) or not float(match[3]):
        raise ValueError(f"{text!r} must be NAME=MEMORY_GIB:BANDWIDTH_GB_S, such as X1=24:600")
    return GpuType(match[1], match[1], float(match[2]), float(match[3]))
