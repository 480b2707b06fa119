"""INT8 by bitsandbytes: weights in 8 bits, a float32 scale for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.quantization.base import Quantization


def _transformers_config(_: Any, full_precision: Sequence[str]) -> Any:
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - see the package

    # Threshold 0 turns the outlier columns off: LLM.int8 chooses them over the whole batch, so that
    # one task would change another's bits.
    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=list(full_precision),
    )


INT8 = Quantization(
    bits=8,
    name="int8",
    bytes_per_weight=1.0,
    # The head decides near ties; and it may be tied to the embedding, which bitsandbytes cannot
    # quantize.
    full_precision=("lm_head",),
    splits=("layers",),
    transformers_config=_transformers_config,
)
