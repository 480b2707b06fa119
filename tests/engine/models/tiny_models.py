"""Tiny random checkpoints, saved like a hub repository, for the real loading code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GotOcr2ImageProcessorPil,
    GPT2Config,
    GPT2LMHeadModel,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Kind = Literal["qwen2", "qwen3", "llama", "mistral", "gpt2", "gemma3", "phi3", "internvl"]

TEXT_KINDS: tuple[Kind, ...] = ("qwen2", "qwen3", "llama", "mistral", "gpt2", "gemma3", "phi3")

EOS = "<eos>"
IMAGE = "<IMG_CONTEXT>"
IMAGE_SIZE = 32

_SPECIAL = (EOS, "<img>", "</img>", IMAGE, "<video>")
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Far from uniform logits: a test must not pass because every token is equally likely.
    "initializer_range": 0.2,
}

CHAT_TEMPLATE = (
    "{%- for message in messages -%}[{{ message.role }}]"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for block in message.content -%}"
    "{%- if block.type == 'image' -%}" + IMAGE + "{%- else -%}{{ block.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}[assistant]"
)


def byte_tokenizer() -> Any:
    """One token a byte, plus special tokens: every string round-trips, every id decodes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": IMAGE,
            "video_token": "<video>",
        },
    )


def save_tiny_model(kind: Kind, directory: Path, *, seed: int = 0) -> None:
    """Save a random model of one kind with its tokenizer into ``directory``."""
    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**_SIZES, **ids))
    elif kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**_SIZES, **ids, head_dim=16))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**_SIZES, **ids))
    elif kind == "mistral":  # every layer looks back 24 tokens
        model = MistralForCausalLM(MistralConfig(**_SIZES, **ids, sliding_window=24))
    elif kind == "gemma3":  # layers that look back 24 tokens and layers that see everything
        layers = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(
                **_SIZES, **ids, head_dim=16, sliding_window=24, layer_types=layers, pad_token_id=0
            )
        )
    elif kind == "phi3":
        model = Phi3ForCausalLM(Phi3Config(**_SIZES, **ids, pad_token_id=0))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                n_embd=64, n_layer=2, n_head=4, n_positions=512, initializer_range=0.2, **ids
            )
        )
    else:
        model = _internvl(tokenizer, ids)
        tokenizer.chat_template = CHAT_TEMPLATE
        _save_processor(directory)
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _internvl(tokenizer: Any, ids: dict[str, Any]) -> Any:
    vision = InternVLVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[IMAGE_SIZE, IMAGE_SIZE],
        patch_size=[8, 8],
        layer_scale_init_value=1.0,
        initializer_range=0.3,
    )
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision.to_dict(),
            text_config=Qwen2Config(**_SIZES, **ids).to_dict(),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            image_seq_length=4,
            downsample_ratio=0.5,
        )
    )


def _save_processor(directory: Path) -> None:
    """The processor files of an InternVL repository: up to 4 tiles and a thumbnail an image."""
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    image_processor.save_pretrained(directory)
    (directory / "processor_config.json").write_text(
        json.dumps({"processor_class": "InternVLProcessor", "image_seq_length": 4})
    )
