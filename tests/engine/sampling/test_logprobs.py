"""Log probabilities: the model's own, in any batch, and equal streamed and whole."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine, EngineConfig
from engine.sampling.logprobs import Logprobs, TokenTexts
from schema import Task, TaskArgsInvalid, TaskResponse
from schema.answers.response import collect
from schema.generation import MAX_ANSWER_LOGPROBS
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_generate_fallback import OUTSIDE, fallback_engine, save_architecture
from tests.engine.models.tiny_models import Kind
from tests.engine.text.test_detokenizer import (
    FAMILIES,
    decoded,
    family,
    few,
    random_ids,
    spelled_ids,
)

TEXTS = ("Hi", "The engine must write what generate writes, for a prompt of several chunks too.")
SEVERAL: dict[str, Any] = {
    "logprobs": 5,
    "do_sample": True,
    "temperature": 2.5,
    "top_k": 0,
    "num_return_sequences": 3,
    "frequency_penalty": 1.5,
    "logit_bias": {"70": 4},
}


def task(text: str, **settings: Any) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": 20} | settings,
        seed=3,
    )


def check_against_the_model(directory: Path, text: str, response: TaskResponse, top: int) -> None:
    """Compare with a plain forward of prompt and answer, without a cache."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = tokenizer(text)["input_ids"]
    for choice in response["choices"]:
        listed = choice["logprobs"]
        answer = [token["token_id"] for token in listed]
        assert len(listed) > 3
        assert tokenizer.decode(answer, skip_special_tokens=True) == choice["message"]["content"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        want = logits.double().log_softmax(-1)
        for row, token in zip(want, listed, strict=True):
            assert token["logprob"] == pytest.approx(float(row[token["token_id"]]), abs=1e-4)
            best = token["top_logprobs"]
            given = [other["logprob"] for other in best]
            assert given == sorted(given, reverse=True)
            assert given == pytest.approx(row.topk(top).values.tolist(), abs=1e-4)
            assert given == pytest.approx([float(row[b["token_id"]]) for b in best], abs=1e-4)
            assert len({other["token_id"] for other in best}) == top


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_they_are_of_the_models_own_logits(
    kind: Kind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """Before temperature, penalties and bias, which change what is chosen."""
    for text in TEXTS:
        response = tiny_engine(kind).run_blocking(task(text, **SEVERAL))
        check_against_the_model(tiny_model(kind), text, response, 5)
    greedy = tiny_engine(kind).run_blocking(task("Hi", logprobs=1))["choices"][0]["logprobs"]
    for token in greedy:
        assert [token] == [{**best, "top_logprobs": [best]} for best in token["top_logprobs"]]


async def test_alone_and_under_load_streamed_and_whole(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2", dtype="bfloat16")
    settings: list[dict[str, Any]] = [SEVERAL, {"logprobs": 0}, {"logprobs": 20}, {"num_beams": 2}]
    settings += [{"do_sample": True, "stop_strings": ["a", "e", "\n"], "logprobs": 2}]
    wanted = [task(text, **one) for text in TEXTS for one in settings]
    alone = [engine.run_blocking(one) for one in wanted]

    async def streamed(one: Task) -> TaskResponse:
        return collect([chunk async for chunk in engine.stream(one)])

    together = await asyncio.gather(*map(streamed, wanted[::-1]), *map(engine.run, wanted))
    assert together == [*alone[::-1], *alone]
    for one, response in zip(wanted, alone, strict=True):
        asked = one.generation_config.logprobs
        for choice in response["choices"]:
            assert ("logprobs" in choice) == (asked is not None)
            assert {len(t["top_logprobs"]) for t in choice.get("logprobs", ())} <= {asked}


@pytest.mark.parametrize("own", [{}, {"guidance_scale": 1.5}], ids=["bloom", "guided"])
def test_in_the_fallback(own: dict[str, Any], tiny_model: TinyModel, tmp_path: Path) -> None:
    """Guidance runs a second forward, whose logits are not reported."""
    directory = tmp_path / "model"
    if own:
        shutil.copytree(tiny_model("qwen2"), directory)
        path = directory / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    else:
        directory.mkdir()
        save_architecture("bloom", OUTSIDE["bloom"], directory)
    settings = SEVERAL | {"num_return_sequences": 1 if own else 3}
    with closing(fallback_engine(directory)) as engine:
        chunks: list[Any] = []
        response = engine.run_blocking(task(TEXTS[1], **settings), chunks.append)
        assert collect(chunks) == response
        check_against_the_model(directory, TEXTS[1], response, 5)
        assert "logprobs" not in engine.run_blocking(task("Hi"))["choices"][0]


def test_an_end_of_sequence_token_is_not_listed(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("qwen2")
    end = engine._loaded.tokenizer.eos_token_id
    (at_once,) = engine.run_blocking(task("Hi", logprobs=2, logit_bias={str(end): 100}))["choices"]
    assert (at_once["logprobs"], at_once["finish_reason"]) == ([], "stop")
    sampled = {"do_sample": True, "num_return_sequences": 8, "logit_bias": {str(end): 3}}
    later = engine.run_blocking(task("Hi", logprobs=0, **sampled))
    listed = [len(choice["logprobs"]) for choice in later["choices"]]
    ended = [choice["finish_reason"] == "stop" for choice in later["choices"]]
    assert sum(listed) + sum(ended) == later["usage"]["completion_tokens"]
    assert any(number > 0 and stop for number, stop in zip(listed, ended, strict=True))
    # As an alternative it has its name, and no bytes, because it leaves none in the text.
    (first, *_) = engine.run_blocking(task("Hi", logprobs=20))["choices"][0]["logprobs"]
    texts = TokenTexts(engine._loaded.tokenizer)
    assert texts.entry(end, [-1.0])["token"] == "<eos>"
    assert texts.entry(end, [-1.0])["bytes"] is None
    assert len(first["top_logprobs"]) == 20


def test_what_is_refused(tiny_model: TinyModel, tiny_engine: TinyEngine, tmp_path: Path) -> None:
    """By the model's number of tokens, and by its own settings."""
    engine = tiny_engine("qwen2")
    size = engine._loaded.model.config.vocab_size
    engine.run_blocking(task("Hi", logit_bias={str(size - 1): 1}))
    with pytest.raises(TaskArgsInvalid, match=f"0 to {size - 1}") as caught:
        engine.run_blocking(task("Hi", logit_bias={"5": 1, str(size): 1}))
    assert caught.value.param == f"generation_config.logit_bias.{size}"

    shutil.copytree(tiny_model("qwen2"), tmp_path / "beams")
    path = tmp_path / "beams" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_beams": 2}))
    config = EngineConfig(model=str(tmp_path / "beams"), dtype="float32", threads=1)
    with closing(Engine(config)) as searching:
        with pytest.raises(TaskArgsInvalid, match="beams") as caught:
            searching.run_blocking(task("Hi", logprobs=0))
        assert caught.value.param == "generation_config.logprobs"
        searching.run_blocking(task("Hi", logprobs=0, num_beams=1, max_new_tokens=2))


@pytest.mark.parametrize("vocab", [2, 30, 261, 1000])
def test_rows_are_computed_by_themselves_and_ties_go_by_id(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-3, 3, (9, vocab), generator=generator).float()  # many are equal
    logits[3, 1:] = -torch.inf
    tokens = torch.randint(vocab, (9,), generator=generator)
    top = min(20, vocab)
    together = Logprobs(logits, 20).of(tokens)
    for i in range(9):
        assert torch.equal(Logprobs(logits[i : i + 1], top).of(tokens[i : i + 1])[0], together[i])
        ids = together[i, 1 : 1 + top].long().tolist()
        row = logits[i].tolist()
        assert ids == sorted(range(vocab), key=lambda token: (-row[token], token))[:top]
    assert Logprobs(logits, 0).of(tokens).tolist() == together[:, :1].tolist()


def test_a_probability_of_zero_is_a_number() -> None:
    report = Logprobs(torch.tensor([[0.0, -torch.inf, -torch.inf]]), 2).of(torch.tensor([1]))
    entry = TokenTexts(family("bytes")).entry(1, report[0].tolist())
    assert entry["logprob"] == entry["top_logprobs"][1]["logprob"] == -9999.0
    assert entry["top_logprobs"][0]["logprob"] == 0.0
    json.dumps(entry, allow_nan=False)


@few
@given(st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_the_bytes_of_tokens_are_the_text(name: str, data: st.DataObject) -> None:
    """For tokenizers that drop a space before the first word, but for that space."""
    ids = data.draw(spelled_ids() if name == "fallback" else random_ids(name))
    if name == "wordpiece":  # which writes "##" in front of a text that begins within a word
        ids.insert(0, family(name).convert_tokens_to_ids("the"))
    texts = TokenTexts(family(name))
    entries = [texts.entry(i, [-1.0]) for i in ids]
    spelled = b"".join(bytes(entry["bytes"] or ()) for entry in entries).decode(errors="replace")
    want = decoded(family(name), ids)
    assert spelled == want or (name != "bytes" and spelled == f" {want}")
    for entry in entries:
        if entry["bytes"] is not None:
            assert bytes(entry["bytes"]).decode(errors="replace") == entry["token"]


@pytest.mark.parametrize("do_sample", [False, True], ids=["copies", "sampled"])
def test_a_report_is_bounded(
    do_sample: bool, monkeypatch: pytest.MonkeyPatch, tiny_engine: TinyEngine
) -> None:
    """Greedy copies are computed once and told each: they count, as sampled answers do."""
    assert MAX_ANSWER_LOGPROBS >= 8192 * 21 * 8
    monkeypatch.setattr("engine.requests.input_processor.MAX_ANSWER_LOGPROBS", 4 * 5 * 3)
    engine = tiny_engine("qwen2")
    asked = {"do_sample": do_sample, "num_return_sequences": 4, "max_new_tokens": 5, "logprobs": 2}
    assert len(engine.run_blocking(task("Hi", **asked))["choices"]) == 4
    for name in ("num_return_sequences", "max_new_tokens", "logprobs"):
        with pytest.raises(TaskArgsInvalid, match="may have at most 60: ask for fewer") as caught:
            engine.run_blocking(task("Hi", **asked | {name: int(asked[name]) + 1}))
        assert caught.value.param == "generation_config.logprobs"
