"""Types of GPUs: Ray's names for them, to which replicas can be pinned, and what planning knows.

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
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator


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
        return int(self.memory_gib * 2**30)


_CARDS: dict[str, list[tuple[str, float, float]]] = {
    # Ray 2.60 has constants for most data center cards, and makes the names of the others from the
    # driver's names. RTX-2000 to RTX-6000 are of the Ada generation.
    "GeForce-RTX-2060": [],
    "GeForce-RTX-2070": [],
    "GeForce-RTX-2080": [],
    "GeForce-RTX-2080-Ti": [],
    "GeForce-RTX-3060": [],
    "GeForce-RTX-3060-Ti": [],
    "GeForce-RTX-3070": [],
    "GeForce-RTX-3070-Ti": [],
    "GeForce-RTX-3080": [],
    "GeForce-RTX-3080-Ti": [],
    "GeForce-RTX-3090": [("RTX3090", 24.0, 936)],
    "GeForce-RTX-3090-Ti": [],
    "GeForce-RTX-4060": [],
    "GeForce-RTX-4060-Ti": [("RTX4060Ti", 16.0, 288)],
    "GeForce-RTX-4070": [],
    "GeForce-RTX-4070-SUPER": [],
    "GeForce-RTX-4070-Ti": [],
    "GeForce-RTX-4070-Ti-SUPER": [("RTX4070TiSUPER", 16.0, 672)],
    "GeForce-RTX-4080": [("RTX4080", 16.0, 717)],
    "GeForce-RTX-4080-SUPER": [("RTX4080SUPER", 16.0, 736)],
    "GeForce-RTX-4090": [("RTX4090", 24.0, 1008)],
    "GeForce-RTX-4090-D": [],
    "GeForce-RTX-5050": [],
    "GeForce-RTX-5060": [],
    "GeForce-RTX-5060-Ti": [("RTX5060Ti", 15.9, 448)],
    "GeForce-RTX-5070": [("RTX5070", 11.9, 672)],
    "GeForce-RTX-5070-Ti": [("RTX5070Ti", 15.9, 896)],
    "GeForce-RTX-5080": [("RTX5080", 15.9, 960)],
    "GeForce-RTX-5090": [("RTX5090", 31.8, 1792)],
    "GeForce-RTX-5090-D": [],
    "RTX-A2000": [],
    "RTX-A4000": [],
    "RTX-A4500": [],
    "RTX-A5000": [],
    "RTX-A5500": [],
    "RTX-A6000": [("RTXA6000", 48.0, 768)],
    "RTX-2000": [],
    "RTX-4000": [],
    "RTX-4500": [],
    "RTX-5000": [],
    "RTX-6000": [("RTX6000Ada", 48.0, 960)],
    "RTX-PRO-2000": [],
    "RTX-PRO-4000": [],
    "RTX-PRO-4500": [],
    "RTX-PRO-5000": [],
    "RTX-PRO-6000": [("RTXPRO6000", 95.6, 1792)],
    "K80": [],
    "P4": [],
    "P100": [],
    "V100": [],
    "T4": [("T4", 15.0, 320)],
    "A2": [],
    "A10": [("A10", 22.5, 600)],
    "A10G": [("A10G", 22.5, 600)],
    "A16": [],
    "A30": [("A30", 24.0, 933)],
    "A40": [("A40", 45.0, 696)],
    "L4": [("L4", 22.5, 300)],
    "L40": [],
    "L40S": [("L40S", 45.0, 864)],
    "A100": [("A100-40G", 40.0, 1555), ("A100-80G", 80.0, 2039)],
    "A100-40G": [],
    "A100-80G": [],
    "H100": [("H100", 79.6, 3350), ("H100-PCIe", 79.6, 2000)],
    "H200": [("H200", 140.4, 4800)],
    "H20": [("H20", 95.6, 4000)],
    "GB10": [],
    "B200": [("B200", 179.0, 7700)],
    "B300": [("B300", 268.0, 7700)],
    "GB200": [],
    "GB300": [],
}
"""Ray's name of a GPU: the cards with this name, each with the fields of `GpuType`. The list is
empty where the memory is not known.
"""

GPU_TYPES = tuple(
    GpuType(name, accelerator_type, memory_gib, bandwidth_gb_s)
    for accelerator_type, cards in _CARDS.items()
    for name, memory_gib, bandwidth_gb_s in cards
)
"""The cards whose memory is known."""

ACCELERATOR_TYPES = tuple(sorted(_CARDS))
"""All names that Ray gives to GPUs."""


def check_accelerator_type(name: str) -> str:
    """The name itself; a `ValueError` with the nearest name if Ray does not know it.

    Ray does not check it: replicas with a misspelt type would wait for such a node for ever.
    """
    if name in ACCELERATOR_TYPES:
        return name
    # RTX5090, rtx-5090 and GeForce RTX 5090 all mean GeForce-RTX-5090.
    plain = {plain_name(known): known for known in ACCELERATOR_TYPES}
    near = difflib.get_close_matches(plain_name(name), plain, n=1)
    if near:
        raise ValueError(f"Ray has no GPU type {name!r}; did you mean {plain[near[0]]!r}?")
    raise ValueError(f"Ray has no GPU type {name!r}; the types are {', '.join(plain.values())}")


def plain_name(name: str) -> str:
    """A name without the parts that people write in several ways or leave out."""
    for ignored in ("nvidia", "geforce", "tesla", "-", " ", "_"):
        name = name.lower().replace(ignored, "")
    return name


AcceleratorType = Annotated[str, AfterValidator(check_accelerator_type)]
