"""Streamed text is the decoded text, for every family of tokenizers; stop strings are exact."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from engine.text.detokenizer import Detokenizer

TEXT = "the answer is a function of the task alone; naïve 🦊🦊 你好吗 你好, don't stop . the end !"
SPECIAL = ["<eos>", "<tool>"]
FAMILIES = ("bytes", "metaspace", "fallback", "wordpiece")

few = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def _byte_level() -> Tokenizer:
    """As GPT-2 and Qwen: merges of bytes, across the borders of characters too."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    return made


def _pieces() -> list[str]:
    words = TEXT.split()
    return sorted({"▁", *(f"▁{word}" for word in words), *TEXT.replace(" ", "")})


def _metaspace() -> Tokenizer:
    """As sentencepiece: a leading space belongs to the word, and the first one is dropped."""
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *((p, -float(len(p))) for p in _pieces())], 0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def _byte_fallback() -> Tokenizer:
    """As Llama 2: what is in no piece is spelled in bytes."""
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *_pieces()]
    made = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocab)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def _word_piece() -> Tokenizer:
    """As BERT: spaces between tokens unless they begin with ##."""
    words = {*TEXT.split(), *TEXT.replace(" ", "")}
    vocab = ["[UNK]", *sorted(words), *sorted(f"##{word}" for word in words)]
    made = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    return made


@cache
def family(name: str) -> Any:
    made = {
        "bytes": _byte_level,
        "metaspace": _metaspace,
        "fallback": _byte_fallback,
        "wordpiece": _word_piece,
    }[name]()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", additional_special_tokens=SPECIAL
    )


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def deltas(tokenizer: Any, ids: list[int], hidden: frozenset[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, [], hidden)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def random_ids(name: str) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(family(name)) - 1), max_size=30)


def spelled_ids() -> st.SearchStrategy[list[int]]:
    """Tokens of the byte fallback family, where bytes come as whole characters only.

    Its decoder takes back a character that invalid bytes follow; a stream cannot.
    """
    tokenizer = family("fallback")
    whole = st.integers(257, len(tokenizer) - 1).map(lambda i: [i])
    character = st.sampled_from("é你🦊\n").map(
        lambda c: [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in c.encode()]
    )
    return st.lists(whole | character, max_size=15).map(lambda parts: [*chain(*parts)])


@few
@given(st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_deltas_add_up_to_the_decoded_text(name: str, data: st.DataObject) -> None:
    ids = data.draw(spelled_ids() if name == "fallback" else random_ids(name))
    assert "".join(deltas(family(name), ids)) == decoded(family(name), ids)


@few
@given(st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_tokens_are_left_out(name: str, data: st.DataObject) -> None:
    tokenizer = family(name)
    ids = data.draw(spelled_ids() if name == "fallback" else random_ids(name))
    special = frozenset(id for id, t in tokenizer.added_tokens_decoder.items() if t.special)
    assert "".join(deltas(tokenizer, ids, special)) == decoded(tokenizer, ids)
    # One of them is shown, as transformers decodes what is left.
    hidden = special - {tokenizer.convert_tokens_to_ids("<tool>")}
    shown = tokenizer.decode(
        [id for id in ids if id not in hidden], clean_up_tokenization_spaces=False
    )
    assert "".join(deltas(tokenizer, ids, hidden)) == shown


@few
@given(st.data())
@pytest.mark.parametrize("name", ["bytes", "metaspace", "wordpiece"])
def test_forks_go_on_by_themselves(name: str, data: st.DataObject) -> None:
    """Text and stop strings of a fork are those of a detokenizer that has seen all its tokens."""
    tokenizer = family(name)
    ids, other = data.draw(random_ids(name)), data.draw(random_ids(name))
    middle = data.draw(st.integers(0, len(ids)))
    stops = [data.draw(st.text("abtheno你 ", min_size=1, max_size=3))]
    one = Detokenizer(tokenizer, stops)
    begun = "".join(one.push(i) for i in ids[:middle])
    fork = one.fork()
    for detokenizer, rest in ((fork, other), (one, ids[middle:])):
        text = begun + "".join(detokenizer.push(i) for i in rest) + detokenizer.flush()
        fresh = Detokenizer(tokenizer, stops)
        assert text == "".join(fresh.push(i) for i in ids[:middle] + rest) + fresh.flush()
        assert detokenizer.stopped == fresh.stopped


@few
@given(st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_many_tokens_at_once(name: str, data: st.DataObject) -> None:
    ids = data.draw(random_ids(name))
    detokenizer = Detokenizer(family(name), [])
    assert detokenizer.push(*ids) + detokenizer.flush() == decoded(family(name), ids)


@few
@given(st.lists(st.binary(min_size=1, max_size=4) | st.sampled_from("你🦊\ufffda").map(str.encode)))
def test_long_runs_of_bytes_that_are_no_text(pieces: list[bytes]) -> None:
    tokenizer = family("bytes")
    ids = byte_ids(tokenizer, b"".join(pieces * 4))
    assert "".join(deltas(tokenizer, ids)) == decoded(tokenizer, ids)
    run = byte_ids(tokenizer, "\ufffd".encode() * 100)
    given_out = deltas(tokenizer, run)
    assert "".join(given_out) == "\ufffd" * 100
    assert sum(map(bool, given_out)) > 3  # not all held back to the end


@pytest.mark.parametrize("name", ["bytes", "fallback"])
def test_characters_split_over_tokens_come_whole(name: str) -> None:
    tokenizer = family(name)
    text = "Καλημέρα 🦊👩‍👩‍👧 你好 नमस्ते"
    if name == "bytes":
        ids = byte_ids(tokenizer, text.encode())
    else:
        ids = [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in text.encode()]
    pieces = [piece for piece in deltas(tokenizer, ids) if piece]
    assert pieces == list(text)


def byte_ids(tokenizer: Any, raw: bytes) -> list[int]:
    """One token of a byte level tokenizer for each byte."""
    letters = bytes_to_unicode()
    return [tokenizer.convert_tokens_to_ids(letters[byte]) for byte in raw]


def stopped_after(tokenizer: Any, ids: list[int], stops: list[str]) -> int | None:
    """The number of tokens after which the detokenizer stops."""
    detokenizer = Detokenizer(tokenizer, stops)
    for count, token in enumerate(ids, 1):
        detokenizer.push(token)
        if detokenizer.stopped:
            return count
    return None


def first_completing(tokenizer: Any, ids: list[int], stops: list[str]) -> int | None:
    """The number of tokens whose text is the first to contain a stop string."""
    for count in range(1, len(ids) + 1):
        text = decoded(tokenizer, ids[:count])
        if any(stop in text for stop in stops):
            return count
    return None


@few
@given(st.data())
@pytest.mark.parametrize("name", ["bytes", "metaspace", "wordpiece"])
def test_stop_strings_are_found_with_the_token_that_completes_them(
    name: str, data: st.DataObject
) -> None:
    tokenizer = family(name)
    ids = data.draw(random_ids(name))
    text = decoded(tokenizer, ids)
    # Mostly a piece of the text itself; what decodes from invalid bytes is in no stop string.
    start = data.draw(st.integers(0, max(len(text) - 1, 0)))
    stop = text[start : start + data.draw(st.integers(1, 9))].replace("\ufffd", "")
    stops = [stop or "x", data.draw(st.text("ab then你", min_size=1, max_size=4))]
    assert stopped_after(tokenizer, ids, stops) == first_completing(tokenizer, ids, stops)


@pytest.mark.parametrize("stop", ["stop", " stop .", "好吗", "🦊🦊", "d", "the end !"])
def test_stop_strings_in_every_tokenization(stop: str) -> None:
    tokenizer = family("bytes")
    by_byte = byte_ids(tokenizer, TEXT.encode())
    for ids in (by_byte, tokenizer(TEXT)["input_ids"]):
        count = stopped_after(tokenizer, ids, [stop])
        assert count == first_completing(tokenizer, ids, [stop])
        assert stop in decoded(tokenizer, ids[:count])
