"""The description of a quantization that the rest of the engine uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from schema.model_variant import QuantizeBits, quantization_label

Split = Literal["tensor", "layers"]
"""How a model is divided over several devices."""


# The head decides near ties; and it may be tied to the embedding, which bitsandbytes cannot
# quantize.
# Routers and gates choose among experts, are small, and some have a single output. Routers that are
# no layers, as most are, are not quantized anyway.
FULL_PRECISION = (
    "lm_head",
    "shared_expert_gate",
    "router.gate",
    "router.layer",
    "router.proj",
    "gate.wg",
)


@dataclass(frozen=True)
class Quantization:
    """One way to quantize weights while they are loaded.

    Attributes:
        bits: the number by which tasks and configurations ask for it.
        name: of the number format.
        bytes_per_weight: size of a quantized weight, large scales included.
        full_precision: modules that keep their dtype, beside the vision tower and its projector
            (`engine.loading.families`): those whose name is one of these, or ends with it.
        splits: how a model in it may be divided over devices; the first is the default.
        transformers_config: makes the ``quantization_config`` of ``from_pretrained`` from the dtype
            of the arithmetic and the names of the modules that keep theirs.
        layer: makes a linear layer of a weight [out, in] and a bias [out] or None, which are no
            layer's.
    """

    bits: QuantizeBits
    name: str
    bytes_per_weight: float
    full_precision: tuple[str, ...]
    splits: tuple[Split, ...]
    transformers_config: Callable[[Any, Sequence[str]], Any]
    layer: Callable[[Any, Any], Any]

    @property
    def label(self) -> str:
        """Its usual name, such as INT4."""
        return str(quantization_label(self.bits))
