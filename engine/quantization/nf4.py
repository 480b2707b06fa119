"""NF4 by bitsandbytes: weights in 4 bits, a float32 scale for each 64 of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.quantization.base import FULL_PRECISION, Quantization

_ROWS = 32  # of a block in bitsandbytes' layout for CPUs


def _transformers_config(dtype: Any, full_precision: Sequence[str]) -> Any:
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - see the package

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(full_precision),
    )


def _layer(weight: Any, bias: Any) -> Any:
    from bitsandbytes import nn  # noqa: PLC0415 - see the package

    modules: Any = nn
    rows, columns = weight.shape
    layer = modules.Linear4bit(
        columns, rows, bias is not None, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
    )
    data = weight.contiguous()
    layer.weight = modules.Params4bit(data, requires_grad=False, quant_type="nf4", module=layer)
    layer.weight = layer.weight.to(weight.device)
    layer.bias = bias
    return layer


def keep_odd_layers(model: Any) -> None:
    """Leave out bitsandbytes' layout for CPUs where a layer's outputs are no multiple of 32.

    It refuses these in their first forward: the gates of delta nets and Mambas have as many outputs
    as the model has heads. Without it they take bitsandbytes' own way for all other processors.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.out_features % _ROWS:
            module.support_avx512bf16_for_cpu = False


NF4 = Quantization(
    bits=4,
    name="nf4",
    bytes_per_weight=0.5 + 4 / 64,
    full_precision=FULL_PRECISION,
    splits=("layers",),
    transformers_config=_transformers_config,
    layer=_layer,
)
