"""The committed JSON Schemas: current, and in agreement with the models."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from schema import ErrorResponse, StreamChunk, TaskResponse, schemas
from schema.__main__ import FOLDER, main, rendered, stale
from tests.schema.examples import GOOD_TASKS
from tests.schema.malformed import MALFORMED, NOT_JSON, Malformed

NAMES = tuple(schemas())
TASK = Draft202012Validator(schemas()["task"])

# Malformed tasks that are JSON, so that a validator can read them.
AS_JSON = [case for case in MALFORMED if case.beyond_schema != NOT_JSON]


def test_committed_schemas_are_current() -> None:
    assert stale() == [], "run: python -m schema"
    assert sorted(FOLDER.glob("*.schema.json")) == sorted(rendered())
    assert main(["--check"]) == 0


def test_check_says_what_is_stale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("schema.__main__.FOLDER", tmp_path)
    assert main(["--check"]) == 1
    assert "task.schema.json is not current; run: python -m schema" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "task.schema.json").write_text("{}")
    assert main(["--check"]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_valid_and_self_contained(name: str) -> None:
    schema = schemas()[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"{name}.schema.json"
    assert schema["title"]
    assert schema["description"]
    for example in schema["examples"]:
        Draft202012Validator(schema).validate(example)


@pytest.mark.parametrize("fields", GOOD_TASKS.values(), ids=GOOD_TASKS)
def test_good_tasks_are_valid(fields: dict[str, Any]) -> None:
    TASK.validate(fields)


@pytest.mark.parametrize("case", AS_JSON, ids=lambda case: case.name)
def test_malformed_tasks_are_invalid_where_json_schema_can_say_it(case: Malformed) -> None:
    # An exception that has become unnecessary should be taken out of the corpus.
    assert TASK.is_valid(json.loads(case.body)) is (case.beyond_schema is not None)


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi"},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
CHUNK: dict[str, Any] = {
    "model": "m",
    "choices": [
        {"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": None},
        {"index": 1, "delta": {"role": "assistant", "content": ""}, "finish_reason": "length"},
    ],
    "usage": USAGE,
}
TOP: dict[str, Any] = {"token": "é", "token_id": 7, "bytes": [195, 169], "logprob": -0.5}
TOKEN: dict[str, Any] = TOP | {"top_logprobs": [TOP, TOP | {"bytes": None, "logprob": -9999.0}]}


def with_logprobs(value: dict[str, Any], *logprobs: Any) -> dict[str, Any]:
    return value | {"choices": [value["choices"][0] | {"logprobs": list(logprobs)}]}


ERROR: dict[str, Any] = {
    "error": {"message": "m", "type": "server_error", "param": None, "code": "c"}
}
ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "response": TypeAdapter(TaskResponse),
    "stream_chunk": TypeAdapter(StreamChunk),
    "error": TypeAdapter(ErrorResponse),
}


def takes(name: str, value: Any) -> bool:
    """Whether definition and schema, which must agree, accept `value`."""
    valid = Draft202012Validator(schemas()[name]).is_valid(value)
    try:
        ADAPTERS[name].validate_python(value)
    except ValidationError:
        assert not valid
        return False
    assert valid
    return True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response", RESPONSE),
        ("response", RESPONSE | {"system_fingerprint": "f"}),
        ("response", with_logprobs(RESPONSE, TOKEN, TOKEN)),
        ("stream_chunk", with_logprobs(CHUNK)),
        ("stream_chunk", CHUNK),
        ("stream_chunk", CHUNK | {"system_fingerprint": "f"}),
        ("error", ERROR),
    ],
)
def test_responses_are_taken(name: str, value: dict[str, Any]) -> None:
    assert takes(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response", CHUNK),
        ("response", RESPONSE | {"extra": 1}),
        ("response", RESPONSE | {"choices": []}),
        ("response", RESPONSE | {"model": ""}),
        ("response", RESPONSE | {"usage": USAGE | {"total_tokens": -1}}),
        ("response", RESPONSE | {"choices": [RESPONSE["choices"][0] | {"finish_reason": None}]}),
        ("response", RESPONSE | {"system_fingerprint": None}),
        ("response", with_logprobs(RESPONSE, TOP)),
        ("response", with_logprobs(RESPONSE, TOKEN | {"bytes": [256]})),
        ("response", with_logprobs(RESPONSE, TOKEN | {"rank": 1})),
        ("stream_chunk", with_logprobs(CHUNK, TOKEN | {"logprob": "-0.5"})),
        ("stream_chunk", RESPONSE),
        ("stream_chunk", {"model": "m", "choices": CHUNK["choices"]}),
        ("stream_chunk", CHUNK | {"choices": [CHUNK["choices"][0] | {"finish_reason": "eos"}]}),
        ("error", {"error": ERROR["error"] | {"status": 500}}),
        ("error", {"error": "m"}),
    ],
)
def test_other_things_are_no_responses(name: str, value: dict[str, Any]) -> None:
    assert not takes(name, value)
