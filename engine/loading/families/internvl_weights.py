"""The weights of an original InternVL under transformers' names, translated while they are loaded.

transformers' own mechanism does it, so that sharding, placement, dtype and quantization on load
work as for every checkpoint. The patterns do not match names of transformers' layout.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import InternVLForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    WeightConverter,
    WeightRenaming,
)

_TOWER = r"^vision_model\.encoder\.layers\.(\d+)\."
_NATIVE_TOWER = r"model.vision_tower.encoder.layer.\1."
_DECODER = r"^language_model\.model\.layers\.(\d+)\."
_NATIVE_DECODER = r"language_model.model.layers.\1."

# Every original name begins with one of these; the language model's other names are those of its
# family, which transformers knows already.
_RENAMINGS = {
    r"^vision_model\.embeddings\.class_embedding": "model.vision_tower.embeddings.cls_token",
    r"^vision_model\.embeddings\.patch_embedding\.": (
        "model.vision_tower.embeddings.patch_embeddings.projection."
    ),
    r"^vision_model\.embeddings\.position_embedding": (
        "model.vision_tower.embeddings.position_embeddings"
    ),
    _TOWER + r"attn\.proj\.": _NATIVE_TOWER + "attention.projection_layer.",
    _TOWER + r"attn\.q_norm\.": _NATIVE_TOWER + "attention.q_norm.",
    _TOWER + r"attn\.k_norm\.": _NATIVE_TOWER + "attention.k_norm.",
    _TOWER + r"attn\.qkv\.": _NATIVE_TOWER + "attention.qkv.",
    _TOWER + r"norm1\.": _NATIVE_TOWER + "layernorm_before.",
    _TOWER + r"norm2\.": _NATIVE_TOWER + "layernorm_after.",
    _TOWER + r"ls1": _NATIVE_TOWER + "lambda_1",
    _TOWER + r"ls2": _NATIVE_TOWER + "lambda_2",
    _TOWER + r"mlp\.": _NATIVE_TOWER + "mlp.",
    r"^mlp1\.0\.": "model.multi_modal_projector.layer_norm.",
    r"^mlp1\.1\.": "model.multi_modal_projector.linear_1.",
    r"^mlp1\.3\.": "model.multi_modal_projector.linear_2.",
    # InternLM2 (InternVL 2.5, and InternVL3-9B, whose InternLM3 is stored under these names)
    r"^language_model\.model\.tok_embeddings\.": "language_model.model.embed_tokens.",
    r"^language_model\.output\.": "language_model.lm_head.",
    _DECODER + r"attention\.wo\.": _NATIVE_DECODER + "self_attn.o_proj.",
    _DECODER + r"attention_norm\.": _NATIVE_DECODER + "input_layernorm.",
    _DECODER + r"ffn_norm\.": _NATIVE_DECODER + "post_attention_layernorm.",
    _DECODER + r"feed_forward\.w1\.": _NATIVE_DECODER + "mlp.gate_proj.",
    _DECODER + r"feed_forward\.w2\.": _NATIVE_DECODER + "mlp.down_proj.",
    _DECODER + r"feed_forward\.w3\.": _NATIVE_DECODER + "mlp.up_proj.",
}


class SplitGroups(ConversionOps):
    """InternLM2's fused attention weight as three.

    Its rows are groups, one for each key/value head: the group's query heads, its key head, its
    value head, each ``head_dim`` rows.
    """

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """[groups * (queries + 2) * head_dim, hidden] -> queries, keys, values."""
        (fused,) = next(iter(input_dict.values()))
        config = kwargs["config"].get_text_config()
        queries = config.num_attention_heads // config.num_key_value_heads
        groups = fused.unflatten(0, (config.num_key_value_heads, queries + 2, -1))
        parts = groups[:, :queries], groups[:, queries], groups[:, queries + 1]
        hidden = fused.shape[1]
        tensors = (part.reshape(-1, hidden).clone() for part in parts)
        return dict(zip(target_patterns, tensors, strict=True))


class OriginalInternVL(InternVLForConditionalGeneration):
    """transformers' InternVL, whose checkpoints have the original names.

    A class of its own, because transformers looks translations up by it: nothing changes for models
    of transformers' layout, not even how they are saved.
    """


_CONVERTERS = (
    WeightConverter(
        "attention.qkv",
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        operations=[Chunk(dim=0)],
    ),
    WeightConverter(
        "attention.wqkv",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[SplitGroups()],
    ),
)

register_checkpoint_conversion_mapping(
    OriginalInternVL.__name__,
    [
        *(WeightRenaming(source, target) for source, target in _RENAMINGS.items()),
        *_CONVERTERS,
        *(get_checkpoint_conversion_mapping("internvl") or ()),
    ],
    overwrite=True,  # when the module is loaded again
)
