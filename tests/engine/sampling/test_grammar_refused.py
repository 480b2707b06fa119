"""Hostile and unsupported grammars are refused by name, or work within llguidance's limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.sampling.grammar import Grammar
from engine.sampling.json_schema.rewrite import rewritten
from schema.errors import TaskArgsInvalid, TaskExecutionError
from tests.engine.conftest import TinyEngine
from tests.engine.sampling.grammar_tasks import closed, refusal, task, under


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = closed(a=schema)
    return schema


def bomb(keyword: str, width: int, depth: int) -> dict[str, Any]:
    """Definitions each of which names the next one several times."""
    levels: dict[str, Any] = {
        f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * width} for i in range(depth)
    }
    return {"$defs": levels | {f"a{depth}": {"type": "string"}}, "$ref": "#/$defs/a0"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not": (under({"not": {"type": "string"}}), "not"),
    "if": (under({"if": {"type": "string"}, "then": {}}), "if"),
    "unique items": (under({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "oneOf that may overlap": (
        under({"oneOf": [{"type": "number"}, {"type": "integer"}]}),
        "Use anyOf",
    ),
    "another host": (under({"$ref": "https://example.com/a.json"}), "example.com"),
    "a file": (under({"$ref": "file:///etc/passwd"}), "passwd"),
    "no such definition": (under({"$ref": "#/$defs/none"}), "none"),
    "itself": (under({"$ref": "#"}), "allows no answer"),
    "each other": (
        under(
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
            | {"$ref": "#/$defs/a"}
        ),
        "allows no answer",
    ),
    "no such type": (under({"type": "strnig"}), "strnig"),
    "above all integers": (
        under({"type": "integer", "minimum": 2**64 - 1}),
        "18446744073709551615",
    ),
    "an inexact integer": (under({"const": 2**53 + 1}), "9007199254740993"),
    "multiples of 0": (under({"type": "number", "multipleOf": 0}), "multipleOf"),
    "nothing in between": (under({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
    "options of the library": (under({"x-guidance": {"lenient": True}}), "x-guidance"),
    "look-ahead": ({"type": "regex", "pattern": "(?=a)b"}, "look-around"),
    "back-reference": ({"type": "regex", "pattern": "(a)\\1"}, "backreferences"),
    "open parenthesis": ({"type": "regex", "pattern": "(a"}, "unclosed"),
    "many parentheses": ({"type": "regex", "pattern": "(" * 2000 + ")" * 2000}, "nest"),
    "nothing": ({"type": "regex", "pattern": "[^\\s\\S]"}, "allows no answer"),
    "nested too deeply": (under(nested(40)), "nested deeper"),
    "too long": (under({"enum": [f"value {i}" for i in range(9000)]}), "65536"),
    "too many choices": ({"type": "choice", "choices": ["a"] * 1001}, "1000"),
    "a combination of all": (
        under(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(4)]}
                    for i in range(8)
                ]
            }
        ),
        "too large",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tiny_engine: TinyEngine) -> None:
    form, said = REFUSED[name]
    try:
        error = refusal(tiny_engine("llama"), form)
    except TaskArgsInvalid as refused:  # while the task was read
        error = refused
    assert error is not None
    assert said in error.message
    assert (error.param or "").startswith("structured_output")
    assert error.message.startswith(error.param or "?")


HOT: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "top_k": 0}

# If llguidance gives up in the middle, only that task ends; all end soon.
HEAVY: dict[str, dict[str, Any]] = {
    "deep": under(nested(14)),
    "anyOf of anyOf": under(bomb("anyOf", 20, 4)),
    "allOf of allOf": under(bomb("allOf", 8, 8)),
    "a large enum": under({"enum": [f"value {i}" for i in range(4000)]}),
    "many properties": under(
        {"properties": {f"p{i}": {"type": "string", "pattern": "^[a-z]{1,9}$"} for i in range(900)}}
    ),
    "a long string": under({"type": "string", "minLength": 10**6, "maxLength": 10**6}),
    "a long array": under({"type": "array", "items": {"type": "integer"}, "minItems": 10**5}),
    "repeated repetition": {"type": "regex", "pattern": "(([a-z]{1,100}){1,100}){1,100}"},
    "ambiguous": {"type": "regex", "pattern": "(x+x+)+y"},
    "many states": {"type": "regex", "pattern": "(?s)(.*e.{30}f.*|.*t.{33}g.*)*x{300}"},
    "optional and not": {"type": "regex", "pattern": "(a?){2000}a{2000}"},
    "ambiguous arrays": under(
        {
            "$defs": {
                "n": {
                    "anyOf": [
                        {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": most}
                        for most in range(1, 9)
                    ]
                }
            },
            "$ref": "#/$defs/n",
        }
    ),
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_grammars_end_and_do_not_affect_others(name: str, tiny_engine: TinyEngine) -> None:
    """One after the other on the same engine, which keeps serving; each twice, with equal ends."""
    engine = tiny_engine("llama")
    one = task(HEAVY[name], max_new_tokens=16, **HOT)
    ends: list[Any] = []
    for _ in range(2):
        try:
            ends.append(engine.run_blocking(one))
        except (TaskArgsInvalid, TaskExecutionError) as error:
            ends.append((type(error), error.message, error.param))
    assert ends[0] == ends[1]
    assert engine.run_blocking(task(None, max_new_tokens=4))["choices"]


async def test_a_fault_in_a_grammar_ends_only_its_task(tiny_engine: TinyEngine) -> None:
    engine = tiny_engine("llama")
    guilty = task(HEAVY["optional and not"], num_return_sequences=2, **HOT)
    others = [task(form, 4, max_new_tokens=24, **HOT) for form in (None, {"type": "json_object"})]
    alone = [engine.run_blocking(one) for one in others]
    first, error, second = await asyncio.gather(
        engine.run(others[0]), engine.run(guilty), engine.run(others[1]), return_exceptions=True
    )
    assert isinstance(error, TaskExecutionError)
    assert error.param == "structured_output.pattern"
    assert [first, second] == alone


def test_an_invalid_grammar(tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = Grammar.lark("start: nowhere", "tool_choice")
    monkeypatch.setattr("engine.requests.input_processor.task_grammar", lambda *_: grammar)
    with pytest.raises(TaskArgsInvalid, match="nowhere") as caught:
        tiny_engine("llama").run_blocking(task(None))
    assert caught.value.param == "tool_choice"


ODD: list[dict[str, Any]] = [
    *({"properties": 3}, {"properties": {"a": 3}}, {"required": 5, "properties": {}}, {"anyOf": 3}),
    *({"allOf": {}}, {"oneOf": "x"}, {"type": 3}, {"type": [3]}, {"$ref": 3}, {"enum": 3}),
    *({"minimum": "x"}, {"multipleOf": "x"}, {"items": 3}, {"format": 3, "pattern": 3}),
    *({"patternProperties": [], "properties": {}}, {"propertyNames": {"minLength": "x"}}),
    *(
        {"additionalProperties": 3},
        {"propertyNames": {"pattern": 5}},
        {"allOf": 5, "required": [3]},
    ),
    *(
        {"propertyNames": {"enum": 3}},
        {"anyOf": [3]},
        {"oneOf": [{"type": ["x", {}]}, {"enum": 1}]},
    ),
    {"oneOf": [{"type": "object", "properties": [1]}, {"type": "object", "required": ["a"]}]},
    {"oneOf": [{"additionalProperties": False, "properties": 3}, {"required": ["a"]}]},
    {"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(1500)}, "$ref": "#/$defs/a0"},
    bomb("oneOf", 20, 30),
    {"anyOf": [{}], "$ref": "#/anyOf/" + "9" * 5000},
]

# Each pair of their parts would be compared.
MANY: list[dict[str, Any]] = [
    {"anyOf": [{"multipleOf": step} for step in range(1, 3000)]},
    {"oneOf": [{"enum": [f"{i}{j}" for j in range(80)]} for i in range(100, 200)]},
]


@pytest.mark.parametrize("schema", MANY)
def test_schemas_whose_parts_are_too_many_to_compare(schema: dict[str, Any]) -> None:
    with pytest.raises(TaskArgsInvalid, match="too large"):
        rewritten(schema, "schema")


@pytest.mark.parametrize("schema", ODD)
def test_what_is_no_schema(schema: dict[str, Any], tiny_engine: TinyEngine) -> None:
    error = refusal(tiny_engine("llama"), under(schema))
    assert error is not None
    assert error.param == "structured_output.schema"
