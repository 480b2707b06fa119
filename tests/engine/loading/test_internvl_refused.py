"""Original InternVL repositories that cannot be run as intended are refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine import EngineConfig
from engine.loading.families.internvl import native_config
from engine.loading.model_files import load_processor
from engine.requests.prompt import PromptRenderer
from schema.errors import ModelInvalid, TaskArgsInvalid
from tests.engine.loading.test_internvl_original import asked, image, load, prepared, text
from tests.engine.models.tiny_internvl import TILE, original_config, save_original


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny original checkpoint."""
    directory = tmp_path_factory.mktemp("original")
    save_original(directory, "qwen2", "300M")
    return directory


ODD: dict[str, dict[str, Any]] = {
    "ps_version": {"ps_version": "v1"},
    "select_layer": {"select_layer": -4},
    "pad2square": {"pad2square": True},
    "template": {"template": "Hermes-2"},
    "use_thumbnail": {"use_thumbnail": False},
    "use_llm_lora": {"use_llm_lora": 16},
    "force_image_size": {"force_image_size": 64},
    "llm_config.architectures": {"llm_config": {"architectures": ["Phi3ForCausalLM"]}},
    "llm_config.bias": {"llm_config": {"architectures": ["InternLM2ForCausalLM"], "bias": True}},
    "layer_norm_eps": {"vision_config": {"image_size": TILE, "layer_norm_eps": 1e-5}},
}


@pytest.mark.parametrize("key", ODD)
def test_what_transformers_does_not_have_is_refused_by_name(
    key: str, qwen: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(qwen, directory)
    changed = original_config("qwen2", "300M", **ODD[key])
    (directory / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelInvalid) as caught:
        load(directory)
    assert f" {key} " in str(caught.value)
    with pytest.raises(ModelInvalid):
        load_processor(EngineConfig(model=str(directory)))


def test_settings_that_an_old_configuration_leaves_out_are_refused() -> None:
    """The original code's default for pixel shuffling is the transposed one."""
    config = original_config("qwen2", "300M")
    del config["ps_version"]
    with pytest.raises(ModelInvalid, match="ps_version 'v1'"):
        native_config(config, "old")


def test_quantized_originals_are_refused() -> None:
    config = original_config("qwen2", "300M", quantization_config={"quant_method": "awq"})
    with pytest.raises(ModelInvalid, match="quantized already"):
        native_config(config, "awq")


def test_without_dynamic_size_a_image_is_one_tile(qwen: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(qwen, directory)
    changed = original_config("qwen2", "300M", dynamic_image_size=False, use_thumbnail=False)
    (directory / "config.json").write_text(json.dumps(changed))
    (prepared_image,) = prepared(directory, asked([image(1), text("a")]))
    assert prepared_image.arrays["pixel_values"].shape == (1, 3, TILE, TILE)


def test_a_tokenizer_without_the_image_tokens_is_refused(qwen: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(qwen, directory)
    for name in ("tokenizer_config.json", "added_tokens.json"):
        path = directory / name
        path.write_text(path.read_text().replace("<IMG_CONTEXT>", "<other>"))
    with pytest.raises(ModelInvalid, match="<IMG_CONTEXT>"):
        load(directory)


def test_weights_that_are_missing_are_not_made_up(qwen: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(qwen, directory)
    changed = original_config("qwen2", "300M")
    changed["vision_config"]["num_hidden_layers"] = 3
    (directory / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ModelInvalid, match="lack"):
        load(directory)


def test_a_token_that_the_model_does_not_know_is_refused(qwen: Path, tmp_path: Path) -> None:
    """Some repositories' tokenizers have more tokens than their models have embeddings."""
    directory = tmp_path / "model"
    shutil.copytree(qwen, directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    last = max(map(int, config["added_tokens_decoder"]))
    config["added_tokens_decoder"][str(last + 1)] = {"content": "<video>", "special": True}
    path.write_text(json.dumps(config))
    render = PromptRenderer(load(directory)).render
    assert render(asked("video")).token_ids
    with pytest.raises(TaskArgsInvalid, match="<video>") as caught:
        render(asked("a <video>"))
    assert caught.value.param == "messages"


def test_parts_that_transformers_does_not_have_are_refused(qwen: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(qwen, directory)
    save_file({"pooling.weight": torch.ones(3)}, directory / "more.safetensors", {"format": "pt"})
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["pooling.weight"] = "more.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match=r"pooling\.weight"):
        load(directory)


@pytest.mark.parametrize("tiles", [(1, 0), (3, 2), (1, 65), (1, 1.5), ("a", 12), (True, 12)])
def test_odd_numbers_of_tiles_are_refused(tiles: tuple[Any, Any], tmp_path: Path) -> None:
    odd = dict(zip(("min_dynamic_patch", "max_dynamic_patch"), tiles, strict=True))
    with pytest.raises(ModelInvalid, match="max_dynamic_patch"):
        native_config(original_config("qwen2", "300M", **odd), "odd")
