"""Models that are a GGUF file: served as they are published, or refused with the reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from demo.smollm2 import gguf_file
from engine import Engine, EngineConfig
from engine.core.model_info import weights_digest
from engine.loading.estimate import estimate_bytes
from engine.loading.loader import load_model
from engine.loading.reading.read_ahead import read_ahead
from schema import (
    ModelCorrupt,
    ModelFormatUnsupported,
    ModelIncomplete,
    ModelInvalid,
    Task,
    TaskError,
)
from tests.engine.loading.hub import COMMIT, Hub
from tests.engine.loading.test_hub import hub  # noqa: F401 - a fixture
from tests.engine.loading.test_loader import refused
from tests.engine.models.tiny_gguf import save_gguf
from tests.engine.models.tiny_models import CHAT_TEMPLATE, byte_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QUESTIONS = ("What is the capital of France?", "def fibonacci(n):")
MODEL = "served"


def made(kind: str) -> Any:
    ids = {"vocab_size": len(byte_tokenizer()), "eos_token_id": byte_tokenizer().eos_token_id}
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(**SIZES, **ids, max_position_embeddings=512, rope_parameters=LLAMA3)
        ).eval()
    if kind == "qwen3_moe":
        of_experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **SIZES,
                **ids,
                **of_experts,
                moe_intermediate_size=32,
                norm_topk_prob=True,
                max_position_embeddings=512,
            )
        ).eval()
    if kind == "phi3":
        rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
        factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]}
        return Phi3ForCausalLM(
            Phi3Config(
                **SIZES,
                **ids,
                max_position_embeddings=512,
                original_max_position_embeddings=16,
                sliding_window=64,
                pad_token_id=0,
                rope_parameters={**rope, **factors, "original_max_position_embeddings": 16},
            )
        ).eval()
    # Its heads are not a share of its hidden size.
    return Qwen3ForCausalLM(
        Qwen3Config(**SIZES, **ids, head_dim=32, max_position_embeddings=512)
    ).eval()


def saved(name: str, path: Path, **options: Any) -> Any:
    model = made(name)
    if name == "llama":
        options.setdefault("frequencies", llama3_factors(model))
    if name == "phi3":
        rope = model.config.rope_parameters
        options["extra"] = {
            f"rope_factors_{each}.weight": np.array(rope[f"{each}_factor"], np.float32)
            for each in ("short", "long")
        }
        options["metadata"] = {
            "phi3.rope.scaling.original_context_length": 16,
            "phi3.attention.sliding_window": 64,
        }
    save_gguf(model, byte_tokenizer(), path, template=CHAT_TEMPLATE, **options)
    return model


def llama3_factors(model: Any) -> np.ndarray[Any, Any]:
    """What the frequencies of the model were divided by, as llama.cpp's converter writes it."""
    exponents = torch.arange(0, 16, 2) / 16
    factors: torch.Tensor = LLAMA3["rope_theta"] ** -exponents / model.model.rotary_emb.inv_freq
    return factors.numpy()


def task(question: str, **fields: Any) -> Task:
    return Task.from_fields(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        generation_config={"max_new_tokens": 10},
        **fields,
    )


def texts(response: Any) -> list[str]:
    return [choice["message"]["content"] for choice in response["choices"]]


def test_smollm2_as_it_is_published(smollm2: Path) -> None:
    """Its weights are those of the safetensors that were made of it, its tokens `generate`'s."""
    source = gguf_file()
    config = EngineConfig(
        model=str(source),
        model_id=MODEL,
        dtype="float32",
        threads=1,
        context_length=64,
        max_sequences=2,
        prefill_chunk=16,
    )
    plain = load_model(config).model
    stored = load_file(smollm2 / "model.safetensors")  # in bfloat16
    state = plain.state_dict()
    assert all(torch.equal(state[name].bfloat16(), tensor) for name, tensor in stored.items())
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    want = [generated(plain, tokenizer, question) for question in QUESTIONS]
    del state, stored, plain  # not three models in memory at once
    with closing(Engine(config)) as engine:
        card = engine.card()
        assert card["continuous_batching"], card["fallback_reason"]
        assert card["checkpoint"] == {
            "format": "gguf",
            "quantization": "Q4_1",
            "loaded_as": "dequantized to float32",
        }
        assert [texts(engine.run_blocking(task(question))) for question in QUESTIONS] == want


def generated(model: Any, tokenizer: Any, question: str) -> list[str]:
    """The answer of `generate`."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    start = prompt["input_ids"].shape[1]
    output = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    return [tokenizer.decode(output[0][start:], skip_special_tokens=True)]


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_tokens_are_those_of_generate(kind: str, bits: Any, tmp_path: Path) -> None:
    """Rotary scaling and sizes of heads are in the file, and not in transformers' configuration."""
    own = saved(kind, tmp_path / "model.gguf")
    config = EngineConfig(
        model=str(tmp_path / "model.gguf"), model_id=MODEL, dtype="float32", threads=1,
        max_sequences=4, quantize_bits=bits,
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    asked = task("a" * 40, quantize_bits=bits)
    with closing(Engine(config)) as engine:
        assert engine.card()["continuous_batching"], engine.card()["fallback_reason"]
        found = texts(engine.run_blocking(asked))
        card = engine.card()
    memory = card["memory"]["weights_bytes"] + card["memory"]["kv_cache_bytes"]
    exact = config.replace(kv_cache_tokens=card["kv_cache_tokens"])
    assert estimate_bytes(exact) == pytest.approx(memory, rel=0.05)
    if bits is None:
        assert found == generated(own, tokenizer, "a" * 40)
    else:  # quantized as a directory with these weights is
        own.save_pretrained(tmp_path / "plain")
        tokenizer.save_pretrained(tmp_path / "plain")
        with closing(Engine(config.replace(model=str(tmp_path / "plain")))) as engine:
            assert found == texts(engine.run_blocking(asked))


def test_partial_rotation_with_long_factors(tmp_path: Path) -> None:
    own = saved("phi3", tmp_path / "model.gguf")
    loaded = load_model(EngineConfig(model=str(tmp_path), dtype="float32")).model
    assert loaded.config.sliding_window == 64
    for length in (12, 40):  # before and after the limit of the short factors
        ids = torch.arange(length)[None]
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, own(ids).logits)


def test_experts(tmp_path: Path) -> None:
    own = saved("qwen3_moe", tmp_path / "model.gguf")
    loaded = load_model(EngineConfig(model=str(tmp_path), dtype="float32")).model
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, own(ids).logits)


def test_the_only_file_of_a_directory(tmp_path: Path) -> None:
    own = saved("qwen3", tmp_path / "model.gguf")
    loaded = load_model(EngineConfig(model=str(tmp_path), dtype="float32"))
    for name, tensor in own.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    (tmp_path / "mmproj-model.gguf").write_bytes(b"of a model with images")
    load_model(EngineConfig(model=str(tmp_path)))
    saved("qwen3", tmp_path / "other.gguf")
    assert f"{tmp_path}/model.gguf" in refused(ModelInvalid, tmp_path)


def _cut(data: bytes) -> bytes:
    return data[:-1000]


def _cut_header(data: bytes) -> bytes:
    return data[:300]


def _other_file(data: bytes) -> bytes:
    return b"<html>" + data


def _pointer(_: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def _version(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", 9) + data[8:]


def _endless(data: bytes) -> bytes:
    return data[:16] + struct.pack("<Q", 2**62) + data[24:]


def _type(data: bytes) -> bytes:
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    return data[:at] + struct.pack("<I", 99) + data[at + 4 :]


def _rotate(data: bytes) -> bytes:
    """The architecture's name, and with it the keys, in other letters of the same length."""
    return data.replace(b"qwen3", b"qxyz3")


def _number(key: str, value: int) -> Callable[[bytes], bytes]:
    """Another value of a key, which is a number of 32 bits."""

    def damage(data: bytes) -> bytes:
        at = data.index(key.encode()) + len(key) + 4
        return data[:at] + struct.pack("<I", value) + data[at + 4 :]

    return damage


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], type[TaskError], str]] = {
    "cut off": (_cut, ModelCorrupt, "missing"),
    "cut off in its header": (_cut_header, ModelCorrupt, "ends within its header"),
    "another file": (_other_file, ModelCorrupt, "not a GGUF file"),
    "not pulled": (_pointer, ModelIncomplete, "git lfs pull"),
    "more values than it has": (_endless, ModelCorrupt, "ends within its header"),
    "unknown version": (_version, ModelFormatUnsupported, "version 9"),
    "unknown type": (_type, ModelFormatUnsupported, "type 99"),
    "unknown architecture": (_rotate, ModelFormatUnsupported, "'qxyz3'"),
    "more layers": (_number("qwen3.block_count", 10**9), ModelCorrupt, "block_count 1000000000"),
    "more heads": (
        _number("qwen3.attention.head_count_kv", 2**23),
        ModelInvalid,
        "are not of one model",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    saved("qwen3", path)
    damage, kind, says = DAMAGES[name]
    path.write_bytes(damage(path.read_bytes()))
    assert says in refused(kind, path)


def test_files_that_would_be_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    saved("llama", path, frequencies=np.linspace(1, 8, 8))
    assert "rotary positions" in refused(ModelFormatUnsupported, path)
    saved("llama", path, extra={"blk.0.attn_q.bias": np.zeros(64, np.float32)})
    assert "blk.0.attn_q.bias" in refused(ModelInvalid, path)
    saved("llama", path, metadata={"llama.rope.scaling.type": "own"}, frequencies=np.ones(8))
    load_model(EngineConfig(model=str(path)))  # it has no factor, so nothing is scaled
    saved("llama", path, metadata={"split.count": 3})
    assert "llama-gguf-split" in refused(ModelIncomplete, path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_plain_weights_keep_their_dtype(kind: str, tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "model.gguf", kind=GGMLQuantizationType[kind])
    loaded = load_model(EngineConfig(model=str(tmp_path)))
    dtype = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[kind]
    assert loaded.checkpoint.card() == {
        "format": "gguf",
        "quantization": None,
        "loaded_as": dtype,
    }


def test_a_file_of_the_hub(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    """Named after its repository, or the only one; it is downloaded alone, and once."""
    repository = tmp_path / "repository"
    repository.mkdir()
    hub.repositories["org/tiny"] = repository
    saved("qwen3", repository / "tiny-q8_0.gguf")
    config = EngineConfig(model="org/tiny", device="cpu", dtype="float32")
    assert load_model(config).gguf == "tiny-q8_0.gguf"
    saved("llama", repository / "tiny-f16.gguf", kind=GGMLQuantizationType.F16)
    message = refused(ModelInvalid, "org/tiny")
    assert "org/tiny:tiny-f16.gguf" in message
    named = config.replace(model="org/tiny:tiny-q8_0.gguf")
    assert read_ahead(named) == (repository / "tiny-q8_0.gguf").stat().st_size
    loaded = load_model(named)
    assert weights_digest(named, loaded) == f"{COMMIT}:tiny-q8_0.gguf"
    assert hub.downloads["tiny-q8_0.gguf"] == 1
    assert hub.downloads["tiny-f16.gguf"] == 0
    assert "it has tiny-f16.gguf" in refused(ModelInvalid, "org/tiny:tiny-q4_0.gguf")
    assert "nor the id of a hub repository" in refused(ModelInvalid, "org/tiny:config.json")
    offline = named.replace(model="org/tiny:tiny-f16.gguf", local_files_only=True)
    with pytest.raises(ModelIncomplete, match=r"hf download org/tiny tiny-f16\.gguf"):
        load_model(offline)
    assert load_model(named.replace(local_files_only=True)).revision == COMMIT


def test_over_several_devices(tmp_path: Path) -> None:
    own = saved("qwen3", tmp_path / "model.gguf")
    config = EngineConfig(model=str(tmp_path), device="cpu", dtype="float32", num_devices=2)
    state = load_model(config.replace(split="layers")).model.state_dict()
    assert all(torch.equal(state[name], each) for name, each in own.state_dict().items())
    with pytest.raises(ModelInvalid, match="set split to 'layers'"):
        load_model(config)
