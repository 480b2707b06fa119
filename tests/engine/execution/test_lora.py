"""LoRA adapters in the batch: the answers of PEFT, whoever else is there."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from engine.loading.quantized_modules import full_precision_modules
from engine.quantization.registry import quantization
from schema import Task
from tests.engine.conftest import TinyModel
from tests.engine.core.test_generate_fallback import save_architecture
from tests.engine.models.tiny_adapters import ADAPTERS, save_adapter, save_adapters
from tests.engine.sampling.test_generate_oracle import plainly

TEXT = "An adapter must write what PEFT writes with it, for a prompt of several chunks too."
SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 24},
    {"max_new_tokens": 24, "do_sample": True, "num_return_sequences": 2},
    {"max_new_tokens": 8, "num_beams": 2},
)
ARITHMETIC: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize_bits": 8},
    "nf4": {"dtype": "float32", "quantize_bits": 4},
}


@pytest.fixture(scope="module")
def adapters(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Those of the tiny Qwen 3."""
    return save_adapters(tiny_model("qwen3"), tmp_path_factory.mktemp("adapters"))


def engine_of(directory: Path, adapters: dict[str, str], **options: Any) -> Engine:
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    settings |= {"model": str(directory), "adapters": adapters}
    return Engine(EngineConfig(**settings | options))


def task(adapter: str | None, text: str, settings: dict[str, Any], **fields: Any) -> Task:
    return Task.from_fields(
        model=f"tiny:{adapter}" if adapter else "tiny",
        messages=[{"role": "user", "content": text}],
        generation_config=settings,
        **{"seed": 5} | fields,
    )


def contents(response: Any) -> list[str]:
    return [choice["message"]["content"] for choice in response["choices"]]


class Peft:
    """PEFT's own answers, of one model with all of its adapters."""

    def __init__(self, base: Path, adapters: dict[str, str], bits: int | None = None) -> None:
        own = quantization(bits)
        quantized = own and own.transformers_config(torch.float32, full_precision_modules(own))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, quantization_config=quantized
        )
        for name, directory in adapters.items():
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(directory, name)
            else:
                self._model = PeftModel.from_pretrained(self._model, directory, name)

    def answers(self, adapter: str | None, text: str, settings: dict[str, Any]) -> list[str]:
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        if adapter is None:
            with self._model.disable_adapter():
                return self._written(ids, settings)
        self._model.set_adapter(adapter)
        return self._written(ids, settings)

    def _written(self, ids: Any, settings: dict[str, Any]) -> list[str]:
        set_seed(5)
        mask = torch.ones_like(ids)
        options = plainly(settings, ids.shape[1])
        output = self._model.generate(input_ids=ids, attention_mask=mask, **options)
        rows = output[:, ids.shape[1] :]
        return [self._tokenizer.decode(row, skip_special_tokens=True) for row in rows]


NAMES = (*ADAPTERS, None)


async def test_it_writes_what_peft_writes(tiny_model: TinyModel, adapters: dict[str, str]) -> None:
    """Alone, and with all others at once."""
    base = tiny_model("qwen3")
    peft = Peft(base, adapters)
    asked = [(name, text, s) for name in NAMES for text in ("Hi", TEXT) for s in SETTINGS]
    expected = [peft.answers(*one) for one in asked]
    greedy = {str(each) for each, (*_, s) in zip(expected, asked, strict=True) if s == SETTINGS[0]}
    assert len(greedy) == 2 * len(NAMES)  # each adapter matters
    with closing(engine_of(base, adapters)) as engine:
        assert engine.card()["continuous_batching"]
        alone = [contents(await engine.run(task(*one))) for one in asked]
        assert alone == expected
        together = await asyncio.gather(*(engine.run(task(*one)) for one in asked))
        assert [contents(each) for each in together] == expected


OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 4, "n_layer": 2},  # through the generate fallback
    "mixtral": {"num_local_experts": 4},  # whose experts have no adapters
}

MODULES: dict[str, dict[str, Any]] = {
    "gpt2": {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True},
    "mixtral": {"target_modules": ["q_proj", "o_proj"]},
}


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "phi3", *OTHERS])
def test_layers_of_other_kinds(kind: Any, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Transposed weights, packed ones, fused projections; models that are not batched."""
    base = tmp_path / "base"
    if kind in OTHERS:
        save_architecture(kind, OTHERS[kind], base)
    else:
        base = tiny_model(kind)
    save_adapter(base, tmp_path / "one", 3, r=4, lora_alpha=8, **MODULES.get(kind, {}))
    adapters = {"one": str(tmp_path / "one")}
    peft = Peft(base, adapters)
    with closing(engine_of(base, adapters, context_length=512)) as engine:
        for name in ("one", None):
            answer = contents(engine.run_blocking(task(name, TEXT, SETTINGS[1])))
            assert answer == peft.answers(name, TEXT, SETTINGS[1])


def seeded(count: int, **fields: Any) -> list[Task]:
    """Tasks of all adapters and of none, of which each answer says much."""
    draw = random.Random(0)
    return [
        task(
            NAMES[number % len(NAMES)],
            TEXT[: draw.randrange(1, 40)],
            {"max_new_tokens": draw.randrange(2, 8), "do_sample": bool(number % 3), "logprobs": 1},
            seed=number,
            return_token_ids=True,
            **fields,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("name", ARITHMETIC)
async def test_alone_and_under_load(
    name: str, tiny_model: TinyModel, adapters: dict[str, str]
) -> None:
    """Tokens and log probabilities; those of no adapter are those of a model without any."""
    bits = ARITHMETIC[name].get("quantize_bits")
    asked = seeded(16 if bits else 64, quantize_bits=bits)
    options = {"max_sequences": 24, **ARITHMETIC[name]}
    with closing(engine_of(tiny_model("qwen3"), adapters, **options)) as engine:
        alone = [await engine.run(one) for one in asked]
        for seed in range(1 if bits else 3):
            order = random.Random(seed).sample(range(len(asked)), len(asked))
            got = await asyncio.gather(*(engine.run(asked[number]) for number in order))
            assert got == [alone[number] for number in order]
        for one, answer in zip(asked[:5], alone, strict=False):
            assert (await engine.verify(one, answer))["verdict"] == "exact"
        fingerprints = {each["system_fingerprint"] for each in alone}
        assert len(fingerprints) == len(NAMES)
    if bits:
        return
    with closing(engine_of(tiny_model("qwen3"), {}, **options)) as engine:
        for one, answer in zip(asked, alone, strict=True):
            if one.variant.adapter is None:
                assert await engine.run(one) == answer


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model(bits: int, tiny_model: TinyModel, adapters: dict[str, str]) -> None:
    """It adds in full precision to what the quantized model computes."""
    base = tiny_model("qwen3")
    peft = Peft(base, adapters, bits=bits)
    with closing(engine_of(base, adapters, quantize_bits=bits)) as engine:
        for name in NAMES:
            answer = engine.run_blocking(task(name, TEXT, SETTINGS[0], quantize_bits=bits))
            assert contents(answer) == peft.answers(name, TEXT, SETTINGS[0])
