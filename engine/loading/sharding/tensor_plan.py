"""Which parts of a model are split over the ranks: transformers' tensor parallel plan.

The plan of a model names a style for each of its layers. Most styles are replaced by our own
(`engine.loading.sharding.tensor_styles`), and what lies outside the language model is left whole.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import parse_local_safetensors_file_metadata
from transformers import PreTrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig

from engine.config import EngineConfig
from engine.loading.description import ModelDescription, describe_model
from engine.loading.sharding.tensor_styles import EMBEDDING, SUM, SUM_OF_WHOLE, WHOLE_OUTPUT
from engine.loading.snapshot import Snapshot
from schema.errors import ModelInvalid

_OUTPUTS = ("colwise",)  # a rank computes a part of the outputs, and keeps it
_INPUTS = ("rowwise",)  # a rank has a part of the inputs
# The styles of transformers with which the promise holds, and the styles that replace them.
_STYLES = {
    "colwise": "colwise",
    "colwise_gather_output": WHOLE_OUTPUT,
    "colwise_rep": WHOLE_OUTPUT,
    "rowwise": SUM,
    "rowwise_split_input": SUM_OF_WHOLE,
    "rowwise_rep": SUM_OF_WHOLE,
    "embedding_rowwise": EMBEDDING,
    "replicated_with_grad_allreduce": "replicated_with_grad_allreduce",
}
_WHOLE = "replicate"


def tensor_plan(config: EngineConfig, hf_config: PreTrainedConfig) -> DistributedConfig:
    """The plan for `from_pretrained`, found out on a model without memory.

    Args:
        config: of the engine.
        hf_config: the model's configuration.

    Raises:
        ModelInvalid: the model has no plan, one that the engine does not know, or sizes that do
            not divide by the number of devices.
    """
    described = describe_model(config, hf_config)
    plan: dict[str, str] = {}
    for name, style in described.tensor_parallel_plan.items():
        if not name.startswith((f"{described.decoder}.", "lm_head")):
            plan[name] = _WHOLE  # the vision tower runs on the first rank only
        elif style in _STYLES:
            plan[name] = _STYLES[style]
        else:
            raise _refused(config, f"its plan has the style {style!r}, which is not supported")
    if SUM not in plan.values() and SUM_OF_WHOLE not in plan.values():
        raise _refused(config, "transformers has no tensor parallel plan for it")
    _check_sizes(config, hf_config.get_text_config(), described)
    return DistributedConfig(tp_size=config.num_devices, tp_plan=plan)


def _check_sizes(config: EngineConfig, text: Any, described: ModelDescription) -> None:
    """Refuse sizes that would give the ranks parts of different sizes, or parts of a head."""
    plan, ranks = described.tensor_parallel_plan, config.num_devices
    sizes: dict[str, int] = {}
    if any(name.endswith(".k_proj") and style in _OUTPUTS for name, style in plan.items()):
        heads = text.num_attention_heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        sizes |= {"attention heads": heads, "key/value heads": kv_heads}
    for name, in_features, out_features in described.decoder_linears:
        style = next(
            (s for rule, s in plan.items() if rule.endswith(_generic(name)) and name), None
        )
        if style in _OUTPUTS:
            sizes.setdefault(f"outputs of {name.rpartition('.')[2]}", out_features)
        if style in _INPUTS:
            sizes.setdefault(f"inputs of {name.rpartition('.')[2]}", in_features)
    if odd := [f"{size} {what}" for what, size in sizes.items() if size % ranks]:
        raise _refused(config, f"it has {', '.join(odd)}, which {ranks} does not divide")


def refuse_packed(config: EngineConfig, published_as: str | None) -> None:
    """Refuse weights that are dequantized while they are loaded: a rank would read parts of blocks.

    Args:
        config: of the engine.
        published_as: the quantization of the checkpoint; None if it has none.
    """
    if published_as is not None:
        raise _refused(config, f"its weights are dequantized ({published_as}) while they are read")


def refuse_fused(config: EngineConfig, source: Snapshot) -> None:
    """Refuse weights that are stored as one and split up while they are loaded.

    A rank reads its slice of what is stored, which is not a slice of each part. Of the models with
    a plan only InternVLs with InternLM2's names are stored so (`internvl_weights`).
    """
    for file in source.weights:
        stored = parse_local_safetensors_file_metadata(source.directory / file).tensors
        if any(".attention.wqkv." in name for name in stored):
            raise _refused(config, "its queries, keys and values are stored as one")


def _generic(name: str) -> str:
    """A module's name as plans write it: ``layers.*.mlp.up_proj``."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _refused(config: EngineConfig, why: str) -> ModelInvalid:
    return ModelInvalid(
        f"model {config.name!r} cannot be split tensor by tensor over {config.num_devices} "
        f"devices: {why}; set split to 'layers', or take another number of devices"
    )


def refuse_without_batching(config: EngineConfig, problem: str | None) -> None:
    """`generate` runs in one process: a split model has to run with continuous batching."""
    if problem is not None:
        raise _refused(config, f"it does not run with continuous batching, because {problem}")
