"""A tokenizer from a SentencePiece ``tokenizer.model``, without the sentencepiece library.

transformers can build one, but needs that library only to read the file, which is a protocol
buffer. This module reads it with transformers' own definition, and refuses settings that it would
not honour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges
from transformers.utils.hub import cached_file

from schema.errors import ModelInvalid

_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _USER_DEFINED = 1, 4  # SentencePiece.Type


class SentencePieceTokenizer(LlamaTokenizer):
    """A byte-fallback BPE tokenizer made from ``tokenizer.model``.

    Text between special tokens is encoded on its own, as a tokenizer around the sentencepiece
    library does it; the file says whether such a text begins with a space. If it does, the file's
    user-defined symbols are ordinary text here, unless ``tokenizer_config.json`` lists them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Llama's own way leaves the space out before a text that begins with one.
        prefix = [normalizers.Prepend("▁")] if self.add_prefix_space else []
        backend: Any = self._tokenizer
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None

    @classmethod
    def convert_to_native_format(
        cls, trust_remote_code: Any = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Replace the file by its vocabulary and merges.

        Raises:
            ModelInvalid: the file is damaged, or is not a byte-fallback BPE without normalization.
        """
        model = _read(Path(kwargs.pop("vocab_file")))
        # A configuration may rename a piece that was reserved for such a use.
        added = {int(i): str(t) for i, t in (kwargs.get("added_tokens_decoder") or {}).items()}
        vocabulary = {added.get(i, piece.piece): i for i, piece in enumerate(model.pieces)}
        merged = {piece.piece for piece in model.pieces if piece.type == _NORMAL}
        prefix = bool(model.normalizer_spec.add_dummy_prefix)
        symbols = [
            AddedToken(piece.piece, normalized=False, special=False)
            for i, piece in enumerate(model.pieces)
            # sentencepiece finds none that has a space, which it has replaced by then
            if piece.type == _USER_DEFINED and i not in added and " " not in piece.piece
        ]
        return {
            **kwargs,
            "vocab": vocabulary,
            "merges": generate_merges(vocabulary, skip_tokens=vocabulary.keys() - merged),
            "add_prefix_space": prefix,
            "additional_special_tokens": [
                *(kwargs.get("additional_special_tokens") or []),
                *([] if prefix else symbols),
            ],
        }


def _read(path: Path) -> Any:
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own DecodeError, and what lies below it
        raise ModelInvalid(f"{path.name} is not a SentencePiece model: {error}") from error
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    wanted = {
        "is byte-pair encoding": trainer.model_type == _BPE,
        "falls back to bytes": trainer.byte_fallback,
        "keeps repeated spaces": not normalizer.remove_extra_whitespaces,
        "marks spaces": normalizer.escape_whitespaces,
        "has the mark before a word": not trainer.treat_whitespace_as_suffix,
        "does not rewrite characters": not normalizer.precompiled_charsmap,
    }
    if missing := [rule for rule, holds in wanted.items() if not holds]:
        raise ModelInvalid(
            f"{path.name}: this engine reads a SentencePiece model only if it "
            f"{', '.join(missing)}; save the tokenizer as tokenizer.json"
        )
    return model


def _check_ids(model: str, tokenizer: SentencePieceTokenizer) -> None:
    """Check ids: tokenizers numbers added tokens in order and ignores the configuration's ids."""
    added: dict[Any, Any] = tokenizer.init_kwargs.get("added_tokens_decoder") or {}
    for number, token in added.items():
        if tokenizer.convert_tokens_to_ids(str(token)) != int(number):
            raise ModelInvalid(
                f"model {model!r} has a tokenizer whose token {str(token)!r} cannot have its "
                f"number {number}: save the tokenizer as tokenizer.json"
            )


def load_sentencepiece(model: str, **source: Any) -> SentencePieceTokenizer | None:
    """The tokenizer of a repository that has ``tokenizer.model`` and no ``tokenizer.json``.

    Args:
        model: hub id or directory.
        source: revision and the like.

    Returns:
        None where the repository has other files.
    """
    source = {key: value for key, value in source.items() if key != "trust_remote_code"}
    optional = {**source, "_raise_exceptions_for_missing_entries": False}
    if cached_file(model, "tokenizer.json", **optional) is not None:
        return None
    if cached_file(model, "tokenizer.model", **optional) is None:
        return None
    tokenizer = SentencePieceTokenizer.from_pretrained(model, **source)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    _check_ids(model, tokenizer)
    return tokenizer
