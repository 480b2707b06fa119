"""Speculation and known tokens change no bit of any answer: a fixed share of the random tasks.

``python -m tests.engine.core.speculation 2000`` runs as many as one likes.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from engine import EngineConfig
from tests.engine.conftest import TinyModel
from tests.engine.core.speculation.comparison import difference, outcome, with_token_ids
from tests.engine.core.speculation.drafts import DRAFTS, KNOWN, Place
from tests.engine.core.speculation.engines import (
    ARITHMETIC,
    OWN_SETTINGS,
    Guided,
    opened,
    save_variant,
    tiny_vocabulary,
)
from tests.engine.core.speculation.properties import differences, make_cases
from tests.engine.core.speculation.random_tasks import Vocabulary, random_task
from tests.engine.core.speculation.transformers_oracle import TransformersOracle

SOME = Vocabulary("tiny", size=261, prompt_ids=range(256), end=256, image=259)


# The arithmetic, the model's own settings, and the first of the seeds.
@pytest.mark.parametrize(
    ("arithmetic", "own", "seeds"),
    [
        ("fp32", "none", range(32)),
        ("bf16", "particular", range(32, 56)),
        ("int8", "short", range(64, 76)),
        ("nf4", "none", range(80, 96)),
    ],
)
async def test_answers_are_the_same(
    arithmetic: str, own: str, seeds: range, tiny_model: TinyModel, tmp_path: Path
) -> None:
    directory = tmp_path / own
    save_variant(tiny_model("internvl"), directory, OWN_SETTINGS[own])
    options = ARITHMETIC[arithmetic]
    vocabulary = tiny_vocabulary(directory, quantize_bits=options.get("quantize_bits"))
    with opened(directory, **options, speculation="off") as off:
        cases = await make_cases(off, vocabulary, seeds)
    with opened(directory, **options) as on:
        found = await differences(Guided(on, vocabulary), cases)
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("own", OWN_SETTINGS)
async def test_generate_draws_the_same_tokens(
    own: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    directory = tmp_path / own
    save_variant(tiny_model("internvl"), directory, OWN_SETTINGS[own])
    vocabulary, oracle = tiny_vocabulary(directory), TransformersOracle(directory)
    compared = 0
    with opened(directory) as engine:
        for seed in range(200, 230):
            task = with_token_ids(random_task(seed, vocabulary))
            if oracle.draws(task):
                response = await outcome(engine, task)
                if "error" not in response:
                    compared += 1
                    assert oracle.check(task, response) is None, task.model_dump_json()
    assert compared > 10


def test_it_is_on_by_default() -> None:
    assert EngineConfig(model="m").speculation == "on"


# --- The tests of the tests ----------------------------------------------------------------------


def test_a_task_is_a_function_of_its_seed() -> None:
    tasks = [random_task(seed, SOME).model_dump_json() for seed in range(40)]
    assert [random_task(seed, SOME).model_dump_json() for seed in range(40)] == tasks
    assert len(set(tasks)) == 40


def test_every_setting_occurs() -> None:
    dumps = [
        random_task(seed, SOME).model_dump(mode="json", exclude_unset=True, exclude_none=True)
        for seed in range(400)
    ]
    fields = {name for dump in dumps for name in dump}
    settings = {name for dump in dumps for name in dump["generation_config"]}
    assert fields >= {"prompt_token_ids", "messages", "tools", "structured_output", "echo"}
    assert settings == {
        *("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias"),
        *("logprobs", "prompt_logprobs", "num_return_sequences", "num_beams", "stop_strings"),
    }
    forms = {dump["structured_output"]["type"] for dump in dumps if "structured_output" in dump}
    assert forms == {"json_schema", "json_object", "regex", "choice"}
    everything = json.dumps(dumps)
    for words in ('"image"', '"tool"', "reasoning_content", '"required"', '"function": "go"'):
        assert words in everything
    assert {dump["generation_config"]["max_new_tokens"] for dump in dumps} >= {0, 1}


@pytest.mark.parametrize("kind", DRAFTS)
def test_drafts_are_tokens(kind: str) -> None:
    """Of the vocabulary: an engine's guesser may trust its own guesses."""
    for seed in range(30):
        place = Place(list(range(5, 5 + seed)), Random(seed), SOME)
        assert all(0 <= token < SOME.size for token in DRAFTS[kind](place))


def test_wrong_drafts_are_wrong() -> None:
    answer = [0, 5, 260, 256]
    for seed in range(30):
        rng = Random(seed)
        wrong = DRAFTS["wrong"](Place(answer, rng, SOME))
        assert all(a != b for a, b in zip(answer, wrong, strict=True))
        changed = DRAFTS["all but one"](Place(answer, rng, SOME))
        assert sum(a != b for a, b in zip(answer, changed, strict=True)) == 1
        (changed,) = KNOWN["changed"]([answer], rng, SOME)
        assert sum(a != b for a, b in zip(answer, changed, strict=True)) == 1


def test_one_bit_is_a_difference() -> None:
    response = {"choices": [{"token_ids": [1, 2], "logprobs": [{"logprob": -0.1}], "index": 0}]}
    assert difference(response, json.loads(json.dumps(response))) is None
    for changed, says in (
        ({"choices": [response["choices"][0] | {"token_ids": [1, 3]}]}, "token_ids.1 is 2"),
        ({"choices": [response["choices"][0] | {"token_ids": [1]}]}, "has 2 entries, and now 1"),
        ({"choices": [response["choices"][0] | {"logprobs": [{"logprob": -0.1 + 2e-17}]}]}, "-0.1"),
        ({"choices": [response["choices"][0] | {"index": False}]}, "index is 0"),
        (response | {"usage": {}}, "now ['choices', 'usage']"),
    ):
        assert says in str(difference(response, changed))
    assert difference(0.0, -0.0) is not None
