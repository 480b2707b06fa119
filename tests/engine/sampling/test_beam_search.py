"""Beam search in the batch: the answers of `generate`, in any batch, and pages kept apart.

What a task can set is in `test_generate_oracle.SETTINGS`, with all kinds of models, under load and
on the paged kernel. Here are the model's own settings, and what happens on the way.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)

from engine import Engine, EngineConfig
from engine.sampling.beam_search import Beam, Moves, moves
from schema import Task
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.models.tiny_models import Kind

KINDS: tuple[Kind, ...] = ("qwen2", "gpt2", "gemma3")
TEXTS = ("Hi", "The engine must write what generate writes, for a prompt of several chunks too.")

MANY_ENDS = list(range(0, 250, 12))

# Settings that only the model's own generation_config.json has.
OWN: dict[str, dict[str, Any]] = {
    "ends": {"eos_token_id": MANY_ENDS},
    "ends at once": {"eos_token_id": list(range(200))},
    "ends early": {"eos_token_id": MANY_ENDS, "early_stopping": True},
    "never early": {"eos_token_id": MANY_ENDS, "early_stopping": "never", "length_penalty": 0.5},
    "long": {"eos_token_id": MANY_ENDS, "length_penalty": 4.0},
    "long, never early": {
        "eos_token_id": MANY_ENDS,
        "length_penalty": 2.0,
        "early_stopping": "never",
    },
    "short": {"eos_token_id": MANY_ENDS, "length_penalty": -2.0},
    "no end": {"eos_token_id": None, "pad_token_id": 0},
    "processors": {
        "eos_token_id": MANY_ENDS,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "exponential_decay_length_penalty": [8, 1.3],
        "suppress_tokens": [40, 41],
    },
}

ASKED: tuple[dict[str, Any], ...] = (
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 4, "num_return_sequences": 2, "do_sample": True, "temperature": 1.5},
    {"num_beams": 2, "max_new_tokens": 1},
)


def with_own_settings(source: Path, directory: Path, own: dict[str, Any]) -> Path:
    """A copy of a model with other settings of its own."""
    shutil.copytree(source, directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return directory


class Reference:
    """Plain transformers."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def __call__(self, text: str, asked: dict[str, Any], **more: Any) -> tuple[list[str], int]:
        """The answers, and the number of their tokens."""
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        set_seed(11)
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            return_dict_in_generate=True,
            **{"max_new_tokens": 24} | asked | more,
        )
        answers = [row[ids.shape[1] :] for row in output.sequences]
        if "num_beams" in asked:
            lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
            answers = [row[:n] for row, n in zip(answers, lengths, strict=True)]
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in answers]
        return texts, sum(len(row) for row in answers)


def task(text: str, asked: dict[str, Any], *, seed: int = 11) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": 24} | asked,
        seed=seed,
    )


def outcome(response: Any) -> tuple[list[str], int]:
    texts = [choice["message"]["content"] for choice in response["choices"]]
    return texts, response["usage"]["completion_tokens"]


@pytest.fixture
def seen_moves(monkeypatch: pytest.MonkeyPatch) -> list[Moves]:
    """The moves of the test's beams."""
    seen: list[Moves] = []

    def watched(before: Sequence[Beam], parents: Sequence[int]) -> Moves:
        seen.append(moves(before, parents))
        return seen[-1]

    monkeypatch.setattr("engine.sampling.beam_search.moves", watched)
    return seen


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma3"])
async def test_the_models_own_settings(
    kind: Kind,
    own: str,
    tiny_model: TinyModel,
    tmp_path: Path,
    seen_moves: list[Moves],
) -> None:
    """Alone; among 15 others; and again, when the prompt begins in the prefix cache."""
    directory = with_own_settings(tiny_model(kind), tmp_path / "model", OWN[own])
    reference = Reference(directory)
    options: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    engine = Engine(EngineConfig(model=str(directory), max_sequences=64, **options))
    pairs = [(text, asked) for text in TEXTS for asked in ASKED]
    want = [reference(text, asked) for text, asked in pairs]
    assert [outcome(engine.run_blocking(task(*pair))) for pair in pairs] == want
    others = [
        task(f"{n} {TEXTS[n % 2]}", [{}, {"do_sample": True}, ASKED[1]][n % 3], seed=n)
        for n in range(10)
    ]
    for _ in range(2):
        responses = await asyncio.gather(
            *(engine.run(task(*pair)) for pair in pairs), *(engine.run(other) for other in others)
        )
        assert [outcome(response) for response in responses[: len(pairs)]] == want
    assert any(moved.copies for moved in seen_moves)
    assert any(copy.num_tokens > 1 for moved in seen_moves for copy in moved.copies)
    assert any(moved.homes != sorted(moved.homes) for moved in seen_moves)
    engine.close()
    engine._loop.scheduler.check_integrity()


class TextStop(StoppingCriteria):
    """Stop strings by text. `generate`'s own criterion takes bytes of these tokenizers for text."""

    def __init__(self, tokenizer: Any, prompt_tokens: int, stops: list[str]) -> None:
        self._decode = tokenizer.decode
        self._start = prompt_tokens
        self._stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = [self._decode(row[self._start :], skip_special_tokens=True) for row in input_ids]
        return torch.tensor([any(stop in text for stop in self._stops) for text in texts])


def stopped_search(
    reference: Reference, text: str, asked: dict[str, Any]
) -> tuple[str, tuple[list[str], int]]:
    """A stop string that changes the answers, and what they are with it."""
    plain = reference(text, asked)
    prompt_tokens = len(reference.tokenizer(text)["input_ids"])
    for stop in dict.fromkeys("".join(plain[0]).replace("\ufffd", "")):
        criterion = TextStop(reference.tokenizer, prompt_tokens, [stop])
        want = reference(text, asked, stopping_criteria=StoppingCriteriaList([criterion]))
        if want != plain and any(stop in answer for answer in want[0]):
            return stop, want
    raise AssertionError("no stop string of one letter changes the answers")


@pytest.mark.parametrize("asked", ASKED[:2], ids=["search", "sample"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "llama"])
def test_stop_strings(
    kind: Kind, asked: dict[str, Any], tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    reference = Reference(tiny_model(kind))
    for text in TEXTS:
        stop, want = stopped_search(reference, text, asked)
        response = tiny_engine(kind).run_blocking(task(text, asked | {"stop_strings": [stop]}))
        assert outcome(response) == want
        for choice in response["choices"]:
            if stop in choice["message"]["content"]:
                assert choice["finish_reason"] == "stop"


def test_beams_come_as_one_chunk(tiny_engine: TinyEngine) -> None:
    chunks: list[Any] = []
    asked = {"max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 3}
    response = tiny_engine("qwen2").run_blocking(task("Hi", asked), chunks.append)
    assert len(chunks) == 1
    assert [choice["index"] for choice in chunks[0]["choices"]] == [0, 1, 2]
    assert response["usage"] == chunks[0]["usage"]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num_beams=st.integers(1, 6), steps=st.integers(1, 12))
def test_every_beam_finds_its_own_tokens(data: st.DataObject, num_beams: int, steps: int) -> None:
    """Pages after any course of a search, compared with beams that are copied whole each step."""
    beams = [Beam(None, 0, -1, None)] * num_beams
    pages: list[list[object]] = [[] for _ in beams]  # where each beam lies, and what is there
    whole: list[list[object]] = [[] for _ in beams]
    for step in range(steps):
        parents = data.draw(
            st.lists(st.integers(0, num_beams - 1), min_size=num_beams, max_size=num_beams)
        )
        homes, copies = moves(beams, parents)
        assert sorted(homes) == list(range(num_beams))
        assert not {copy.source for copy in copies} & {copy.target for copy in copies}
        for source, target, num_tokens in copies:
            pages[target][step - num_tokens :] = pages[source][step - num_tokens :]
        pages = [pages[home] for home in homes]
        whole = [list(whole[parent]) for parent in parents]
        assert pages == whole
        beams = [Beam(beams[parent], parent, step, None) for parent in parents]
        for beam, own, copied in zip(beams, pages, whole, strict=True):
            assert len(beam.token_ids) == step + 1
            own.append(beam)
            copied.append(beam)
