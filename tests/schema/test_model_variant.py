"""A model variant has one label and one deployment everywhere."""

import pickle

import pytest

from schema import Task
from schema.model_variant import ModelVariant


@pytest.mark.parametrize(
    ("variant", "text", "metric", "deployment"),
    [
        (ModelVariant("demo"), "demo (auto)", "auto", "Model:demo"),
        (
            ModelVariant("org/model", "bfloat16"),
            "org/model (bfloat16)",
            "bfloat16",
            "Model:org--model:bfloat16",
        ),
        (
            ModelVariant("org/model", "float32", 8),
            "org/model (float32, INT8)",
            "float32 int8",
            "Model:org--model:float32:int8",
        ),
        (
            ModelVariant("demo", quantize_bits=4),
            "demo (auto, INT4)",
            "auto int4",
            "Model:demo:int4",
        ),
    ],
)
def test_names(variant: ModelVariant, text: str, metric: str, deployment: str) -> None:
    assert str(variant) == text
    assert variant.metric_label == metric
    assert variant.deployment == deployment


def test_what_is_asked_for_and_what_is_listed_compare() -> None:
    variant = ModelVariant("a", "bfloat16", 4)
    messages = [{"role": "user", "content": "hi"}]
    task = Task.from_fields(model="a", messages=messages, dtype="bfloat16", quantize_bits=4)
    assert task.variant == variant
    assert ModelVariant.of(variant.as_json() | {"owned_by": "anyone"}) == variant
    assert pickle.loads(pickle.dumps(variant)) == variant
    assert len({variant, task.variant, ModelVariant("a")}) == 2
