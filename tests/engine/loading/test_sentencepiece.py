"""A tokenizer made from ``tokenizer.model`` gives the tokens that sentencepiece gives."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from engine.loading.families.sentencepiece import load_sentencepiece
from schema.errors import ModelInvalid
from tests.engine.models.tiny_internvl_tokenizers import sentencepiece_model

# Trained and encoded by the sentencepiece library; the file says how.
CASES = json.loads((Path(__file__).parent / "sentencepiece_cases.json").read_text())["cases"]


def load(directory: Path, model: bytes, **config: Any) -> Any:
    (directory / "tokenizer.model").write_bytes(model)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "InternLM3Tokenizer", "add_bos_token": True} | config)
    )
    return load_sentencepiece(str(directory))


def added(**tokens: int) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "special": True}
    return {
        "added_tokens_decoder": {
            str(number): {"content": f"<|{name}|>", "single_word": False, **flags}
            for name, number in tokens.items()
        }
    }


@pytest.mark.parametrize("case", CASES, ids=["as it is", "with a space in front"])
def test_tokens_are_sentencepieces(case: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load(tmp_path, base64.b64decode(case["model"]))
    for text, expected in case["encoded"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == expected, text
        assert tokenizer.decode(ids) == text
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 1


@pytest.mark.parametrize("case", CASES, ids=["as it is", "with a space in front"])
def test_text_between_special_tokens_is_encoded_on_its_own(
    case: dict[str, Any], tmp_path: Path
) -> None:
    """As a tokenizer around the library does: each text in a call of its own."""
    tokenizer = load(tmp_path, base64.b64decode(case["model"]), **added(end=480))
    for first, second in zip(case["encoded"][::2], case["encoded"][1::2], strict=False):
        ids = tokenizer(f"{first[0]}<|end|>{second[0]}", add_special_tokens=False)["input_ids"]
        assert ids == [*first[1], 480, *second[1]]


def test_a_reserved_piece_gets_the_name_of_the_configuration(tmp_path: Path) -> None:
    """InternLM2 reserves pieces and names them afterwards."""
    model = sentencepiece_model()
    reserved = len(model.pieces)
    model.pieces.add(piece="[UNUSED_TOKEN_1]", score=-float(reserved), type=4)
    tokenizer = load(tmp_path, model.SerializeToString(), **added(im_end=reserved))
    assert tokenizer("ab<|im_end|>")["input_ids"] == [1, tokenizer.vocab["ab"], reserved]
    assert reserved not in tokenizer("[UNUSED_TOKEN_1]")["input_ids"]


def test_a_number_that_a_token_cannot_have_is_refused(tmp_path: Path) -> None:
    model = sentencepiece_model().SerializeToString()
    with pytest.raises(ModelInvalid, match="999"):
        load(tmp_path, model, **added(im_end=999))


@pytest.mark.parametrize(
    "normalizer",
    [
        {"remove_extra_whitespaces": True},
        {"escape_whitespaces": False},
        {"precompiled_charsmap": b"nfkc"},
    ],
)
def test_what_would_not_be_honoured_is_refused(normalizer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match=r"tokenizer\.json"):
        load(tmp_path, sentencepiece_model(**normalizer).SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"version https://git-lfs"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match=r"tokenizer\.model"):
        load(tmp_path, content)


def test_other_repositories_are_left_alone(tmp_path: Path) -> None:
    assert load_sentencepiece(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load(tmp_path, b"") is None
