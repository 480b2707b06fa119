"""Models of known geometries with random weights, for benchmarks and for trying a machine.

Speed does not depend on what the weights say, but the comparison of answers does: with a tokenizer
that knows every id of the vocabulary, every token shows in the text.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

_SEED = 20260101
_MARKER = "benchmark.json"
_WORD_LETTERS = 4


@dataclass(frozen=True)
class Geometry:
    """The shape of a decoder, as its HuggingFace configuration names it; ``more`` are the fields
    that only its architecture has.
    """

    architecture: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    rope_theta: float
    # Far enough from uniform logits that answers are neither ties nor one token over and over.
    initializer_range: float = 0.02
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that the KV cache holds for one token, over all layers."""
        head_dim = self.hidden_size // self.num_attention_heads
        return 2 * self.num_hidden_layers * self.num_key_value_heads * head_dim


GEOMETRIES = {
    "qwen2.5-0.5b": Geometry("qwen2", 896, 24, 14, 2, 4864, 151936, True, 1e6),
    "llama-8b": Geometry("llama", 4096, 32, 32, 8, 14336, 128256, False, 5e5),
    "llama-0.5b": Geometry("llama", 1536, 16, 12, 4, 4608, 32000, False, 5e5),  # 1.08 GB in bf16
    # 24 small experts, of which a token takes 4: 470 million parameters.
    "qwen3-moe-0.5b": Geometry(
        *("qwen3_moe", 768, 12, 12, 4, 2048, 151936, True, 1e6),
        more={
            "head_dim": 64,
            "num_experts": 24,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 512,
            "norm_topk_prob": True,
        },
    ),
    # 18 gated delta nets and 6 layers of attention: 480 million parameters.
    "qwen3.5-0.5b": Geometry(
        *("qwen3_5_text", 1024, 24, 8, 2, 2816, 151936, True, 1e6),
        more={
            "head_dim": 128,
            **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 8),
            **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 128),
        },
    ),
    "tiny": Geometry("qwen2", 128, 4, 4, 2, 384, 4096, True, 1e6, initializer_range=0.1),
}


def word_tokenizer(
    vocab_size: int, special_tokens: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """One token for each byte, and a word of its own for every further id.

    There are no merges, so that text is always cut into bytes; only answers hold words. All have
    the same length, so that different ids give different texts.

    Args:
        vocab_size: how many ids there are.
        special_tokens: tokens that take the last ids, in this order, each by the name of the
            tokenizer's attribute for it.
    """
    special = dict(special_tokens or {})
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for token_id in range(len(vocab), vocab_size - len(special)):
        vocab["Ġ" + _word(token_id)] = token_id
    for token in special.values():
        vocab[token] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=special)


def _word(number: int) -> str:
    letters = []
    for _ in range(_WORD_LETTERS):
        number, letter = divmod(number, len(string.ascii_lowercase))
        letters.append(string.ascii_lowercase[letter])
    return "".join(reversed(letters))


def save_model(name: str, dtype: str, directory: str, shard_bytes: int | None = None) -> None:
    """Save a random model of a geometry; leaves what an earlier call has saved there.

    Args:
        name: of the geometry.
        dtype: of the weights.
        directory: it is made.
        shard_bytes: the largest file of weights; None leaves that to transformers.
    """
    geometry = GEOMETRIES[name]
    config = decoder_config(geometry)

    def make() -> tuple[Any, ...]:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        return model, word_tokenizer(geometry.vocab_size)

    options = {"max_shard_size": shard_bytes} if shard_bytes else {}
    save_once(Path(directory), {"geometry": asdict(geometry), "dtype": dtype}, make, **options)


def save_once(
    path: Path, wanted: Mapping[str, Any], make: Callable[[], tuple[Any, ...]], **options: Any
) -> None:
    """Make and save a model and what belongs to it, unless an earlier call has.

    Args:
        path: the folder; it is made.
        wanted: JSON-able, says what is made.
        make: returns the model, then its tokenizer and such. Weights are the same every time, and
            are made where that is fast.
        options: of the model's `save_pretrained`.

    Raises:
        ValueError: the folder holds something else.
    """
    marker = path / _MARKER
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise ValueError(f"{path} holds something else: name an empty or a new folder")
    torch.manual_seed(_SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model, *parts = make()
    transformers_logging.disable_progress_bar()
    model.generation_config.do_sample = False
    model.save_pretrained(path, **options)
    for part in parts:
        part.save_pretrained(path)
    transformers_logging.enable_progress_bar()  # it is the whole process's
    marker.write_text(json.dumps(wanted))


def decoder_config(geometry: Geometry) -> PreTrainedConfig:
    """A geometry as transformers knows it."""
    fields: dict[str, Any] = asdict(geometry)
    fields |= fields.pop("more")
    architecture = fields.pop("architecture")
    rope_theta = fields.pop("rope_theta")
    # No end of sequence: every answer has exactly the tokens that were asked for.
    fields |= {
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
    }
    config: PreTrainedConfig = CONFIG_MAPPING[architecture](**fields)
    return config


def weight_bytes_per_step(directory: str, geometry: Geometry, itemsize: int) -> int:
    """Bytes of weights that one decode step has to read.

    That is all of them, but for an embedding table of its own, of which it reads only a few rows.
    """
    total = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    table = 0 if geometry.tie_word_embeddings else geometry.vocab_size * geometry.hidden_size
    return total - table * itemsize
