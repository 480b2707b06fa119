"""Valid and invalid settings of an engine, and tasks that it refuses."""

import pickle
import re
from typing import Any, get_args

import pytest

from engine import EngineConfig
from engine.quantization.registry import QUANTIZATIONS, quantization
from schema import Task
from schema.errors import ModelInvalid, TaskArgsInvalid, TaskError
from schema.model_variant import QuantizeBits
from tests.engine.conftest import TinyEngine

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "bf16"),
        ("device", "gpu"),
        ("split", "rows"),
        ("quantize_bits", 3),
        ("context_length", -1),
        ("kv_cache_tokens", 0),
        ("max_kv_cache_bytes", -5),
        ("threads", 0),
        ("max_sequences", 0),
    ],
)
def test_a_setting_that_means_nothing_is_refused(name: str, value: Any) -> None:
    settings: dict[str, Any] = {"model": "any", name: value}
    with pytest.raises(ValueError, match=f"^{name} must be .* got {value!r}$"):
        EngineConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_token": 1}, "unknown key 'kv_cache_token'; did you mean 'kv_cache_tokens'?"),
        ({"max_sequences": "4"}, "max_sequences must be an integer, got '4'"),
        ({"threads": True}, "threads must be an integer, got True"),
        ({"deterministic": 1}, "deterministic must be true or false, got 1"),
        ({"model": None}, "model must be a string, got None"),
        ({"threads": 0, "page_size": 0}, "page_size must be at least 1, got 0; threads must be"),
        ({"split": "tensor", "quantize_bits": 8}, "cannot be: set split to 'layers' or leave"),
    ],
)
def test_nothing_is_ignored_and_nothing_coerced(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineConfig(**{"model": "any"} | settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineConfig(model="any").replace(**settings)


def test_a_configuration_travels_between_processes() -> None:
    config = EngineConfig(model="any", num_devices=2, quantize_bits=4)
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert (copy.layout, copy.variant) == ("layers:2", config.variant)
    assert all(field.description for field in EngineConfig.model_fields.values())


def test_every_quantization_that_a_task_may_name_is_there() -> None:
    assert set(get_args(QuantizeBits)) == set(QUANTIZATIONS)
    for bits, each in QUANTIZATIONS.items():
        assert each.label == EngineConfig(model="a", quantize_bits=each.bits).variant.quantization
        assert quantization(bits) is each
        for split in each.splits:
            assert EngineConfig(model="a", quantize_bits=each.bits, split=split).split == split


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "llama-70b"}, ModelInvalid, "'llama-70b' is not served here; served: tiny"),
        ({"dtype": "float16"}, TaskArgsInvalid, "dtype 'float16', but with 'float32'"),
        ({"quantize_bits": 4}, TaskArgsInvalid, "quantize_bits 4, but with null"),
    ],
)
def test_a_task_for_another_model_is_not_run_on_this_one(
    tiny_engine: TinyEngine, fields: dict[str, Any], error: type[TaskError], message: str
) -> None:
    engine = tiny_engine("qwen2", model_id="tiny")
    own: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}
    own["generation_config"] = {"max_new_tokens": 1}
    assert engine.run_blocking(Task.from_fields(**own))["usage"]["completion_tokens"] == 1
    with pytest.raises(error, match=message) as caught:
        engine.run_blocking(Task.from_fields(**own | fields))
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    ("given", "meant"), [("on", "on"), ("off", "off"), (True, "on"), (False, "off")]
)
def test_speculation_may_be_what_yaml_makes_of_on_and_off(given: object, meant: str) -> None:
    assert EngineConfig.model_validate({"model": "m", "speculation": given}).speculation == meant


@pytest.mark.parametrize("given", ["yes", 1, 0, None])
def test_speculation_is_nothing_else(given: object) -> None:
    with pytest.raises(ValueError, match="speculation"):
        EngineConfig.model_validate({"model": "m", "speculation": given})
