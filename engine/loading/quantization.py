"""INT8 and NF4 by bitsandbytes: how, and what is left in full precision."""

from __future__ import annotations

import logging

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from engine.config import EngineConfig
from schema.errors import ModelInvalid

# Left in full precision under quantization: the head decides near ties (and may be tied to the
# embedding, which bitsandbytes cannot quantize), the vision tower and its projector are small.
_UNQUANTIZED_MODULES = (
    "lm_head",
    "model.vision_tower",
    "model.vision_model",
    "model.visual",
    "model.multi_modal_projector",
    "model.connector",
)


def quantization_config(
    config: EngineConfig, hf_config: PreTrainedConfig
) -> BitsAndBytesConfig | None:
    """How transformers quantizes the weights as it reads them; None if it does not.

    Raises:
        ModelInvalid: the checkpoint is quantized already.
    """
    if config.quantize_bits is None:
        return None
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ModelInvalid(f"model {config.name!r} is quantized already: leave quantize_bits out")
    # These two warn at import about an optional kernel package, and at every single call about
    # arithmetic in float16, which is what INT8 means here (docs/architecture.md).
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if config.quantize_bits == 4:
        own = hf_config.get_text_config().dtype or torch.bfloat16
        dtype = own if config.dtype == "auto" else getattr(torch, config.dtype)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(_UNQUANTIZED_MODULES),
        )
    # Threshold 0 turns the outlier columns off: LLM.int8 picks them over the whole batch, so that
    # one task would change another's bits.
    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=0.0,
        llm_int8_skip_modules=list(_UNQUANTIZED_MODULES),
    )
