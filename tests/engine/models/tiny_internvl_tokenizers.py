"""Tiny tokenizers in the files of the original InternVL repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tokenizers import pre_tokenizers
from transformers.convert_slow_tokenizer import import_protobuf

Language = Literal["qwen2", "qwen3", "qwen3_moe", "gpt_oss", "internlm3", "internlm2"]

QWEN: tuple[Language, ...] = ("qwen2", "qwen3", "qwen3_moe", "gpt_oss")
ADDED = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "<box>")
HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")  # of gpt-oss
BYTES_END = 3 + 256  # in InternLM's vocabulary: after the control tokens


def vocabulary_size(language: Language) -> int:
    """Tokens of a tiny tokenizer."""
    return first_added(language) + len(ADDED) + len(HARMONY)


def first_added(language: Language) -> int:
    return 257 if language in QWEN else len(_pieces())


def save_qwen_tokenizer(directory: Path) -> None:
    """One token a byte, in Qwen's files: no tokenizer.json, a template that knows text only."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    write_json(directory / "vocab.json", {character: i for i, character in enumerate(alphabet)})
    (directory / "merges.txt").write_text("#version: 0.2\n")
    added = ("<|endoftext|>", *ADDED, *HARMONY)
    write_json(directory / "added_tokens.json", {token: 256 + i for i, token in enumerate(added)})
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": _added_tokens(256, added),
            "additional_special_tokens": list(ADDED),
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        },
    )


def _pieces() -> list[tuple[str, int]]:
    """Pieces and types of a tiny SentencePiece model: control, bytes, words."""
    words = ["▁", "a", "b", "c", "ab", "▁a", "▁ab", "abc", "▁abc", "l", "o", "lo", "▁lo"]
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    return pieces + [(word, 1) for word in words]


def sentencepiece_model(**normalizer: Any) -> Any:
    """The SentencePiece model of `_pieces`, as a protocol buffer."""
    model = import_protobuf().ModelProto()
    for number, (piece, kind) in enumerate(_pieces()):
        model.pieces.add(piece=piece, score=-float(number), type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    settings = {"add_dummy_prefix": False, "remove_extra_whitespaces": False} | normalizer
    for key, value in settings.items():
        setattr(model.normalizer_spec, key, value)
    return model


def save_internlm_tokenizer(directory: Path) -> None:
    """InternLM's files: a SentencePiece model and a tokenizer class of the repository's own."""
    (directory / "tokenizer.model").write_bytes(sentencepiece_model().SerializeToString())
    control = ("<unk>", "<s>", "</s>")
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "InternLM3Tokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_own.InternLM3Tokenizer", None]},
            "added_tokens_decoder": _added_tokens(0, control)
            | _added_tokens(first_added("internlm3"), ADDED),
            "additional_special_tokens": list(ADDED),
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "</s>",
            "unk_token": "<unk>",
        },
    )


def _added_tokens(first: int, tokens: tuple[str, ...]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        str(first + i): {"content": token, "special": True, **flags}
        for i, token in enumerate(tokens)
    }


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
