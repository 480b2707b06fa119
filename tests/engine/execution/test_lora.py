"""LoRA adapters in the batch: the answers of PEFT, whoever else is there."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from engine.execution.modules import lora_kernel
from engine.loading.adapters.adapter import locate_adapter
from engine.loading.quantized.modules import full_precision_modules
from engine.quantization.registry import quantization
from schema import ModelCorrupt, ModelInvalid, ModelUnsafe, Task
from tests.engine.conftest import TinyModel
from tests.engine.core.test_generate_fallback import save_architecture
from tests.engine.models.tiny_adapters import ADAPTERS, VISION, save_adapter, save_adapters
from tests.engine.models.tiny_adapters import TEXT as TEXT_MODEL
from tests.engine.sampling.test_generate_oracle import plainly

TEXT = "An adapter must write what PEFT writes with it, for a prompt of several chunks too."
SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 16},
    {"max_new_tokens": 16, "do_sample": True, "num_return_sequences": 2},
    {"max_new_tokens": 6, "num_beams": 2},
)
ARITHMETIC: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize_bits": 8},
    "nf4": {"dtype": "float32", "quantize_bits": 4},
    "products": {"dtype": "bfloat16"},
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

    def __init__(
        self,
        base: Path,
        adapters: dict[str, str],
        bits: int | None = None,
        auto_class: Any = TEXT_MODEL,
    ) -> None:
        own = quantization(bits)
        quantized = own and own.transformers_config(torch.float32, full_precision_modules(own))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self._model: Any = auto_class.from_pretrained(
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
    asked = [(name, TEXT, s) for name in NAMES for s in SETTINGS]
    expected = [peft.answers(*one) for one in asked]
    greedy = {str(each) for each, (*_, s) in zip(expected, asked, strict=True) if s == SETTINGS[0]}
    assert len(greedy) == len(NAMES)  # each adapter matters
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
    "internvl": {"target_modules": r".*language_model.*_proj"},
    "mixtral": {"target_modules": ["q_proj", "o_proj"]},
}


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "phi3", "internvl", *OTHERS])
def test_layers_of_other_kinds(kind: Any, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Transposed weights, packed ones, fused projections; within vision models; not batched."""
    base = tmp_path / "base"
    if kind in OTHERS:
        save_architecture(kind, OTHERS[kind], base)
    else:
        base = tiny_model(kind)
    settings = {"r": 4, "lora_alpha": 8, **MODULES.get(kind, {})}
    auto_class = VISION if kind == "internvl" else TEXT_MODEL
    save_adapter(base, tmp_path / "one", 3, auto_class=auto_class, **settings)
    adapters = {"one": str(tmp_path / "one")}
    peft = Peft(base, adapters, auto_class=auto_class)
    with closing(engine_of(base, adapters, context_length=512)) as engine:
        for name in ("one", None):
            asked = task(name, TEXT, SETTINGS[1], use_chat_template=False)
            assert contents(engine.run_blocking(asked)) == peft.answers(name, TEXT, SETTINGS[1])


def seeded(count: int, **fields: Any) -> list[Task]:
    """Tasks of all adapters and of none, of which each answer says much."""
    draw = random.Random(0)
    return [
        task(
            NAMES[number % len(NAMES)],
            TEXT[: draw.randrange(1, 24)],
            {"max_new_tokens": draw.randrange(2, 6), "do_sample": bool(number % 3), "logprobs": 1},
            seed=number,
            return_token_ids=True,
            **fields,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("name", ARITHMETIC)
async def test_alone_and_under_load(
    name: str, tiny_model: TinyModel, adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and log probabilities; those of no adapter are those of a model without any."""
    if name == "products":  # what other devices than a CPU compute
        monkeypatch.setattr(lora_kernel, "has_kernel", lambda _: False)
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
        for name in ("patterns", None):
            answer = engine.run_blocking(task(name, TEXT, SETTINGS[0], quantize_bits=bits))
            assert contents(answer) == peft.answers(name, TEXT, SETTINGS[0])


async def test_what_is_unloaded_comes_back_with_the_same_bits(
    tiny_model: TinyModel, adapters: dict[str, str]
) -> None:
    """There is room for the largest only: tasks wait for each other's adapters, and all end."""
    base = tiny_model("qwen3")
    asked = seeded(20)
    with closing(engine_of(base, adapters)) as engine:
        expected = [await engine.run(one) for one in asked]
        sizes = [each["memory_bytes"] for each in engine.card()["adapters"].values()]
        assert engine.stats()["adapters_loaded"] == engine.stats()["adapter_loads"] == len(adapters)
        assert engine.stats()["adapter_bytes"] == sum(sizes)
    with closing(engine_of(base, adapters, adapter_bytes=max(sizes))) as engine:
        assert await asyncio.gather(*map(engine.run, asked)) == expected
        assert engine.stats()["adapter_loads"] > len(adapters)
        assert engine.stats()["adapter_bytes"] <= max(sizes)


def test_a_prefix_belongs_to_its_adapter(tiny_model: TinyModel, adapters: dict[str, str]) -> None:
    base = tiny_model("qwen3")
    asked = [task(name, TEXT, SETTINGS[2]) for name in NAMES[-3:]]
    cold = []
    for one in asked:
        with closing(engine_of(base, adapters)) as engine:
            cold.append(engine.run_blocking(one))
    with closing(engine_of(base, adapters)) as engine:
        assert [engine.run_blocking(one) for one in asked] == cold
        assert engine.stats()["prefix_tokens_reused"] == 0
        assert [engine.run_blocking(one) for one in asked] == cold
        assert engine.stats()["prefix_tokens_reused"] >= len(asked) * 64


def test_the_fingerprint_covers_the_files(tiny_model: TinyModel, tmp_path: Path) -> None:
    """And the model's own does not depend on adapters."""
    base = tiny_model("qwen3")
    for name, seed, dtype in (("a", 1, None), ("b", 2, None), ("small", 1, torch.float16)):
        save_adapter(base, tmp_path / name, seed, dtype, r=4, lora_alpha=8)
    adapters = {name: str(tmp_path / name) for name in ("a", "b", "small")}
    adapters["again"] = adapters["a"]
    with closing(engine_of(base, adapters)) as engine:
        card = engine.card()
        prints = {name: each["system_fingerprint"] for name, each in card["adapters"].items()}
        assert prints["again"] == prints["a"]
        assert len({card["system_fingerprint"], *prints.values()}) == 4
        answer = engine.run_blocking(task("b", "Hi", SETTINGS[0]))
        assert answer["system_fingerprint"] == prints["b"]
        assert answer["model"] == "tiny:b"
        small = engine.run_blocking(task("small", TEXT, SETTINGS[0]))
        assert contents(small) == Peft(base, adapters).answers("small", TEXT, SETTINGS[0])
    with closing(engine_of(base, {})) as engine:
        assert engine.card()["system_fingerprint"] == card["system_fingerprint"]


def test_an_unknown_adapter_is_answered_with_those_there_are(
    tiny_model: TinyModel, adapters: dict[str, str]
) -> None:
    with closing(engine_of(tiny_model("qwen3"), adapters)) as engine:
        there = "its adapters: all, scaled, attention, patterns"
        with pytest.raises(ModelInvalid, match=f"'tiny' has no adapter 'sql'; {there}") as caught:
            engine.run_blocking(task("sql", "Hi", {}))
        assert caught.value.param == "model"


def test_files_that_change_are_not_served(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The fingerprint would be that of others. Tasks without the adapter go on."""
    base = tiny_model("qwen3")
    save_adapter(base, tmp_path / "one", 1, r=4, lora_alpha=8)
    with closing(engine_of(base, {"one": str(tmp_path / "one")})) as engine:
        save_adapter(base, tmp_path / "one", 2, r=4, lora_alpha=8)
        for _ in range(2):
            with pytest.raises(ModelCorrupt, match=r"'.*:one' have changed since"):
                engine.run_blocking(task("one", "Hi", SETTINGS[0]))
        assert contents(engine.run_blocking(task(None, "Hi", SETTINGS[0])))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora"),
    "bias": ({"bias": "lora_only"}, "bias"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "saved": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "adapts an embedding"),
    "head": ({"target_modules": ["lm_head"]}, "it brings weights of the model itself.*lm_head"),
    "rank": ({"r": 300}, "its rank is 300 .* max_adapter_rank is 256"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT advises against some of them too
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(
    name: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    settings, said = REFUSED[name]
    save_adapter(tiny_model("qwen3"), tmp_path / "one", 1, **settings)
    with pytest.raises(ModelInvalid, match=f"adapter '.*:one' .*{said}"):
        engine_of(tiny_model("qwen3"), {"one": str(tmp_path / "one")})


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"peft_type": "IA3"}, "its peft_type is 'IA3'"),
    "init": ({"init_lora_weights": "pissa"}, "its init_lora_weights is 'pissa'"),
    "future": ({"use_what_comes_next": 3}, "it has use_what_comes_next"),
    "alpha": ({"lora_alpha": "8"}, "its lora_alpha is '8'"),
    "infinite": ({"lora_alpha": float("inf")}, "its lora_alpha is inf"),
    "zero": ({"r": 0}, "its r is 0"),
    "other": ({"r": 5}, "have the ranks 4 and 4, and adapter_config.json says 5"),
    "pattern": ({"alpha_pattern": {"(": 2}}, "its alpha_pattern has"),
    "endless": ({"rank_pattern": {r"(\w|\.|[a-z])*[^\w.]": 2}}, "its pattern .* takes longer than"),
    "patterns": ({"rank_pattern": [3]}, "its rank_pattern is no object"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_fields(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    fields, said = FIELDS[name]
    base = tiny_model("qwen3")
    save_adapter(base, tmp_path, 1, r=4, lora_alpha=8)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    adapters: Any = {"one": str(tmp_path)}
    config = EngineConfig(model=str(base), model_id="m", adapters=adapters)
    with pytest.raises(ModelInvalid, match=f"adapter 'm:one' .*{said}"):
        locate_adapter(config, "one")


def test_files_that_are_not_those_of_an_adapter(tiny_model: TinyModel, tmp_path: Path) -> None:
    base, other = tiny_model("qwen3"), tiny_model("llama")
    adapters: Any = {"one": str(tmp_path / "one")}
    config = EngineConfig(model=str(base), model_id="m", adapters=adapters)
    (tmp_path / "one").mkdir()
    with pytest.raises(ModelInvalid, match=r"'m:one' has no adapter_config\.json"):
        locate_adapter(config, "one")
    save_adapter(base, tmp_path / "one", 1, r=4, lora_alpha=8)
    weights = tmp_path / "one" / "adapter_model.safetensors"
    size = locate_adapter(config, "one").num_bytes
    with pytest.raises(ModelInvalid, match=f"takes {size} bytes in float32, and adapter_bytes is"):
        locate_adapter(config.replace(adapter_bytes=size - 1), "one")
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(ModelCorrupt, match="'m:one' is damaged"):
        locate_adapter(config, "one")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelUnsafe, match="'m:one' has its weights as a pickle only"):
        locate_adapter(config, "one")
    save_adapter(tiny_model("gpt2"), tmp_path / "one", 1, **MODULES["gpt2"])
    with pytest.raises(ModelInvalid, match=r"it adapts transformer\.h\.0\.attn\.c_attn, which is"):
        engine_of(other, {"one": str(tmp_path / "one")})


def test_adapters_of_another_size(tiny_model: TinyModel, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    save_architecture("qwen3", {"intermediate_size": 128, "head_dim": 16}, wide)
    save_adapter(tiny_model("qwen3"), tmp_path / "one", 1, target_modules=["q_proj"])
    save_architecture("qwen3", {"head_dim": 8}, tmp_path / "narrow")
    with closing(engine_of(wide, {"one": str(tmp_path / "one")})):
        pass
    with pytest.raises(ModelInvalid, match=r"was made for a .*q_proj of 64 to 64 .* 64 to 32"):
        engine_of(tmp_path / "narrow", {"one": str(tmp_path / "one")})


def test_a_model_over_several_devices(tiny_model: TinyModel, adapters: dict[str, str]) -> None:
    """Layer by layer: each has its part of the adapter."""
    with closing(engine_of(tiny_model("qwen3"), adapters)) as engine:
        expected = [contents(engine.run_blocking(task(n, "Hi", SETTINGS[0]))) for n in NAMES]
    split = {"num_devices": 2, "split": "layers"}
    with closing(engine_of(tiny_model("qwen3"), adapters, **split)) as engine:
        for name, answer in zip(NAMES, expected, strict=True):
            assert contents(engine.run_blocking(task(name, "Hi", SETTINGS[0]))) == answer


def test_tensor_parallel_models_have_none(adapters: Any) -> None:
    with pytest.raises(ValueError, match="adapters are not computed on a model that is split"):
        EngineConfig(model="m", num_devices=2, adapters=adapters)
    EngineConfig(model="m", num_devices=2, split="layers", adapters=adapters)
