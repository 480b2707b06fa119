"""Which keys objects may have, where a schema does not say it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engine.sampling.grammar import Grammar
from engine.sampling.json_schema.rewrite import rewritten
from schema.structured import closed_strictly
from tests.engine.sampling.test_grammar_sound import fits

INT = {"type": "integer"}
A = {"type": "object", "properties": {"a": INT}, "required": ["a"]}
B = {"type": "object", "properties": {"b": INT}}
NULL = {"type": "null"}


def tagged(tag: str, *names: str) -> dict[str, Any]:
    named = {"kind": {"const": tag}} | dict.fromkeys(names, INT)
    return {"type": "object", "properties": named}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"anyOf": [{"$ref": "#/$defs/node"}, NULL]}},
        }
    },
    "$ref": "#/$defs/node",
}
# A schema, values that are valid under it and allowed, and values that are not allowed.
CASES: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "declared": (A, [{"a": 1}], [{}, {"a": 1, "b": 1}]),
    "none declared": ({"type": "object"}, [{}, {"x": [1, {"y": 2}]}], []),
    "no properties": ({"type": "object", "properties": {}}, [{}], [{"x": 1}]),
    "open": (A | {"additionalProperties": True}, [{"a": 1, "b": "x"}], [{"b": 1}]),
    "a map": ({"type": "object", "additionalProperties": INT}, [{"x": 1, "y": 2}], [{"x": ""}]),
    "more of a kind": (
        A | {"additionalProperties": NULL},
        [{"a": 1, "b": None}],
        [{"a": 1, "b": 1}],
    ),
    "deep": (
        {"type": "array", "items": {"type": "object", "properties": {"x": A}}},
        [[{"x": {"a": 1}}]],
        [[{"x": {"a": 1, "b": 1}}], [{"y": 1}]],
    ),
    "no type": ({"properties": {"a": INT}}, [{"a": 1}, 5, "x"], [{"b": 1}]),
    "type or null": (A | {"type": ["object", "null"]}, [None, {"a": 1}], [{"a": 1, "b": 1}]),
    "required, not declared": (
        A | {"required": ["a", "z"]},
        [{"a": 1, "z": "x"}],
        [{"a": 1}, {"a": 1, "z": 1, "b": 1}],
    ),
    "all of": ({"allOf": [A, B]}, [{"a": 1}, {"a": 1, "b": 2}], [{"b": 1}, {"a": 1, "c": 1}]),
    "all of and own": (A | {"allOf": [B]}, [{"a": 1, "b": 2}], [{"a": 1, "c": 1}]),
    "one of all": ({"allOf": [A], "description": "x"}, [{"a": 1}], [{"a": 1, "b": 1}]),
    "all of with required": (
        {"allOf": [B, {"required": ["b"]}]},
        [{"b": 1}],
        [{}, {"b": 1, "a": 1}],
    ),
    "all of, closed by itself": (
        {"allOf": [A | {"additionalProperties": False}, {"required": ["a"]}]},
        [{"a": 1}],
        [{"a": 1, "b": 1}],
    ),
    "all of, one open": (
        {"allOf": [A | {"additionalProperties": True}, B]},
        [{"a": 1, "b": 1, "c": 1}],
        [{"b": 1}],
    ),
    "any of": ({"anyOf": [A, B, NULL]}, [{"a": 1}, {"b": 1}, None], [{"a": 1, "b": 1}, {"c": 1}]),
    "any of and own": (
        A | {"anyOf": [B, {"properties": {"c": INT}}]},
        [{"a": 1, "b": 1}, {"a": 1, "c": 1}],
        [{"a": 1, "b": 1, "c": 1}, {"b": 1}],
    ),
    "any of, only required": (
        {"type": "object", "properties": {"a": INT, "b": INT}}
        | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}, {"a": 1, "c": 1}],
    ),
    "all of with any of": (
        {"allOf": [{"$ref": "#/$defs/A"}, {"anyOf": [B, {"properties": {"c": INT}}]}]}
        | {"$defs": {"A": A}},
        [{"a": 1, "b": 1}, {"a": 1, "c": 1}],
        [{"a": 1, "b": 1, "c": 1}, {"a": 1, "d": 1}],
    ),
    "beside a reference": (
        {"$ref": "#/$defs/A", "properties": {"b": INT}, "$defs": {"A": A}},
        [{"a": 1, "b": 1}],
        [{"a": 1, "c": 1}],
    ),
    "a definition open and closed": (
        {
            "$defs": {"A": A},
            "prefixItems": [{"$ref": "#/$defs/A"}, {"allOf": [{"$ref": "#/$defs/A"}, B]}],
        }
        | {"type": "array", "minItems": 2, "maxItems": 2},
        [[{"a": 1}, {"a": 1, "b": 1}]],
        [[{"a": 1, "b": 1}, {"a": 1}]],
    ),
    "a tree": (TREE, [{"left": {"left": None}}], [{"left": {"right": 1}}]),
    "patterns": (
        {"type": "object", "properties": {"a": INT}, "patternProperties": {"^x": NULL}},
        [{"a": 1, "x1": None}],
        [{"b": 1}, {"x": 1}],
    ),
    "unevaluated": (
        {"allOf": [A, B], "unevaluatedProperties": False},
        [{"a": 1, "b": 1}],
        [{"a": 1, "c": 1}],
    ),
    "unevaluated, open": (A | {"unevaluatedProperties": True}, [{"a": 1, "b": 1}], []),
    "tags": (
        {"oneOf": [tagged("x", "a"), tagged("y", "b")], "discriminator": {"propertyName": "kind"}},
        [{"kind": "x", "a": 1}, {"kind": "y"}],
        [{"kind": "x", "b": 1}, {}, {"a": 1}],
    ),
    "tags of references": (
        {
            "$defs": {"x": tagged("x", "a"), "y": tagged("y", "b")},
            "oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}],
        },
        [{"kind": "x", "a": 1}, {"kind": "y", "b": 1}],
        [{"kind": "y", "a": 1}, {}],
    ),
    "names as an enum": (
        {"type": "object", "additionalProperties": INT, "propertyNames": {"enum": ["x", "y"]}},
        [{"x": 1}, {"x": 1, "y": 1}, {}],
        [{"z": 1}],
    ),
    "a name that is escaped in a pointer": (
        {"$defs": {"a/b[c]": A}, "$ref": "#/$defs/a~1b%5Bc%5D"},
        [{"a": 1}],
        [{"a": 1, "b": 1}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_which_keys_are_allowed(name: str) -> None:
    schema, good, bad = CASES[name]
    grammar = Grammar.json(rewritten(schema, "schema"), "schema")
    validator = Draft202012Validator(schema)
    for value in good:
        validator.validate(value)
        assert fits(json.dumps(value), grammar, in_pieces=False), value
    for value in bad:
        assert not fits(json.dumps(value), grammar, in_pieces=False), value


def test_one_of_is_judged_as_it_was_written() -> None:
    """Closing would make these disjoint, but a value of the second is valid under both."""
    both = {"oneOf": [A, A | {"properties": {"a": INT, "b": INT}, "required": ["a", "b"]}]}
    with pytest.raises(Exception, match="oneOf may overlap"):
        rewritten(both, "schema")
    assert not Draft202012Validator(both).is_valid({"a": 1, "b": 1})


def test_strict_closes_everywhere() -> None:
    """OpenAI's ``strict``: also where a schema says the opposite; maps stay maps."""
    inner = A | {"additionalProperties": True}
    schema = {
        "type": "object",
        "properties": {"x": {"anyOf": [inner, NULL]}, "y": {"$ref": "#/$defs/inner"}},
        "$defs": {"inner": inner | {"properties": {"a": INT, "m": {"additionalProperties": INT}}}},
        "additionalProperties": True,
    }
    for strict in (False, True):
        made = closed_strictly(schema) if strict else schema
        grammar = Grammar.json(rewritten(made, "schema"), "schema")
        for value in ({"z": 1}, {"x": {"a": 1, "z": 1}}, {"y": {"a": 1, "z": 1}}):
            assert fits(json.dumps(value), grammar, in_pieces=False) != strict, value
        both = {"x": {"a": 1}, "y": {"a": 1, "m": {"z": 1}}}
        assert fits(json.dumps(both), grammar, in_pieces=False)
