"""Strict JSON, and what may be inside free-form objects."""

from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from schema import TaskArgsInvalid
from schema.json_values import (
    MAX_JSON_DEPTH,
    MAX_JSON_INTEGER,
    MAX_JSON_KEYS,
    MAX_JSON_VALUES,
    _plainly_fine,
    _raise_first_problem,
    check_json,
    clipped,
    parse_json,
)


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        {},
        nested(MAX_JSON_DEPTH),
        {"a": [0] * (MAX_JSON_VALUES - 2)},
        {"a": MAX_JSON_INTEGER, "b": -MAX_JSON_INTEGER, "c": 1e308},
        {"": None, "ü": "🦊", "b": True},
        {"a": OrderedDict(b=[1])},
    ],
)
def test_valid_json_is_accepted(value: dict[str, Any]) -> None:
    assert check_json(value) is value


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        (nested(MAX_JSON_DEPTH + 1), ("a",), "is nested deeper than 32 levels"),
        ({"a": [0] * MAX_JSON_VALUES}, (), "has more than 100000 values"),
        ({"a": [0, MAX_JSON_INTEGER + 1]}, ("a", 1), "must be an integer of at most 64 bits"),
        ({"a": float("-inf")}, ("a",), "must be a finite number"),
        ({"a": {"b": "\udc00"}}, ("a", "b"), "must be Unicode text"),
        ({"a": {"\udc00": 1}}, ("a",), "must be an object whose keys are Unicode strings"),
        ({"a": {2: 1}}, ("a",), "must be an object whose keys are Unicode strings"),
        ({"a": b"bytes"}, ("a",), "must be a JSON value, and bytes is not one"),
        ({"a": OrderedDict(b=(1,))}, ("a", "b"), "must be a JSON value, and tuple is not one"),
        ({"a": float("nan"), "b": b""}, ("a",), "must be a finite number"),
    ],
)
def test_other_values_are_refused(value: Any, path: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        check_json(value)
    context = caught.value.context
    assert context is not None
    assert context["path"] == path
    assert context["problem"].startswith(problem)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.text(), anything, max_size=3))
def test_the_quick_look_and_the_closer_look_agree(value: dict[str, Any]) -> None:
    try:
        _raise_first_problem(value)
        fine = True
    except PydanticCustomError:
        fine = False
    assert _plainly_fine(value) is fine


def test_json_is_read_as_it_is() -> None:
    assert parse_json(b' {"a": [1, 2.5, null, "\xc3\xbc"]} ') == {"a": [1, 2.5, None, "ü"]}
    many = ",".join(f'"k{i}": 0' for i in range(MAX_JSON_KEYS))
    assert len(parse_json(f"{{{many}}}")) == MAX_JSON_KEYS


def test_a_key_that_is_there_twice_is_named() -> None:
    with pytest.raises(TaskArgsInvalid, match='with the key "b" twice'):
        parse_json('{"a": {"b": 1, "c": 2, "b": 3}}')


def test_clipped_is_short_and_can_be_sent() -> None:
    assert clipped("x" * 100) == "x" * 63 + "…"
    clipped("\ud800").encode()
