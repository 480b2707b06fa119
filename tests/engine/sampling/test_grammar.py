"""Structured output: the answers have their form, and are those of `generate` under a mask."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator, FormatChecker
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from engine.sampling.grammar import Grammar, lark_json
from engine.sampling.json_schema.rewrite import rewritten
from schema import Task, TaskArgsInvalid
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_generate_fallback import OUTSIDE, fallback_engine, save_architecture
from tests.engine.sampling.grammar_tasks import SCHEMAS, choices, closed, task, under

HOT: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "top_k": 0}


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid_under_their_schema(name: str, tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("llama")
    validator = Draft202012Validator(SCHEMAS[name], format_checker=FormatChecker())
    for text, reason in choices(engine, task(under(SCHEMAS[name]), num_return_sequences=3, **HOT)):
        assert reason == "stop", text
        validator.validate(json.loads(text))


def test_a_json_object(tiny_engine: TinyEngine) -> None:
    one = task({"type": "json_object"}, max_new_tokens=60, num_return_sequences=16, **HOT)
    answers = choices(tiny_engine("llama"), one)
    assert all(text.startswith("{") for text, _ in answers)
    ended = [json.loads(text) for text, reason in answers if reason == "stop"]
    assert ended
    assert all(isinstance(value, dict) for value in ended)


WORDS = ["yes", "yesterday", "no", "né", "é\n", 'a"|b', "\\d", "\x7f", "日本"]


class ByTries:
    """The tokens that may come next, found by trying each at the end of each text so far."""

    def __init__(self, tokenizer: Any, prompt_tokens: int, texts: Sequence[str]) -> None:
        self._texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self._start = prompt_tokens
        self._end = tokenizer.eos_token_id

    def __call__(self, _: int, ids: torch.Tensor) -> list[int]:
        so_far = ids[self._start :].tolist()
        while so_far and so_far[-1] == self._end:
            so_far.pop()
        length = len(so_far)
        fitting = [text for text in self._texts if text[:length] == so_far]
        following = {text[length] if len(text) > length else self._end for text in fitting}
        return sorted(following)


def generated(
    directory: Path, texts: Sequence[str], seed: int, settings: dict[str, Any]
) -> list[str]:
    """What plain transformers writes, constrained by `prefix_allowed_tokens_fn`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = tokenizer("Hi", return_tensors="pt")["input_ids"]
    set_seed(seed)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        prefix_allowed_tokens_fn=ByTries(tokenizer, ids.shape[1], texts),
        max_new_tokens=40,
        **settings,
    )
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in output]


LANGUAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "choice": ({"type": "choice", "choices": WORDS}, WORDS),
    "regex": (
        {"type": "regex", "pattern": "[ab]{2}-(0[1-9]|1[0-2])"},
        [f"{a}{b}-{month:02}" for a in "ab" for b in "ab" for month in range(1, 13)],
    ),
    "schema": (
        under({"type": "integer", "minimum": 95, "maximum": 1201}),
        [str(number) for number in range(95, 1202)],
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "two": {"do_sample": True, "num_return_sequences": 2},
    "everything": {
        "do_sample": True,
        "num_return_sequences": 3,
        "temperature": 1.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.95,
        "repetition_penalty": 1.2,
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_generate_writes_the_same(
    language: str, settings: str, tiny_engine: TinyEngine, tiny_model: TinyModel
) -> None:
    form, texts = LANGUAGES[language]
    expected = generated(tiny_model("llama"), texts, 1, SETTINGS[settings])
    answers = choices(tiny_engine("llama"), task(form, 1, **SETTINGS[settings]))
    assert answers == [(text, "stop") for text in expected]


def test_the_fallback(tmp_path: Path) -> None:
    save_architecture("bloom", OUTSIDE["bloom"], tmp_path)
    with closing(fallback_engine(tmp_path)) as engine:
        assert not engine.card()["continuous_batching"]
        for name, (form, texts) in LANGUAGES.items():
            for settings in SETTINGS.values():
                expected = generated(tmp_path, texts, 3, settings)
                answers = choices(engine, task(form, 3, **settings))
                assert answers == [(text, "stop") for text in expected], name


def batch() -> list[Task]:
    """Tasks with and without a form, some of several choices."""
    forms = [None, *map(under, list(SCHEMAS.values())[:5]), LANGUAGES["regex"][0]]
    return [
        task(
            form,
            seed,
            "Hello" * (1 + seed),
            max_new_tokens=40,
            num_return_sequences=1 + seed % 2,
            **HOT,
        )
        for seed, form in enumerate(forms)
    ]


@pytest.mark.parametrize("lookahead", [False, True])
async def test_alone_under_load_and_streamed(lookahead: bool, tiny_engine: TinyEngine) -> None:
    alone = [tiny_engine("llama").run_blocking(one) for one in batch()]
    engine = tiny_engine("llama", lookahead=lookahead)
    together = await asyncio.gather(*(engine.run(one) for one in batch()))
    assert together == alone
    for one, answer in zip(batch(), alone, strict=True):
        chunks: list[Any] = []
        assert engine.run_blocking(one, chunks.append) == answer


def test_limits_and_stop_strings(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("llama")
    form = {"type": "regex", "pattern": "ab{30}c+"}
    assert choices(engine, task(form, max_new_tokens=5)) == [("abbbb", "length")]
    # Complete with the last token that it may have.
    assert choices(engine, task({"type": "choice", "choices": ["abc"]}, max_new_tokens=3)) == [
        ("abc", "stop")
    ]
    stopped = choices(engine, task(form, stop_strings=["bbb"], num_return_sequences=2, **HOT))
    assert stopped == [("abbb", "stop")] * 2


def test_any_token_that_ends_answers(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Of several, only the last is this tokenizer's own; another is used as "!"."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), directory)
    end = AutoTokenizer.from_pretrained(directory)("!")["input_ids"][0]
    settings = json.loads((directory / "generation_config.json").read_text())
    ends = {"eos_token_id": [end, settings["eos_token_id"]]}
    (directory / "generation_config.json").write_text(json.dumps(settings | ends))
    last: set[str] = set()
    with closing(Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))) as engine:
        for seed in range(6):
            one = task({"type": "regex", "pattern": "[a-c]{3,99}"}, seed, **HOT)
            ((text, reason),) = choices(engine, one)
            assert re.fullmatch("[a-c]{3,99}!?", text)
            assert reason == "stop"
            last.add(text[-1])
    assert "!" in last


def test_beams_of_the_models_own_settings_are_refused(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), directory)
    settings = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps(settings | {"num_beams": 2}))
    with closing(Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))) as engine:
        form = {"type": "json_object"}
        with pytest.raises(TaskArgsInvalid, match="num_beams to 1"):
            engine.run_blocking(task(form))
        engine.run_blocking(task(form, num_beams=1, max_new_tokens=8))


def test_a_lark_grammar_of_our_own(
    tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Markers, one a special token, around JSON: what a required call of a function needs."""
    schema = closed(name={"const": "clock"}, arguments=closed(zone={"enum": ["UTC", "a</call>"]}))
    grammar = Grammar.lark(
        f'start: "<call>\\n" call "\\n</call>" <eos>\ncall: {lark_json(rewritten(schema, "x"))}',
        "tool_choice",
    )
    monkeypatch.setattr("engine.requests.input_processor.task_grammar", lambda *_: grammar)
    ((text, reason),) = choices(tiny_engine("llama"), task(None, **HOT))
    assert reason == "stop"
    call = re.fullmatch(r"<call>\n(.*)\n</call>", text, re.DOTALL)
    assert call is not None
    Draft202012Validator(schema).validate(json.loads(call[1]))


def test_a_key_twice_in_many_choices(tiny_engine: TinyEngine) -> None:
    """A map with three possible keys: each answer keeps to its own, alone and among others."""
    keys = {"type": "string", "pattern": "^[ab]$"}
    schema = {"type": "object", "additionalProperties": {"const": 1}, "propertyNames": keys}
    one = task(under(schema), num_return_sequences=8, max_new_tokens=60, **HOT)
    texts = [text for text, reason in choices(tiny_engine("llama"), one) if reason == "stop"]
    assert {len(json.loads(text)) for text in texts} >= {0, 1}
    for text in texts:
        json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)
