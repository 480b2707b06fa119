"""Types of GPUs, and the nodes that a plan is made for.

Memory is the total that ``nvidia-smi`` shows, in GiB, which is a little less than what the card is
sold with. It was compared with its outputs, in MiB, in public threads: modal-labs/modal-client#2797
(H100 81559, A100 81920 and 40960, A10 23028, L40S 46068, L4 23034, T4 15360),
NVIDIA/TensorRT-LLM#10278 (B200 183359), noonghunna/club-3090#1229 (RTX 5090 32607). Workstation
cards with GDDR memory, such as RTX A6000, show a sixteenth less when error correction is on.

Bandwidth is the memory bandwidth of NVIDIA's data sheets and product pages, in GB/s (10**9 bytes):
GeForce RTX 30, 40 and 50 series, RTX A6000, RTX 6000 Ada, RTX PRO 6000, T4, A10, A30, A40, L4,
L40S, A100, H100, H200, H20. Where these round B200 to 8 TB/s, its bus and clock give 7.67
(pytorch/ao#4002); B300 is taken to be like it. Where a card comes in several forms, the form is
named; A100, H100 and H200 are SXM.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class GpuType:
    """A GPU as planning sees it.

    Attributes:
        name: how ``--nodes`` names it.
        accelerator_type: how Ray names it, and ``accelerator_type`` in a configuration.
        memory_gib: total memory.
        bandwidth_gb_s: of that memory.
    """

    name: str
    accelerator_type: str
    memory_gib: float
    bandwidth_gb_s: float

    @property
    def memory(self) -> int:
        """Total memory in bytes."""
        return int(self.memory_gib * GIB)


@dataclass(frozen=True)
class Node:
    """A machine with GPUs of one type, or with none."""

    name: str
    gpu: GpuType | None
    num_gpus: int


GPU_TYPES = (
    GpuType("RTX3090", "GeForce-RTX-3090", 24.0, 936),
    GpuType("RTX4060Ti", "GeForce-RTX-4060-Ti", 16.0, 288),
    GpuType("RTX4070TiSUPER", "GeForce-RTX-4070-Ti-SUPER", 16.0, 672),
    GpuType("RTX4080", "GeForce-RTX-4080", 16.0, 717),
    GpuType("RTX4080SUPER", "GeForce-RTX-4080-SUPER", 16.0, 736),
    GpuType("RTX4090", "GeForce-RTX-4090", 24.0, 1008),
    GpuType("RTX5060Ti", "GeForce-RTX-5060-Ti", 15.9, 448),
    GpuType("RTX5070", "GeForce-RTX-5070", 11.9, 672),
    GpuType("RTX5070Ti", "GeForce-RTX-5070-Ti", 15.9, 896),
    GpuType("RTX5080", "GeForce-RTX-5080", 15.9, 960),
    GpuType("RTX5090", "GeForce-RTX-5090", 31.8, 1792),
    GpuType("RTXA6000", "RTX-A6000", 48.0, 768),
    GpuType("RTX6000Ada", "RTX-6000", 48.0, 960),
    GpuType("RTXPRO6000", "RTX-PRO-6000", 95.6, 1792),
    GpuType("T4", "T4", 15.0, 320),
    GpuType("A10", "A10", 22.5, 600),
    GpuType("A10G", "A10G", 22.5, 600),
    GpuType("A30", "A30", 24.0, 933),
    GpuType("A40", "A40", 45.0, 696),
    GpuType("L4", "L4", 22.5, 300),
    GpuType("L40S", "L40S", 45.0, 864),
    GpuType("A100-40G", "A100", 40.0, 1555),
    GpuType("A100-80G", "A100", 80.0, 2039),
    GpuType("H100", "H100", 79.6, 3350),
    GpuType("H100-PCIe", "H100", 79.6, 2000),
    GpuType("H200", "H200", 140.4, 4800),
    GpuType("H20", "H20", 95.6, 4000),
    GpuType("B200", "B200", 179.0, 7700),
    GpuType("B300", "B300", 268.0, 7700),
)

_NODES = re.compile(r"(?:(\d+)\*)?(?:(\d+)x)?([A-Za-z][\w .-]*)")
_OWN_TYPE = re.compile(r"([A-Za-z][\w-]*)=(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")
MOST_GPUS = 10_000


def parse_nodes(text: str, own: tuple[GpuType, ...] = ()) -> list[Node]:
    """Nodes as people write them: ``4xRTX5090,2*8xH100,cpu`` is four machines.

    ``N*`` repeats a machine, ``Nx`` counts its GPUs (one where it is left out).

    Raises:
        ValueError: what is wrong, and what it could be.
    """
    nodes: list[Node] = []
    total = 0
    for part in (part.strip() for part in text.split(",")):
        match = _NODES.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no node: write 4xRTX5090, 2*8xH100 or cpu")
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
        ValueError: there is none; with the nearest one.
    """
    known = {_plain(gpu.accelerator_type): gpu for gpu in reversed(GPU_TYPES)}
    known |= {_plain(gpu.name): gpu for gpu in (*GPU_TYPES, *own)}
    if (plain := _plain(name)) in known:
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


def _plain(name: str) -> str:
    for ignored in ("nvidia", "geforce", "tesla", "-", " ", "_"):
        name = name.lower().replace(ignored, "")
    return name
