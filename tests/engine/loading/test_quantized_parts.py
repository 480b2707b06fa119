"""Which parts are quantized: the loader, the estimate and the planner agree on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import get_local_safetensors_metadata
from torch import nn

from engine.config import EngineConfig
from engine.loading.description import describe_model
from engine.loading.families.family import FAMILIES, VISION_MODEL_TYPES, family_of
from engine.loading.loader import load_model
from engine.loading.model_files import read_config
from engine.loading.quantized.modules import takes
from engine.quantization.registry import QUANTIZATIONS
from tests.engine.conftest import TinyModel
from tests.engine.models.tiny_internvl import DENSE, save_original
from tests.engine.models.tiny_models import Kind
from tests.engine.models.tiny_vision_models import (
    FURTHER_KINDS,
    VISION_KINDS,
    VisionKind,
    model_type,
)

TEXT_KINDS: tuple[Kind, ...] = ("qwen2", "gpt2", "internvl")


def _check(directory: Path, bits: Any) -> None:
    quantized = QUANTIZATIONS[bits]
    config = EngineConfig(
        model=str(directory),
        dtype="float32",
        device="cpu",
        quantize_bits=bits,
        local_files_only=True,
    )
    described = describe_model(config)
    weights = {
        name for name, info in described.tensors.items() if takes(quantized, name, len(info.shape))
    }
    # bitsandbytes' classes are linear layers of its own; the sizes are the described ones.
    loaded = {
        f"{name}.weight"
        for name, module in load_model(config).model.named_modules()
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear
    }
    assert weights == loaded
    assert loaded
    # A checkpoint may have other names, and several weights in one.
    stored = {
        name: tensor.shape
        for file in get_local_safetensors_metadata(directory).files_metadata.values()
        for name, tensor in file.tensors.items()
    }
    assert sum(
        math.prod(shape) for name, shape in stored.items() if takes(quantized, name, len(shape))
    ) == sum(math.prod(described.tensors[name].shape) for name in weights)


@pytest.mark.parametrize("bits", QUANTIZATIONS)
@pytest.mark.parametrize("kind", [*TEXT_KINDS, *VISION_KINDS])
def test_estimated_as_loaded(kind: Kind | VisionKind, bits: Any, tiny_model: TinyModel) -> None:
    _check(tiny_model(kind), bits)


@pytest.mark.parametrize("language", DENSE)
def test_estimated_as_loaded_from_an_original_repository(language: Any, tmp_path: Path) -> None:
    save_original(tmp_path, language, "300M")
    _check(tmp_path, 8)


@pytest.mark.parametrize("kind", ["internvl", *VISION_KINDS, *FURTHER_KINDS])
def test_every_family_has_a_record(kind: Kind | VisionKind, tiny_model: TinyModel) -> None:
    """Its towers are modules of the model, and all that is not part of the language model."""
    config = EngineConfig(model=str(tiny_model(kind)), device="cpu", local_files_only=True)
    hf_config = read_config(config)
    family = family_of(hf_config.model_type)
    assert family is not None
    described = describe_model(config, hf_config)
    parts = {name.split(".")[1] for name in described.tensors if name.startswith("model.")}
    others = {"language_model", "text_model", "image_newline", "lm_head"}
    assert set(family.towers) == parts - others


def test_no_two_families_claim_a_model() -> None:
    assert len(set(VISION_MODEL_TYPES)) == len(VISION_MODEL_TYPES)
    tested = {"internvl", *map(model_type, (*VISION_KINDS, *FURTHER_KINDS))}
    assert {name for family in FAMILIES for name in family.model_types} == tested
