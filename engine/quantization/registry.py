"""All quantizations, by the bits that tasks and configurations name."""

from __future__ import annotations

from engine.quantization.base import Quantization
from engine.quantization.int8 import INT8
from engine.quantization.nf4 import NF4

QUANTIZATIONS: dict[int, Quantization] = {each.bits: each for each in (NF4, INT8)}


def quantization(bits: int | None) -> Quantization | None:
    """The quantization with these bits; None for unquantized weights."""
    return None if bits is None else QUANTIZATIONS[bits]
