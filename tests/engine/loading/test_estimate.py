"""The memory of a model: counted as it is stored, and estimated before it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine import Engine, EngineConfig
from engine.core.model_info import weight_bytes
from engine.execution.executor import Executor
from engine.execution.modules.prepack import prepack
from engine.loading.estimate import estimate_bytes, estimate_memory
from engine.loading.loader import load_model
from tests.engine.conftest import TinyModel
from tests.engine.loading.hub import Hub
from tests.engine.loading.test_hub import MODEL, _config, hub, repository  # noqa: F401 - fixtures
from tests.engine.models.tiny_adapters import save_adapters
from tests.engine.models.tiny_models import Kind

KINDS: tuple[Kind, ...] = ("qwen2", "llama", "gemma3", "gpt2", "internvl")


def _quantized_bytes(layer: nn.Linear, bits: int) -> float:
    """By the formats: a scale for each row, or for each 64 weights with a table of 16 values."""
    weights = layer.in_features * layer.out_features
    if bits == 8:
        return weights + 4 * layer.out_features
    return weights / 2 + 4 * -(-weights // 64) + 4 * 16


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "internvl"])
def test_counted_as_stored(kind: Kind, bits: Any, tiny_model: TinyModel) -> None:
    options: dict[str, Any] = {"model": str(tiny_model(kind)), "dtype": "float32", "device": "cpu"}
    plain = load_model(EngineConfig(**options)).model
    expected = float(plain.get_memory_footprint())
    loaded = load_model(EngineConfig(**options, quantize_bits=bits)).model
    for name, module in loaded.named_modules():
        if bits is not None and isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            original = plain.get_submodule(name)
            expected += _quantized_bytes(original, bits) - 4 * original.weight.numel()
    assert weight_bytes(loaded) == expected


def test_packed_layers_are_counted_once(tiny_model: TinyModel) -> None:
    """Layers that became one product share its weight; a tied head is kept beside its embedding."""
    loaded = load_model(EngineConfig(model=str(tiny_model("qwen2")), dtype="float32", device="cpu"))
    before = weight_bytes(loaded.model)
    executor = Executor(loaded)
    with torch.inference_mode():
        assert prepack(loaded.model, trial=executor.measure)
    config = loaded.model.config
    tied = config.tie_word_embeddings
    extra = 4 * config.vocab_size * config.hidden_size if tied else 0
    assert weight_bytes(loaded.model) == before + extra


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_near(kind: Kind, bits: Any, tiny_model: TinyModel) -> None:
    config = EngineConfig(
        model=str(tiny_model(kind)),
        dtype="float32",
        device="cpu",
        quantize_bits=bits,
        kv_cache_tokens=2048,
        threads=1,
    )
    engine = Engine(config)
    memory = engine.card()["memory"]
    engine.close()
    counted = memory["weights_bytes"] + memory["kv_cache_bytes"]
    assert estimate_bytes(config) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_description_is_enough(
    kind: Kind, bits: Any, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """Without its weights, a model is counted as it is with them."""
    shutil.copytree(tiny_model(kind), tmp_path / kind, ignore=shutil.ignore_patterns("*.safe*"))
    options: dict[str, Any] = {"device": "cuda", "quantize_bits": bits, "kv_cache_tokens": 64}
    described = estimate_memory(
        EngineConfig(model=str(tmp_path / kind), **options), from_config=True
    )
    assert described == estimate_memory(EngineConfig(model=str(tiny_model(kind)), **options))


def test_weights_that_decoding_reads(tiny_model: TinyModel) -> None:
    """Neither the vision tower nor a table of embeddings, of which it needs a row."""
    config = EngineConfig(model=str(tiny_model("internvl")), dtype="float32", device="cpu")
    model = load_model(config).model
    unread = [model.model.vision_tower, model.model.multi_modal_projector]
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        unread.append(model.get_input_embeddings())
    bytes_unread = 4 * sum(p.numel() for module in unread for p in module.parameters())
    estimate = estimate_memory(config.replace(device="cuda"))
    assert estimate.decode_weights == estimate.weights - bytes_unread


def test_the_limit_of_the_cache_is_kept(tiny_model: TinyModel) -> None:
    config = EngineConfig(
        model=str(tiny_model("qwen2")), dtype="float32", threads=1, max_kv_cache_bytes=500_000
    )
    engine = Engine(config)
    memory = engine.card()["memory"]
    engine.close()
    page = 16 * 512  # tokens of a page, bytes of a token; one page has no owner
    assert 500_000 - page < memory["kv_cache_bytes"] < 500_000 + 3 * page
    assert estimate_bytes(config) == pytest.approx(sum(memory.values()), rel=0.05)


def test_an_estimate_downloads_no_weights(
    hub: Hub,  # noqa: F811
    repository: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    options = {"kv_cache_tokens": 2048, "dtype": "float32"}
    remote = estimate_bytes(_config(**options))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert MODEL in hub.repositories
    load_model(_config())
    assert estimate_bytes(_config(**options)) == remote
    assert estimate_bytes(_config(**options, local_files_only=True)) == remote


def test_adapters_are_counted(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Those in directories as they are, up to the bound; of others only the bound is known."""
    base = tiny_model("qwen3")
    adapters: Any = save_adapters(base, tmp_path)
    config = EngineConfig(model=str(base), device="cpu", dtype="float32", adapters=adapters)
    engine = Engine(config)
    sizes = [adapter["memory_bytes"] for adapter in engine.card()["adapters"].values()]
    engine.close()
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert 0 < stored - sum(sizes) < len(sizes) * 10_000  # headers
    assert estimate_memory(config).adapters == sum(sizes)
    assert estimate_memory(config.replace(adapter_bytes=max(sizes))).adapters == max(sizes)
    of_hub = config.replace(adapters={"one": "org/one"}, adapter_bytes=10**6)
    assert estimate_memory(of_hub).adapters == 10**6
