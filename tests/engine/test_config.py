"""What an engine may be told, and what it may be asked."""

from typing import Any

import pytest

from engine import EngineConfig
from schema import Task
from schema.errors import ModelInvalid, TaskArgsInvalid, TaskError
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
    ("fields", "error", "told"),
    [
        ({"model": "llama-70b"}, ModelInvalid, "'llama-70b' is not served here; served: tiny"),
        ({"dtype": "float16"}, TaskArgsInvalid, "dtype 'float16', but with 'float32'"),
        ({"quantize_bits": 4}, TaskArgsInvalid, "quantize_bits 4, but with null"),
    ],
)
def test_a_task_for_another_model_is_not_run_on_this_one(
    tiny_engine: TinyEngine, fields: dict[str, Any], error: type[TaskError], told: str
) -> None:
    engine = tiny_engine("qwen2", model_id="tiny")
    own: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}
    own["generation_config"] = {"max_new_tokens": 1}
    assert engine.run_blocking(Task.from_fields(**own))["usage"]["completion_tokens"] == 1
    with pytest.raises(error, match=told) as caught:
        engine.run_blocking(Task.from_fields(**own | fields))
    assert caught.value.param == next(iter(fields))
