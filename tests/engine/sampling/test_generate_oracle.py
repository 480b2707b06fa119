"""The engine writes what `set_seed(seed); model.generate(...)` writes, token for token, in fp32."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    LogitsProcessor,
    LogitsProcessorList,
    set_seed,
)

from engine import Engine
from schema import Task
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.models.tiny_models import TEXT_KINDS, Kind

TEXTS = ("Hi", "The engine must write what generate writes, for a prompt of several chunks too.")

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True},
    "two sequences": {"do_sample": True, "num_return_sequences": 2},
    "temperature": {"do_sample": True, "temperature": 0.4},
    "hot": {"do_sample": True, "temperature": 3.0, "top_k": 0},
    "top_k": {"do_sample": True, "top_k": 5},
    "top_p": {"do_sample": True, "top_p": 0.7},
    "top_p of 0": {"do_sample": True, "top_p": 0.0},
    "min_p": {"do_sample": True, "min_p": 0.1},
    "typical_p": {"do_sample": True, "typical_p": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "everything": {
        "do_sample": True,
        "temperature": 1.5,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "num_return_sequences": 3,
    },
    "penalties of several": {
        "do_sample": True,
        "temperature": 1.5,
        "top_k": 60,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.7,
        "presence_penalty": 1.1,
        "logit_bias": {str(token): 2.5 for token in range(64, 90)},
        "num_return_sequences": 3,
    },
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 4, "num_return_sequences": 4},
    "penalized beams": {"num_beams": 3, "repetition_penalty": 1.5, "num_return_sequences": 2},
    "biased beams": {
        "num_beams": 3,
        "frequency_penalty": 2,
        "presence_penalty": 0.5,
        "logit_bias": {"70": 4},
        "num_return_sequences": 2,
    },
    "beam sampling": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "beam sampling with everything": {
        "num_beams": 3,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 60,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
    },
    "few to sample from": {"num_beams": 4, "do_sample": True, "top_k": 1},
}


class PlainPenalties(LogitsProcessor):
    """What transformers has no settings for, token by token, by the formula of OpenAI's pages."""

    def __init__(self, start: int, settings: dict[str, Any]) -> None:
        self.start = start
        self.frequency = settings.get("frequency_penalty", 0)
        self.presence = settings.get("presence_penalty", 0)
        self.bias = settings.get("logit_bias", {})

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        for row, tokens in zip(scores, input_ids[:, self.start :].tolist(), strict=True):
            for token, count in Counter(tokens).items():
                row[token] -= self.frequency * count
                row[token] -= self.presence
            for name, value in self.bias.items():
                row[int(name)] += value
        return scores


def plainly(settings: dict[str, Any], start: int) -> dict[str, Any]:
    """Arguments of `generate` that mean these settings, for a prompt of ``start`` tokens."""
    ours = {"frequency_penalty", "presence_penalty", "logit_bias"}
    theirs = {name: value for name, value in settings.items() if name not in ours}
    if len(theirs) < len(settings):
        theirs["logits_processor"] = LogitsProcessorList([PlainPenalties(start, settings)])
    return theirs


@cache
def plain(directory: Path) -> tuple[Any, Any]:
    """Tokenizer and model of plain transformers, which no test may change."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(directory), model


def expected(model: Any, tokenizer: Any, inputs: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The texts of plain transformers."""
    start = inputs["input_ids"].shape[1]
    set_seed(11)
    with torch.no_grad():
        output = model.generate(
            **inputs,
            **({"max_new_tokens": 24} | plainly(settings, start)),
        )
    return [tokenizer.decode(row[start:], skip_special_tokens=True) for row in output]


def task(messages: list[dict[str, Any]], settings: dict[str, Any]) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=messages,
        generation_config={"max_new_tokens": 24} | settings,
        seed=11,
    )


def actual(engine: Any, messages: list[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    """The texts of the engine."""
    response = engine.run_blocking(task(messages, settings))
    return [choice["message"]["content"] for choice in response["choices"]]


async def check_crowd(engine: Engine, directory: Path, settings: Iterable[dict[str, Any]]) -> None:
    """All settings and texts at once, twice: the second time prompts begin in the prefix cache."""
    tokenizer, model = plain(directory)
    pairs = [(text, chosen) for chosen in settings for text in TEXTS]
    want = [
        expected(model, tokenizer, dict(tokenizer(text, return_tensors="pt")), chosen)
        for text, chosen in pairs
    ]
    for _ in range(2):
        responses = await asyncio.gather(
            *(engine.run(task([{"role": "user", "content": text}], s)) for text, s in pairs)
        )
        got = [[choice["message"]["content"] for choice in r["choices"]] for r in responses]
        assert got == want
    assert engine.stats()["prefix_tokens_reused"] > 0


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text(kind: Kind, name: str, tiny_model: TinyModel, tiny_engine: TinyEngine) -> None:
    directory = tiny_model(kind)
    tokenizer, model = plain(directory)
    for text in TEXTS:
        inputs = dict(tokenizer(text, return_tensors="pt"))
        want = expected(model, tokenizer, inputs, SETTINGS[name])
        got = actual(tiny_engine(kind), [{"role": "user", "content": text}], SETTINGS[name])
        assert got == want


@pytest.mark.parametrize("kind", TEXT_KINDS)
async def test_under_load(kind: Kind, tiny_model: TinyModel, tiny_engine: TinyEngine) -> None:
    """All settings and texts at once."""
    directory = tiny_model(kind)
    tokenizer, model = plain(directory)
    engine = tiny_engine(kind)
    pairs = [(text, settings) for text in TEXTS for settings in SETTINGS.values()]
    responses = await asyncio.gather(
        *(engine.run(task([{"role": "user", "content": text}], s)) for text, s in pairs)
    )
    for (text, settings), response in zip(pairs, responses, strict=True):
        inputs = dict(tokenizer(text, return_tensors="pt"))
        got = [choice["message"]["content"] for choice in response["choices"]]
        assert got == expected(model, tokenizer, inputs, settings)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_stop_strings(kind: Kind, tiny_model: TinyModel, tiny_engine: TinyEngine) -> None:
    """An answer ends with the first token whose text completes a stop string.

    Not compared with `generate(stop_strings=...)`: its criterion takes single bytes of this
    tokenizer for letters. What it would have written without a stop is compared instead.
    """
    directory = tiny_model(kind)
    tokenizer, model = plain(directory)
    settings = {"do_sample": True, "max_new_tokens": 80}
    inputs = dict(tokenizer(TEXTS[1], return_tensors="pt"))
    (whole,) = expected(model, tokenizer, inputs, settings)
    stops = sorted({c for c in whole if c.isascii()}, key=whole.index)[3:5]
    messages = [{"role": "user", "content": TEXTS[1]}]
    (got,) = actual(tiny_engine(kind), messages, settings | {"stop_strings": stops})
    assert got == whole[: min(whole.index(stop) for stop in stops) + 1]


def drawing(width: int, height: int, seed: int) -> str:
    """A random PNG, base64."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("name", ["greedy", "everything", "beams"])
@pytest.mark.parametrize("sizes", [[(70, 40)], [(96, 32), (32, 64)]], ids=["one", "two"])
def test_images(
    name: str, sizes: list[tuple[int, int]], tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    directory = tiny_model("internvl")
    engine = tiny_engine("internvl")
    model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    images = [drawing(*size, seed=i) for i, size in enumerate(sizes)]
    blocks = [{"type": "image", "base64": data} for data in images]
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": "What?"}]}]

    # The prompt and the pixels are put together here by hand, not by the engine's own code.
    image_processor: Any = GotOcr2ImageProcessorPil.from_pretrained(directory)
    processed = image_processor(
        [Image.open(io.BytesIO(base64.b64decode(data))) for data in images], return_tensors="pt"
    )
    tiles = [int(n) for n in processed["num_patches"]]
    placeholders = "".join(f"<img>{'<IMG_CONTEXT>' * 4 * n}</img>" for n in tiles)
    ids = tokenizer(f"[user]{placeholders}What?[assistant]", return_tensors="pt")
    inputs = {**ids, "pixel_values": processed["pixel_values"]}
    assert sum(tiles) > len(images)  # some are cut into several tiles

    want = expected(model, tokenizer, inputs, SETTINGS[name])
    assert actual(engine, messages, SETTINGS[name]) == want


def test_the_models_own_generation_config_is_the_default(
    tiny_model: TinyModel, tiny_engine: TinyEngine, tmp_path: Any
) -> None:
    directory = tiny_model("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=7, max_new_tokens=9)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    inputs = dict(tokenizer(TEXTS[1], return_tensors="pt"))
    set_seed(11)
    output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    engine = tiny_engine("qwen2", model=str(tmp_path))
    asked = Task.from_fields(
        model="tiny", messages=[{"role": "user", "content": TEXTS[1]}], seed=11
    )
    response = engine.run_blocking(asked)
    assert response["choices"][0]["message"]["content"] == tokenizer.decode(
        output[0], skip_special_tokens=True
    )
    assert response["usage"]["completion_tokens"] == 9
