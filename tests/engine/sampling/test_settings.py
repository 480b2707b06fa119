"""The model's own generation settings mean what they mean to `generate`; a task's override them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from schema import Task
from schema.errors import TaskArgsInvalid
from tests.engine.conftest import TinyModel

TEXT = "The model's own settings, and the task's."
LETTERS = list(range(64, 90))  # tokens of the byte level tokenizer

# The model's generation_config.json, then the task's settings.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "the model samples": ({"do_sample": True, "temperature": 0.6, "top_k": 9, "top_p": 0.8}, {}),
    "the task is greedy": ({"do_sample": True, "temperature": 0.6}, {"do_sample": False}),
    "the task wants transformers' default": ({"do_sample": True, "top_k": 3}, {"top_k": 50}),
    "several as the model samples": ({"do_sample": True}, {"num_return_sequences": 3}),
    "several as the model beams": ({"num_beams": 3}, {"num_return_sequences": 2}),
    "the task wants no beams": ({"num_beams": 3, "early_stopping": True}, {"num_beams": 1}),
    "ends at any of these": ({"eos_token_id": LETTERS}, {"do_sample": True}),
    "ends at different times": (
        {"eos_token_id": LETTERS},
        {"do_sample": True, "num_return_sequences": 4, "repetition_penalty": 1.3},
    ),
    "not too soon": ({"eos_token_id": LETTERS, "min_new_tokens": 9}, {"do_sample": True}),
    "not too short": ({"eos_token_id": LETTERS, "min_length": 50}, {"do_sample": True}),
    "never these": ({"suppress_tokens": LETTERS}, {"do_sample": True, "top_k": 0}),
    "not first": ({"begin_suppress_tokens": list(range(200))}, {"do_sample": True}),
    "this one first": ({"forced_bos_token_id": 70}, {}),
    "this one last": ({"forced_eos_token_id": 71}, {"do_sample": True}),
    "no bad words": ({"bad_words_ids": [[70], [71, 72]]}, {"do_sample": True}),
    "no repetition": ({"no_repeat_ngram_size": 2}, {}),
    "longer is worse": (
        {"eos_token_id": LETTERS, "exponential_decay_length_penalty": [4, 1.5]},
        {"do_sample": True},
    ),
    "cut at epsilon": ({"epsilon_cutoff": 3e-3, "eta_cutoff": 1e-3}, {"do_sample": True}),
    "normalized": ({"renormalize_logits": True, "remove_invalid_values": True}, {"min_p": 0.02}),
    "a bias": ({"sequence_bias": [[[70], 5.0], [[71, 72], -5.0]]}, {"do_sample": True}),
    "guided": ({"guidance_scale": 1.5}, {}),
    "a limit of its own": ({"max_length": 5}, {}),
    "what generate returns": ({"return_dict_in_generate": True, "num_beams": 2}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_generation_settings(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    own, asked = CASES[name]
    asked = {"max_new_tokens": 30} | asked
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    inputs = dict(tokenizer(TEXT, return_tensors="pt"))
    set_seed(9)
    output = model.generate(**inputs, **asked, return_dict_in_generate=False)
    expected = [
        tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row in output
    ]

    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1, max_sequences=4))
    task = Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": TEXT}],
        generation_config=asked,
        seed=9,
    )
    response = engine.run_blocking(task)
    engine.close()
    got = [choice["message"]["content"] for choice in response["choices"]]
    if "eos_token_id" in own:  # generate fills up with the padding token, which is <eos>: no text
        assert any(choice["finish_reason"] == "stop" for choice in response["choices"])
    assert got == expected


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"temperature": 0, "do_sample": True}])
def test_temperature_zero_is_greedy(
    greedy: dict[str, Any], tiny_model: TinyModel, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True}))
    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))
    texts = set()
    for settings in (greedy, {"do_sample": False}):
        for seed in (1, 2):
            task = Task.from_fields(
                model="tiny",
                messages=[{"role": "user", "content": TEXT}],
                generation_config={"max_new_tokens": 20} | settings,
                seed=seed,
            )
            texts.add(engine.run_blocking(task)["choices"][0]["message"]["content"])
    engine.close()
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        ({"do_sample": False, "temperature": 0.0}, {"do_sample": True}),
        ({"do_sample": False, "top_k": -1}, {"do_sample": True}),
        ({"repetition_penalty": 0.0}, {}),
        ({"num_beams": "4"}, {}),
    ],
)
def test_the_models_own_values_that_cannot_be_used(
    own: dict[str, Any], asked: dict[str, Any], tiny_model: TinyModel, tmp_path: Path
) -> None:
    """transformers refuses them as well; what the task sets in their place is used."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))

    def run(settings: dict[str, Any]) -> Any:
        messages = [{"role": "user", "content": TEXT}]
        settings = {"max_new_tokens": 4} | settings
        return engine.run_blocking(
            Task.from_fields(model="tiny", messages=messages, generation_config=settings)
        )

    try:
        with pytest.raises(TaskArgsInvalid) as caught:
            run(asked)
        assert caught.value.param == "generation_config"
        usable = {"temperature": 0.5, "top_k": 5, "repetition_penalty": 1.1, "num_beams": 1}
        assert run(asked | {key: usable[key] for key in own if key in usable})["choices"]
    finally:
        engine.close()
