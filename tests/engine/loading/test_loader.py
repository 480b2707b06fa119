"""Models that cannot be loaded are refused with the class of error that says who can fix it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Kosmos2Config,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from engine import Engine
from engine.config import EngineConfig
from engine.loading.loader import load_model
from engine.loading.model_files import load_processor
from schema.errors import (
    ModelCorrupt,
    ModelFormatUnsupported,
    ModelIncomplete,
    ModelInvalid,
    ModelNotDownloaded,
    ModelUnsafe,
    TaskError,
)
from tests.engine.conftest import TinyModel
from tests.engine.models.tiny_models import byte_tokenizer

Damage = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    # The port of `discard`: it refuses at once. Read at import, so set where it is kept.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refused(kind: type[TaskError], model: Path | str, **options: Any) -> str:
    """The message of exactly this class of error."""
    with pytest.raises(TaskError) as caught:
        load_model(EngineConfig(model=str(model), device="cpu", **options))
    assert type(caught.value) is kind
    assert str(model) in str(caught.value)
    return str(caught.value)


def test_a_model_loads(tiny_model: TinyModel) -> None:
    loaded = load_model(EngineConfig(model=str(tiny_model("qwen2")), device="cpu"))
    assert loaded.context_length == 512
    assert not loaded.takes_images
    assert not loaded.model.training


def test_a_vision_model_loads(tiny_model: TinyModel) -> None:
    config = EngineConfig(model=str(tiny_model("internvl")), device="cpu")
    assert load_model(config).takes_images
    assert load_processor(config) is not None
    assert load_processor(EngineConfig(model=str(tiny_model("qwen2")))) is None


@pytest.mark.parametrize("name", ["/nonexistent/directory", "./here/not", "a b", "a/b/c", "~x"])
def test_neither_a_directory_nor_an_id(name: str) -> None:
    assert "neither a directory or GGUF file here nor the id" in refused(ModelInvalid, name)


def test_offline() -> None:
    refused(ModelNotDownloaded, "nobody/has-this")
    refused(ModelNotDownloaded, "nobody/has-this", local_files_only=True)


def test_a_hub_id_can_be_kept_from_meaning_a_directory(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model name in a task must not lead into the server's directory."""
    directory = tiny_model("qwen2")
    monkeypatch.chdir(directory.parent.parent)
    name = f"{directory.parent.name}/{directory.name}"
    load_model(EngineConfig(model=name, device="cpu"))
    refused(ModelNotDownloaded, name, from_hub=True)


def _write(name: str, content: str | bytes) -> Damage:
    def damage(directory: Path) -> None:
        raw = content.encode() if isinstance(content, str) else content
        (directory / name).write_bytes(raw)

    return damage


def _change(**changes: Any) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def _truncate(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _lengthen(directory: Path) -> None:
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"more")


def _without(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def _shards_missing(directory: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


def _pickle_instead(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

DAMAGES: dict[str, tuple[Damage, type[TaskError]]] = {
    "config is not JSON": (_write("config.json", "{oops"), ModelCorrupt),
    "config is not an object": (_write("config.json", "[]"), ModelCorrupt),
    "config is empty": (_write("config.json", "{}"), ModelInvalid),
    "config of unknown type": (_change(model_type="frobnicate"), ModelInvalid),
    "config of wrong types": (_change(hidden_size="many"), ModelInvalid),
    "config contradicts itself": (_change(num_hidden_layers=3), ModelInvalid),
    "config contradicts the weights": (_change(hidden_size=32), ModelInvalid),
    "code of the repository": (
        _change(model_type="own", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}),
        ModelUnsafe,
    ),
    "quantized in a way that is not read": (
        _change(quantization_config={"quant_method": "hqq", "bits": 4}),
        ModelFormatUnsupported,
    ),
    "weights are truncated": (_truncate, ModelCorrupt),
    "weights are too long": (_lengthen, ModelCorrupt),
    "weights are empty": (_write("model.safetensors", b""), ModelCorrupt),
    "weights are something else": (_write("model.safetensors", b"<html>" * 99), ModelCorrupt),
    "weights were not pulled": (_write("model.safetensors", LFS_POINTER), ModelIncomplete),
    "weights are a pickle": (_pickle_instead, ModelUnsafe),
    "no weights": (_without("model.safetensors"), ModelInvalid),
    "a shard is missing": (_shards_missing, ModelIncomplete),
    "tokenizer is not JSON": (_write("tokenizer.json", "{"), ModelCorrupt),
    "no tokenizer": (_without("tokenizer.json"), ModelInvalid),
    "no config": (_without("config.json"), ModelInvalid),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoints(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    damage, kind = DAMAGES[name]
    damage(directory)
    refused(kind, directory)


def test_shapes_that_the_configuration_contradicts(tiny_model: TinyModel, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    _change(hidden_size=32)(directory)
    said = refused(ModelInvalid, directory)
    assert "its weights have other shapes than its configuration says" in said
    assert "ignore_mismatched_sizes" not in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_key_value_heads": 200_000}, "describes .* weights, and .* bytes"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers 1000000000"),
    ],
)
def test_a_configuration_that_asks_for_memory(
    fields: dict[str, Any], said: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """It is refused before it gets any: transformers would make the modules first."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    _change(**fields)(directory)
    assert re.search(said, refused(ModelInvalid, directory))


def test_weights_that_the_checkpoint_lacks_are_not_made_up(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """transformers fills them with random numbers and warns."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    _change(num_hidden_layers=3, layer_types=["full_attention"] * 3)(directory)
    assert "model.layers.2" in refused(ModelInvalid, directory)


def _small(kind: str) -> Any:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    if kind == "bert":  # an encoder: has no head that predicts text
        return BertModel(BertConfig(hidden_size=16, vocab_size=300, **sizes))
    if kind == "vit":
        return ViTModel(ViTConfig(hidden_size=16, **sizes))
    return T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)
    )


@pytest.mark.parametrize("kind", ["bert", "vit", "t5"])
def test_models_that_do_not_continue_text(kind: str, tmp_path: Path) -> None:
    _small(kind).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    refused(ModelInvalid, tmp_path)


def test_vision_models_of_other_types(tmp_path: Path) -> None:
    Kosmos2Config().save_pretrained(tmp_path)
    assert "'kosmos-2'" in refused(ModelInvalid, tmp_path)


def test_quantized_twice(tiny_model: TinyModel, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    _change(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})(directory)
    assert "quantized already" in refused(ModelInvalid, directory, quantize_bits=4)


def test_a_context_that_the_model_does_not_have(tiny_model: TinyModel) -> None:
    assert "512" in refused(ModelInvalid, tiny_model("qwen2"), context_length=513)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelInvalid, match=r"device is .cuda.*use .auto. or .cpu."):
        load_model(EngineConfig(model=str(tiny_model("qwen2")), device="cuda"))


def test_a_repository_in_the_hubs_cache_is_known_by_its_commit(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--own--tiny"
    shutil.copytree(tiny_model("qwen2"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for options in ({}, {"local_files_only": True}, {"revision": commit}):
        config = EngineConfig(model="own/tiny", dtype="float32", threads=1, **options)
        assert load_model(config).revision == commit
    engine = Engine(EngineConfig(model="own/tiny", dtype="float32", threads=1))
    try:
        assert engine.card()["weights"] == commit
    finally:
        engine.close()
