"""What the tiny vision-language models share: sizes, a tokenizer, and how they are saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS = "<bos>"
EOS = "<eos>"
SIDE = 32  # of the square that most towers see

Builder = Callable[[Path], None]
"""Saves a model with its tokenizer and processor into a directory."""

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
"""Of a language model."""

EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
"""Of a language model with experts, beside."""

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "initializer_range": 0.3,
}
"""Of a vision tower."""


def chat_template(image: str) -> str:
    """A template that writes ``image`` for each image, and the begin token where Gemma does."""
    return (
        "{%- for message in messages -%}[{{ message.role }}]"
        "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
        "{%- for block in message.content -%}"
        "{%- if block.type == 'image' -%}" + image + "{%- else -%}{{ block.text }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{%- endfor -%}[assistant]"
    )


def tokenizer(names: dict[str, str], others: Sequence[str] = (), *, adds_bos: bool = False) -> Any:
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
        tokenizer_object=made,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens=names,
    )


class Save:
    """A directory, a tokenizer, and the ids of its tokens."""

    def __init__(self, directory: Path, made: Any, image: str, template: str | None = None) -> None:
        """Begin a model.

        Args:
            directory: where it is saved.
            made: its tokenizer.
            image: the token that takes a feature.
            template: what the chat template writes for an image, if that is another text.
        """
        self.directory = directory
        self.tokenizer = made
        self.tokenizer.chat_template = chat_template(template or image)
        self.ids: dict[str, Any] = {
            "vocab_size": len(made),
            "bos_token_id": 256,
            "eos_token_id": 257,
        }
        self.image_id = self.id_of(image)

    def id_of(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def text(self, name: str, **more: Any) -> dict[str, Any]:
        """The configuration of a language model of transformers' class ``name``."""
        made = getattr(transformers, f"{name}Config")(**(TEXT | self.ids | more))
        return dict(made.to_dict())

    def processor(self, name: str, image_processor: Any, **settings: Any) -> None:
        image_processor.save_pretrained(self.directory)
        path = self.directory / "processor_config.json"
        path.write_text(json.dumps({"processor_class": name, **settings}))

    def model(self, name: str, config: Any) -> None:
        """Save a model of transformers' class ``name`` with random weights."""
        self.made(getattr(transformers, name)(config))

    def made(self, model: Any) -> None:
        """Save a model."""
        model.generation_config.pad_token_id = self.tokenizer.eos_token_id
        model.generation_config.eos_token_id = self.tokenizer.eos_token_id
        model.save_pretrained(self.directory)
        self.tokenizer.save_pretrained(self.directory)


def tower(name: str, **more: Any) -> dict[str, Any]:
    """The configuration of a vision tower of transformers' class ``name``."""
    return dict(getattr(transformers, f"{name}Config")(**(TOWER | more)).to_dict())
