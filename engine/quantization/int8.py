"""INT8 by bitsandbytes: weights in 8 bits, a float32 scale for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.quantization.base import FULL_PRECISION, Quantization


def _transformers_config(_: Any, full_precision: Sequence[str]) -> Any:
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - see the package

    # Threshold 0 turns the outlier columns off: LLM.int8 chooses them over the whole batch, so that
    # one task would change another's bits.
    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=list(full_precision),
    )


def _layer(weight: Any, bias: Any) -> Any:
    from bitsandbytes import nn  # noqa: PLC0415 - see the package

    modules: Any = nn
    rows, columns = weight.shape
    layer = modules.Linear8bitLt(
        columns, rows, bias is not None, has_fp16_weights=False, threshold=0.0, device="meta"
    )
    data = weight.cpu().contiguous()  # it is quantized on its way from the host
    layer.weight = modules.Int8Params(data, requires_grad=False, has_fp16_weights=False)
    layer.weight = layer.weight.to(weight.device)
    layer.bias = bias
    return layer


INT8 = Quantization(
    bits=8,
    name="int8",
    bytes_per_weight=1.0,
    full_precision=FULL_PRECISION,
    splits=("layers",),
    transformers_config=_transformers_config,
    layer=_layer,
)
