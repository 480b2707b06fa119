"""Forms of answers, and tasks that ask for them."""

from __future__ import annotations

from typing import Any

from engine import Engine
from schema import Task, TaskArgsInvalid


def task(form: dict[str, Any] | None, seed: int = 0, text: str = "Hi", **settings: Any) -> Task:
    """A task whose answer has a form."""
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        structured_output=form,
        generation_config={"max_new_tokens": 400} | settings,
        seed=seed,
    )


def under(schema: dict[str, Any]) -> dict[str, Any]:
    """The form of JSON under a schema."""
    return {"type": "json_schema", "schema": schema}


def choices(engine: Engine, one: Task) -> list[tuple[str, str]]:
    """Texts and finish reasons."""
    response = engine.run_blocking(one)
    return [(c["message"]["content"], c["finish_reason"]) for c in response["choices"]]


def refusal(engine: Engine, form: dict[str, Any]) -> TaskArgsInvalid | None:
    """The error of a form; None if it is accepted."""
    try:
        engine.run_blocking(task(form, max_new_tokens=8))
    except TaskArgsInvalid as error:
        return error
    return None


def closed(**properties: Any) -> dict[str, Any]:
    """A schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 8}
# Bounded, so that a model of random numbers comes to an end.
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": closed(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 120}),
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": WORD},
        "required": ["b"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", 7, None, True, {"a": [1]}, "é\n\U0001f600"]},
    "array": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [WORD, {"type": "boolean"}], "items": False},
    "nested": closed(a=closed(b=closed(c={"type": "array", "items": WORD, "maxItems": 2}))),
    "definitions": {
        "$defs": {"point": closed(x={"enum": [0, 1]}, y={"enum": [0, 1]})},
        **closed(start={"$ref": "#/$defs/point"}, stop={"$ref": "#/$defs/point"}),
    },
    "tree": {
        "$defs": {
            "node": {
                "type": "array",
                "items": {"$ref": "#/$defs/node"},
                "maxItems": 2,
            }
        },
        **closed(tree={"$ref": "#/$defs/node"}),
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}(é|ß)?$"},
    "format": {"type": "string", "format": "date"},
    "anyOf": {"anyOf": [closed(a={"type": "boolean"}), {"type": "null"}, {"enum": ["x"]}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    "numbers": closed(
        multiple={"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99},
        between={"type": "number", "exclusiveMinimum": 0, "maximum": 1.5, "pattern": "x"},
    ),
    "unicode": closed(**{"ключ": {"const": "значение"}, 'a"b\\c': {"enum": ["\u2028\t"]}}),
}
