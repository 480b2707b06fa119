"""The library reads a model's tokens as the model's tokenizer writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.loading.families.sentencepiece import load_sentencepiece
from engine.sampling.grammar import Grammar, GrammarCompiler
from engine.sampling.grammar_mask import apply_token_bitmask
from schema.errors import TaskArgsInvalid
from schema.structured import RegexForm
from tests.engine.models.tiny_internvl_tokenizers import (
    save_internlm_tokenizer,
    save_qwen_tokenizer,
)
from tests.engine.models.tiny_models import byte_tokenizer

TEXTS = ("abc lo", '{"a": [1, "é\\n"]}', "日本 \U0001f600", "ab  ab\n\tlo", "x")


def tokenizers(directory: Path) -> dict[str, Any]:
    qwen, internlm = directory / "qwen", directory / "internlm"
    for folder, save in ((qwen, save_qwen_tokenizer), (internlm, save_internlm_tokenizer)):
        folder.mkdir()
        save(folder)
    return {
        "bytes": byte_tokenizer(),
        "demo": AutoTokenizer.from_pretrained("demo/model"),
        "qwen": AutoTokenizer.from_pretrained(qwen),
        "sentencepiece": load_sentencepiece(str(internlm)),
    }


def allowed(matcher: Any) -> set[int]:
    row = torch.full((matcher.num_words,), -1, dtype=torch.int32)
    matcher.fill(row)
    bits = np.unpackbits(row.numpy().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def literally(text: str) -> Grammar:
    return Grammar.of(RegexForm(type="regex", pattern=re.escape(text).replace("\n", "n")))


def test_a_text_is_allowed_as_it_is_tokenized(tmp_path: Path) -> None:
    for name, tokenizer in tokenizers(tmp_path).items():
        end = tokenizer.eos_token_id
        compiler = GrammarCompiler(tokenizer, [end])
        special = set(tokenizer.all_special_ids)
        for text in TEXTS:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            matcher = compiler.compile(literally(text))
            for token in ids:
                assert not matcher.done
                assert token in allowed(matcher), (name, text)
                assert not allowed(matcher) & special, (name, text)
                matcher.accept(token)
            assert matcher.done, (name, text)


def test_the_end_is_allowed_where_the_answer_is_complete() -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    matcher = GrammarCompiler(tokenizer, [end]).compile(literally("a"))
    longer = GrammarCompiler(tokenizer, [end]).compile(
        Grammar.of(RegexForm(type="regex", pattern="a(bb)*"))
    )
    (a,), (b,) = (tokenizer(letter)["input_ids"] for letter in "ab")
    assert allowed(matcher) == allowed(longer) == {a}
    twin = longer.fork()
    for token, then in ((a, {b, end}), (b, {b}), (b, {b, end})):
        longer.accept(token)
        assert allowed(longer) == then
    assert allowed(twin) == {a}  # what one has accepted the other has not
    longer.accept(end)
    assert longer.done


@pytest.mark.parametrize("vocab", [40, 64, 70, 200])
def test_the_mask(vocab: int) -> None:
    """Fewer columns than bits, and more, as models with a padded vocabulary have them."""
    generator = np.random.default_rng(0)
    words = generator.integers(-(2**31), 2**31, (3, 2), dtype=np.int64).astype(np.int32)
    scores = torch.from_numpy(generator.normal(size=(3, vocab)).astype(np.float32))
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    expected = np.full((3, vocab), -np.inf, dtype=np.float32)
    for row in range(3):
        for column in range(min(vocab, 64)):
            if bits[row, column]:
                expected[row, column] = scores[row, column]
    assert torch.equal(
        apply_token_bitmask(scores, torch.from_numpy(words)), torch.from_numpy(expected)
    )


def test_tokenizers_that_cannot_be_constrained() -> None:
    words = Tokenizer(models.WordLevel(vocab={"a": 0, "<eos>": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    with pytest.raises(TaskArgsInvalid, match="not supported for this model"):
        GrammarCompiler(tokenizer, [1])
    with pytest.raises(TaskArgsInvalid, match="no token that ends"):
        GrammarCompiler(byte_tokenizer(), [])
