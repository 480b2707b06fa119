"""A receipt is verified with its response: its traces are those of this engine's own logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig
from schema import TaskArgsInvalid
from schema.task import Task
from tests.engine.conftest import TinyEngine
from tests.engine.core.test_generate_fallback import OUTSIDE, save_architecture
from tests.engine.core.test_verification import SETTINGS, answered, found_at, task

NAMES = ("greedy", "several", "copies", "penalties", "stop strings", "beams")


def with_receipt(engine: Engine, asked: Task) -> Any:
    """The answer as a server gives it, but for what the server adds to the engine's record."""
    response = answered(engine, asked)
    response["receipt"] = {"version": 1, **response.pop("record")}
    return response


def differences(engine: Engine, asked: Task, response: Any) -> list[str]:
    """The fields in which a response is not the engine's own, whose tokens are right."""
    found = engine.verify_blocking(asked, response)
    fields = [one["field"] for one in found["response_differences"]]
    assert found["first_difference"] is None
    assert found["verdict"] == ("different" if fields else "exact")
    return fields


@pytest.mark.parametrize("name", NAMES)
def test_a_receipt_is_exact(tiny_engine: TinyEngine, name: str) -> None:
    engine = tiny_engine("qwen2")
    asked = task(seed=3, generation_config=SETTINGS[name], receipt=True)
    response = with_receipt(engine, asked)
    assert differences(engine, asked, response) == []
    silent = asked.model_copy(update={"receipt": False})  # what is claimed is what is compared
    assert differences(engine, silent, response) == []
    del response["receipt"]
    assert differences(engine, asked, response) == []


def _change_trace(receipt: Any) -> None:
    receipt["choices"][1]["trace"] = "0" * 64


def _no_trace(receipt: Any) -> None:
    receipt["choices"][1]["trace"] = None


def _change_digest(receipt: Any) -> None:
    receipt["choices"][0]["token_ids_digest"] = "0" * 64


def _change_dtype(receipt: Any) -> None:
    receipt["dtype"] = "bfloat16"


def _change_bits(receipt: Any) -> None:
    receipt["quantize_bits"] = 8


def _drop_choice(receipt: Any) -> None:
    del receipt["choices"][2]


@pytest.mark.parametrize(
    ("change", "field", "forgiven"),
    [
        (_change_trace, "receipt.choices.1.trace", True),
        (_no_trace, "receipt.choices.1.trace", True),
        (_change_digest, "receipt.choices.0.token_ids_digest", False),
        (_change_dtype, "receipt.dtype", True),
        (_change_bits, "receipt.quantize_bits", True),
        (_drop_choice, "receipt.choices.2", False),
    ],
)
def test_a_change_of_a_receipt_is_found(
    tiny_engine: TinyEngine, change: Callable[[Any], None], field: str, forgiven: bool
) -> None:
    """A tolerance is for answers that were computed elsewhere, in other bits."""
    engine = tiny_engine("qwen2")
    asked = task(seed=3, generation_config=SETTINGS["several"], receipt=True)
    response = with_receipt(engine, asked)
    change(response["receipt"])
    for tolerance in (0.0, 0.1):
        found = engine.verify_blocking(asked, response, tolerance)
        expected = "within_tolerance" if forgiven and tolerance else "different"
        assert found["verdict"] == expected
        assert [one["field"] for one in found["response_differences"]] == [field]


def test_a_different_token_is_told_once(tiny_engine: TinyEngine) -> None:
    """What the receipt says of its choice follows from it; the others are still compared."""
    engine = tiny_engine("qwen2")
    asked = task(seed=3, generation_config=SETTINGS["several"], receipt=True)
    response = with_receipt(engine, asked)
    ids = response["choices"][1]["token_ids"]
    ids[0] ^= 1
    response["receipt"]["choices"][1]["trace"] = "1" * 64
    found = engine.verify_blocking(asked, response)
    assert found_at(found) == (1, 0, ids[0], ids[0] ^ 1)
    assert found["response_differences"] == []
    response["receipt"]["choices"][2]["trace"] = "2" * 64
    found = engine.verify_blocking(asked, response)
    (field,) = [one["field"] for one in found["response_differences"]]
    assert field == "receipt.choices.2.trace"


def test_another_arithmetic_that_says_the_same_is_found(tiny_engine: TinyEngine) -> None:
    """Token ids cannot tell which model wrote a likely answer; a trace can."""
    asked = task(generation_config={"max_new_tokens": 1}, receipt=True)
    exact, half = tiny_engine("qwen2"), tiny_engine("qwen2", dtype="bfloat16")
    response = with_receipt(half, asked)
    assert answered(exact, asked)["choices"] == response["choices"]
    assert differences(exact, asked, response) == ["receipt.choices.0.trace", "receipt.dtype"]
    del response["receipt"]
    assert differences(exact, asked, response) == []


def test_a_model_of_the_fallback(tmp_path: Path) -> None:
    save_architecture("mpt", OUTSIDE["mpt"], tmp_path)
    config = EngineConfig(model=str(tmp_path), dtype="float32", threads=1)
    with closing(Engine(config)) as engine:
        asked = task(generation_config={"do_sample": True}, receipt=True)
        response = with_receipt(engine, asked)
        assert differences(engine, asked, response) == []
        _change_digest(response["receipt"])
        assert differences(engine, asked, response) == ["receipt.choices.0.token_ids_digest"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"version": 2}, "response.receipt.version"),
        ({"choices": []}, "response.receipt.choices"),
        ({"dtype": 5}, "response.receipt.dtype"),
    ],
)
def test_receipts_of_another_form(
    tiny_engine: TinyEngine, fields: dict[str, Any], param: str
) -> None:
    engine = tiny_engine("qwen2")
    asked = task(receipt=True)
    response = copy.deepcopy(with_receipt(engine, asked))
    response["receipt"] |= fields
    with pytest.raises(TaskArgsInvalid) as raised:
        engine.verify_blocking(asked, response)
    assert raised.value.param == param
