"""Tiny random vision-language checkpoints, one a family, saved as hub repositories are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

VisionKind = Literal[
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_onevision",
    "smolvlm",
    "idefics3",
    "gemma3_vision",
]
VISION_KINDS: tuple[VisionKind, ...] = get_args(VisionKind)

BOS = "<bos>"
EOS = "<eos>"
SIDE = 32  # of the square that most towers see
GEMMA_TOKENS = 16  # of an image; more than the 8 of the smallest chunk in the tests

_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_TILE_TOKENS = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<row_1_col_1>",
    "<row_1_col_2>",
)
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "initializer_range": 0.3,
}
_QWEN_TOWER: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "initializer_range": 0.3,
}
_QWEN_ROPE: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 3, 3],
}


def chat_template(image: str) -> str:
    """A template that writes ``image`` for each image, and the begin token where Gemma does."""
    return (
        "{%- for message in messages -%}[{{ message.role }}]"
        "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
        "{%- for block in message.content -%}"
        "{%- if block.type == 'image' -%}" + image + "{%- else -%}{{ block.text }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{%- endfor -%}[assistant]"
    )


def tokenizer(names: dict[str, str], others: tuple[str, ...], *, adds_bos: bool) -> Any:
    """One token a byte, plus special tokens; ``names`` become its attributes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BOS, EOS, *names.values(), *others])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=EOS, extra_special_tokens=names
    )


class _Save:
    """What the builders below share: a directory, a tokenizer, and the ids of its tokens."""

    def __init__(self, directory: Path, made: Any, image: str, template: str) -> None:
        self.directory = directory
        self.tokenizer = made
        self.tokenizer.chat_template = chat_template(template)
        self.ids: dict[str, Any] = {
            "vocab_size": len(made),
            "bos_token_id": 256,
            "eos_token_id": 257,
        }
        self.image_id = made.convert_tokens_to_ids(image)

    def id_of(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def processor(self, name: str, image_processor: Any, **settings: Any) -> None:
        image_processor.save_pretrained(self.directory)
        path = self.directory / "processor_config.json"
        path.write_text(json.dumps({"processor_class": name, **settings}))

    def model(self, model: Any) -> None:
        model.generation_config.pad_token_id = self.tokenizer.eos_token_id
        model.generation_config.eos_token_id = self.tokenizer.eos_token_id
        model.save_pretrained(self.directory)
        self.tokenizer.save_pretrained(self.directory)


def _qwen(kind: str, name: str, tower: dict[str, Any]) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
        made = tokenizer(names, _QWEN_TOKENS[:2], adds_bos=False)
        save = _Save(
            directory, made, "<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>"
        )
        text = _TEXT | save.ids | {"rope_parameters": _QWEN_ROPE}
        if kind == "qwen3_vl":
            text |= {"head_dim": 16}
        config = getattr(transformers, f"{name}Config")(
            text_config=text,
            vision_config=_QWEN_TOWER | tower,
            image_token_id=save.image_id,
            video_token_id=save.id_of("<|video_pad|>"),
            vision_start_token_id=save.id_of("<|vision_start|>"),
            vision_end_token_id=save.id_of("<|vision_end|>"),
        )
        save.model(getattr(transformers, f"{name}ForConditionalGeneration")(config))
        save.processor(
            f"{name}Processor",
            transformers.Qwen2VLImageProcessorPil(
                patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
            ),
        )

    return build


def _llava(directory: Path) -> None:
    """Its tokenizer adds a begin token that its template does not write, as LLaVA 1.5's does."""
    made = tokenizer({"image_token": "<image>"}, (), adds_bos=True)
    save = _Save(directory, made, "<image>", "<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_TOWER).to_dict(),
        text_config=transformers.LlamaConfig(**_TEXT, **save.ids).to_dict(),
        image_token_index=save.image_id,
        image_seq_length=16,
    )
    save.model(transformers.LlavaForConditionalGeneration(config))
    save.processor(
        "LlavaProcessor",
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_onevision(directory: Path) -> None:
    names = {"image_token": "<image>", "video_token": "<video>"}
    save = _Save(directory, tokenizer(names, (), adds_bos=False), "<image>", "<image>")
    pinpoints = [[SIDE * y, SIDE * x] for y in (1, 2) for x in (1, 2)]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**_TOWER, vision_use_head=False).to_dict(),
        text_config=transformers.Qwen2Config(**_TEXT, **save.ids).to_dict(),
        image_token_index=save.image_id,
        video_token_index=save.id_of("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    save.model(transformers.LlavaOnevisionForConditionalGeneration(config))
    save.processor(
        "LlavaOnevisionProcessor",
        transformers.LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints
        ),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def _tiles(name: str) -> Callable[[Path], None]:
    """SmolVLM and Idefics3: rows of tiles, with text between them."""

    def build(directory: Path) -> None:
        names = {"image_token": "<image>"}
        made = tokenizer(names, _TILE_TOKENS[1:], adds_bos=False)
        save = _Save(directory, made, "<image>", "<image>")
        config = getattr(transformers, f"{name}Config")(
            vision_config=_TOWER,
            text_config=transformers.LlamaConfig(**_TEXT, **save.ids).to_dict(),
            image_token_id=save.image_id,
            scale_factor=2,
        )
        save.model(getattr(transformers, f"{name}ForConditionalGeneration")(config))
        save.processor(
            f"{name}Processor",
            getattr(transformers, f"{name}ImageProcessorPil")(
                size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
            ),
            image_seq_len=4,
        )

    return build


def _gemma3(directory: Path) -> None:
    """Layers that look back 24 tokens and layers that see everything."""
    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"}
    save = _Save(directory, tokenizer(names, (), adds_bos=True), "<image_soft_token>", "<boi>")
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**_TOWER, vision_use_head=False).to_dict(),
        text_config=transformers.Gemma3TextConfig(
            **_TEXT,
            **save.ids,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"],
            pad_token_id=0,
            tie_word_embeddings=False,
        ).to_dict(),
        mm_tokens_per_image=GEMMA_TOKENS,
        boi_token_index=save.id_of("<boi>"),
        eoi_token_index=save.id_of("<eoi>"),
        image_token_index=save.image_id,
        tie_word_embeddings=False,
    )
    model: Any = transformers.Gemma3ForConditionalGeneration(config)
    projector = model.model.multi_modal_projector  # starts as zeros, which would hide the images
    torch.nn.init.normal_(projector.mm_input_projection_weight, std=0.2)
    save.model(model)
    save.processor(
        "Gemma3Processor",
        transformers.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        image_seq_length=GEMMA_TOKENS,
    )


_BUILDERS: dict[VisionKind, Callable[[Path], None]] = {
    "qwen2_vl": _qwen("qwen2_vl", "Qwen2VL", {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
    "qwen2_5_vl": _qwen(
        "qwen2_5_vl",
        "Qwen2_5_VL",
        {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": _qwen(
        "qwen3_vl",
        "Qwen3VL",
        {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "smolvlm": _tiles("SmolVLM"),
    "idefics3": _tiles("Idefics3"),
    "gemma3_vision": _gemma3,
}


def save_tiny_vision_model(kind: VisionKind, directory: Path, *, seed: int = 0) -> None:
    """Save a random model of one family with its tokenizer and processor into ``directory``."""
    torch.manual_seed(seed)
    _BUILDERS[kind](directory)
