"""Checkpoints that are quantized already: served as they are published, or refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from engine import Engine, EngineConfig
from engine.loading.estimate import estimate_bytes
from engine.loading.loader import load_model
from schema import ModelCorrupt, ModelFormatUnsupported, ModelInvalid, Task, TaskError
from tests.engine.conftest import TinyModel
from tests.engine.loading.test_loader import refused
from tests.engine.models.tiny_models import CHAT_TEMPLATE, byte_tokenizer
from tests.engine.models.tiny_published import (
    PUBLISHED,
    change_config,
    save_mxfp4,
    save_published,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
MODEL = "served"


def made(experts: bool = False, **sizes: Any) -> Any:
    tokenizer = byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    if not experts:
        return Qwen2ForCausalLM(Qwen2Config(**SIZES | sizes, **ids)).eval()
    of_experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    config = Qwen3MoeConfig(**SIZES, **ids, **of_experts, moe_intermediate_size=32)
    return Qwen3MoeForCausalLM(config).eval()


@torch.no_grad()
def saved(kind: str, directory: Path, *, experts: bool = False) -> Any:
    model, tokenizer = made(experts), byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    save_published(kind, model, tokenizer, directory)
    return model


def answer(config: EngineConfig) -> tuple[str, dict[str, Any]]:
    """The engine's answer, and its card."""
    with closing(Engine(config)) as engine:
        card = engine.card()
        assert card["continuous_batching"], card["fallback_reason"]
        response = engine.run_blocking(
            Task.from_fields(
                model=MODEL,
                messages=[{"role": "user", "content": "a" * 20}],
                generation_config={"max_new_tokens": 10},
                quantize_bits=config.quantize_bits,
            )
        )
    return str(response["choices"][0]["message"]["content"]), card


def generated(model: Any) -> str:
    """The answer of `generate`."""
    tokenizer = byte_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a" * 20}],
        chat_template=CHAT_TEMPLATE,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**prompt, max_new_tokens=10, do_sample=False, pad_token_id=0)
    start = prompt["input_ids"].shape[1]
    return str(tokenizer.decode(output[0][start:], skip_special_tokens=True))


def config_of(directory: Path, **options: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model": str(directory),
        "model_id": MODEL,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "max_sequences": 2,
        "kv_cache_tokens": 512,
    }
    return EngineConfig(**settings | options)


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_those_that_were_packed(kind: str, dtype: str, tmp_path: Path) -> None:
    own = saved(kind, tmp_path)
    loaded = load_model(config_of(tmp_path, dtype=dtype))
    assert loaded.checkpoint.loaded_as == f"dequantized to {dtype}"
    state = loaded.model.state_dict()
    for name, tensor in own.to(getattr(torch, dtype)).state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("kind", ["awq", "gptq", "fp8-blocks", "compressed-int4"])
def test_the_tokens_are_those_of_generate(kind: str, tmp_path: Path) -> None:
    own = saved(kind, tmp_path)
    config = config_of(tmp_path)
    text, card = answer(config)
    assert text == generated(own)
    assert card["checkpoint"]["quantization"] == PUBLISHED[kind][1]["quant_method"]
    memory = card["memory"]["weights_bytes"] + card["memory"]["kv_cache_bytes"]
    assert estimate_bytes(config) == pytest.approx(memory, rel=0.05)


@pytest.mark.parametrize("kind", ["awq", "gptq", "fp8-blocks", "compressed-fp8"])
def test_experts(kind: str, tmp_path: Path) -> None:
    """Each expert's weights are packed by themselves, and become one tensor of all."""
    own = saved(kind, tmp_path, experts=True)
    state = load_model(config_of(tmp_path)).model.state_dict()
    for name, tensor in own.state_dict().items():
        assert torch.equal(state[name], tensor), name


@torch.no_grad()
def test_the_language_model_of_a_vision_model(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Its settings may stand in its part of the configuration."""
    source = tiny_model("qwen2_5_vl")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    own = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    save_published("compressed-fp8", own, tokenizer, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    text = content["text_config"] | {"quantization_config": content["quantization_config"]}
    change_config(tmp_path, quantization_config=None, text_config=text)
    loaded = load_model(config_of(tmp_path))
    assert loaded.checkpoint.quantization == "compressed-tensors"
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], each) for name, each in own.state_dict().items())


def test_experts_in_mxfp4(tmp_path: Path) -> None:
    """As gpt-oss is published: its experts are packed, and computed in the batch as any."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    own = GptOssForCausalLM(
        GptOssConfig(
            **SIZES,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=8,
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    ).eval()
    save_mxfp4(own, tokenizer, tmp_path)
    text, card = answer(config_of(tmp_path))
    assert text == generated(own)
    assert card["checkpoint"]["quantization"] == "mxfp4"
    assert card["expert_rows"]


@pytest.mark.parametrize("bits", [4, 8])
def test_saved_by_bitsandbytes(bits: Any, tmp_path: Path) -> None:
    """It is kept as it is stored, and answers as weights do that are quantized while loading."""
    plain, stored = tmp_path / "plain", tmp_path / "stored"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    made(intermediate_size=128).save_pretrained(plain)
    how = (
        BitsAndBytesConfig(load_in_8bit=True)  # with outliers, which would depend on the batch
        if bits == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=how, dtype=torch.float32, device_map="cpu"
    ).save_pretrained(stored)
    for directory in (plain, stored):
        tokenizer.save_pretrained(directory)
    text, card = answer(config_of(stored))
    assert card["checkpoint"]["loaded_as"] == "as stored"
    assert card["checkpoint"]["quantization"] == f"bitsandbytes {'NF4' if bits == 4 else 'INT8'}"
    quantized, other = answer(config_of(plain, quantize_bits=bits))
    assert text == quantized
    assert card["system_fingerprint"] != other["system_fingerprint"]
    assert card["memory"] == other["memory"]
    memory = card["memory"]["weights_bytes"] + card["memory"]["kv_cache_bytes"]
    assert estimate_bytes(config_of(stored)) == pytest.approx(memory, rel=0.1)
    assert "quantized already" in refused(ModelInvalid, stored, quantize_bits=12 - bits)
    tensors = load_file(stored / "model.safetensors")
    part = {4: "weight.absmax", 8: "SCB"}[bits]
    del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    assert f"up_proj has weight and no {part}" in refused(ModelCorrupt, stored)


def test_quantized_again(tmp_path: Path) -> None:
    """A checkpoint that is dequantized may be quantized as any other."""
    own = saved("awq", tmp_path / "awq")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    own.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    text, card = answer(config_of(tmp_path / "awq", quantize_bits=8))
    assert card["checkpoint"]["loaded_as"] == "dequantized to float32, quantized to INT8"
    assert text == answer(config_of(tmp_path / "plain", quantize_bits=8))[0]


GPTQ = PUBLISHED["gptq"][1]
COMPRESSED = PUBLISHED["compressed-int4"][1]
NOT_READ: dict[str, tuple[Any, type[TaskError], str]] = {
    "unknown": ({"quant_method": "shrink"}, ModelFormatUnsupported, "'shrink', which is not known"),
    "without a method": ({"bits": 4}, ModelFormatUnsupported, "not known"),
    "not read": ({"quant_method": "hqq"}, ModelFormatUnsupported, "hqq, which is not read"),
    "no object": ("gptq", ModelCorrupt, "no object"),
    "other layout of AWQ": (
        {"quant_method": "awq", "version": "gemv"},
        ModelFormatUnsupported,
        "'gemv'",
    ),
    "Marlin": (GPTQ | {"checkpoint_format": "marlin"}, ModelFormatUnsupported, "'marlin'"),
    "other bits": (GPTQ | {"bits": 5}, ModelFormatUnsupported, "bits 5"),
    "sparse": (
        COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        ModelFormatUnsupported,
        "sparse-24-bitmask",
    ),
    "FP4 of bitsandbytes": ({"load_in_4bit": True}, ModelFormatUnsupported, "'fp4'"),
    "bits that are no number": (
        COMPRESSED | {"config_groups": {"g": {"weights": {"num_bits": "four"}}}},
        ModelCorrupt,
        "quantization_config",
    ),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_settings_that_are_not_read(name: str, tmp_path: Path) -> None:
    saved("gptq", tmp_path)
    settings, kind, says = NOT_READ[name]
    change_config(tmp_path, quantization_config=settings)
    assert says in refused(kind, tmp_path)


def _without(part: str) -> Any:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"model.layers.1.mlp.up_proj.{part}"]

    return damage


def _shorter(part: str) -> Any:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        name = f"model.layers.1.mlp.up_proj.{part}"
        tensors[name] = tensors[name][:-1].clone()

    return damage


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "no scales": ("awq", _without("scales"), "qweight and no scales"),
    "no values": ("awq", _without("qweight"), "no qweight"),
    "values cut off": ("gptq", _shorter("qweight"), "do not fit together"),
    "scales cut off": ("gptq", _shorter("scales"), "do not fit together"),
    "a block less": ("fp8-blocks", _shorter("weight_scale_inv"), "do not fit together"),
    "no scale": ("fp8-blocks", _without("weight_scale_inv"), "no weight_scale_inv"),
    "no scales of words": ("compressed-int4", _without("weight_scale"), "no weight_scale"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_weights(name: str, tmp_path: Path) -> None:
    kind, damage, says = DAMAGES[name]
    saved(kind, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    message = refused(ModelCorrupt, tmp_path)
    assert says in message
    assert "model.layers.1.mlp.up_proj" in message


def test_settings_in_other_places(tmp_path: Path) -> None:
    own = saved("gptq", tmp_path)
    change_config(tmp_path, quantization_config=None)
    assert "no quantization_config" in refused(ModelFormatUnsupported, tmp_path)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 16}')
    state = load_model(config_of(tmp_path)).model.state_dict()
    assert all(torch.equal(state[name], each) for name, each in own.state_dict().items())


def test_over_several_devices(tmp_path: Path) -> None:
    own = saved("awq", tmp_path)
    config = config_of(tmp_path, num_devices=2)
    state = load_model(config.replace(split="layers")).model.state_dict()
    assert all(torch.equal(state[name], each) for name, each in own.state_dict().items())
    with pytest.raises(ModelInvalid, match="set split to 'layers'"):
        load_model(config)


async def test_under_load(tmp_path: Path) -> None:
    """Dequantized weights are computed with as any: what else is in the batch changes nothing."""
    saved("gptq-act-order", tmp_path, experts=True)
    config = config_of(tmp_path, dtype="bfloat16", max_sequences=8, kv_cache_tokens=2048)
    with closing(Engine(config)) as engine:
        tasks = [
            Task.from_fields(
                model=MODEL,
                messages=[{"role": "user", "content": chr(97 + number) * (5 + 7 * number)}],
                generation_config={"max_new_tokens": 12, "do_sample": number % 2 == 1},
                seed=number,
            )
            for number in range(8)
        ]
        alone = [engine.run_blocking(each) for each in tasks]
        together = await asyncio.gather(*map(engine.run, reversed(tasks)))
    assert together == alone[::-1]
