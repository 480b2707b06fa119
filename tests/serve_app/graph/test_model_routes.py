"""Which model runs a task, and the error if there is none."""

from typing import Any

import pytest

from schema import ModelInvalid, Task, TaskArgsInvalid
from serve_app.config.app_args import ModelArgs, PoolArgs
from serve_app.graph.model_routes import Routes

MODELS = [
    {"id": "a", "dtype": "float32"},
    {"id": "a", "dtype": "bfloat16"},
    {"id": "a", "dtype": "bfloat16", "quantize_bits": 4},
    {"id": "b"},
]
ROUTES = Routes([ModelArgs.model_validate(fields) for fields in MODELS])


def _task(**fields: Any) -> Task:
    return Task.from_fields(messages=[{"role": "user", "content": "hello"}], **fields)


@pytest.mark.parametrize(
    ("fields", "deployment"),
    [
        ({"model": "a"}, "Model:a:float32"),  # the operator's first choice
        ({"model": "a", "dtype": "float32"}, "Model:a:float32"),
        ({"model": "a", "dtype": "bfloat16"}, "Model:a:bfloat16"),
        ({"model": "a", "quantize_bits": 4}, "Model:a:bfloat16:int4"),
        ({"model": "b"}, "Model:b"),
        ({"model": "b", "dtype": "float16"}, "Model:b"),  # the replica knows the dtype of "auto"
    ],
)
def test_choice(fields: dict[str, Any], deployment: str) -> None:
    assert ROUTES.choose(_task(**fields)).deployment == deployment


def test_an_unknown_model_is_answered_with_what_is_served() -> None:
    with pytest.raises(ModelInvalid, match=r"'c' is not served here; served: a, b$") as caught:
        ROUTES.choose(_task(model="c"))
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"quantize_bits": 8}, "quantize_bits"),
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": "float32", "quantize_bits": 4}, "dtype"),
    ],
)
def test_an_unconfigured_combination_is_answered_with_the_configured_ones(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        ROUTES.choose(_task(model="a", **fields))
    assert caught.value.param == param
    assert caught.value.message.endswith(
        "served: dtype 'float32' with quantize_bits null; dtype 'bfloat16' with quantize_bits "
        "null; dtype 'bfloat16' with quantize_bits 4"
    )


def test_adapters() -> None:
    models = [
        {"id": "a", "dtype": "float32"},
        {"id": "a", "dtype": "bfloat16", "adapters": {"sql": "org/sql"}},
        {"id": "a", "quantize_bits": 4, "adapters": {"sql": "org/sql", "law": "org/law"}},
        {"id": "b"},
    ]
    pool = PoolArgs.model_validate({"allow": ["*"], "max_memory_gb": 10.0})
    routes = Routes([ModelArgs.model_validate(fields) for fields in models], pool)
    assert routes.choose(_task(model="a")).deployment == "Model:a:float32"
    assert routes.choose(_task(model="a:sql")).deployment == "Model:a:bfloat16"
    assert routes.choose(_task(model="a:law", quantize_bits=4)).deployment == "Model:a:int4"
    for name, said in {
        "a:none": r"'a' has no adapter 'none'; its adapters: sql, law$",
        "b:sql": r"'b' has no adapter 'sql'; it has none$",
        "c:sql": r"'c' is loaded on demand, and only models that the server's configuration lists",
    }.items():
        with pytest.raises(ModelInvalid, match=said) as caught:
            routes.choose(_task(model=name))
        assert caught.value.param == "model"
    with pytest.raises(TaskArgsInvalid, match="a:sql is not served with quantize_bits 8"):
        routes.choose(_task(model="a:sql", quantize_bits=8))
