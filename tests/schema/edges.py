"""Values near the limits of a JSON Schema, for bodies that are almost or only just valid."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

MAX_CHARS = 2_000
"""Limits of longer texts are not tried: they take too long to check."""

ANYWHERE: list[Any] = [
    None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, 10.0, 0.5, -1.5, 2**53 + 1, 2**64, 1e19, 1e300,
    1e-9, "", "1", "auto", [], [None], [""], {}, {"a": 1},
]  # fmt: skip

# Below these any JSON is allowed, and 10.0 is not 10: templates and grammars get it as it is.
FREE = {"tools", "template_args", "chat_template_kwargs", "schema", "tool_calls"}


def edges(schema: dict[str, Any]) -> dict[str, list[Any]]:
    """By the names of properties, the values at the limits of each and just beyond them."""
    found: dict[str, list[Any]] = defaultdict(list)
    for part in _parts(schema):
        for name, below in part.get("properties", {}).items():
            for limits in _alternatives(below, schema):
                found[name] += _at(limits)
    return dict(found)


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _parts(item)


def _alternatives(part: Any, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not isinstance(part, dict):
        return
    yield part
    for other in (*part.get("anyOf", ()), *part.get("oneOf", ()), part.get("items")):
        yield from _alternatives(other, schema)
    if "$ref" in part:
        yield from _alternatives(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)


def _at(limits: dict[str, Any]) -> list[Any]:
    values = [*limits.get("enum", ())]
    if "const" in limits:
        values.append(limits["const"])
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if (limit := limits.get(name)) is not None:
            values += [limit, float(limit), limit - 1, limit + 1, limit - 0.5, limit + 0.5]
    for name in ("minLength", "maxLength"):
        if (length := limits.get(name, MAX_CHARS)) < MAX_CHARS:
            values += ["x" * length, "é" * (length + 1), "x" * max(0, length - 1)]
    return values


def places(value: Any, name: str = "") -> list[tuple[Any, Any, str]]:
    """Every container in `value` with each of its keys, and the name of the property there."""
    if isinstance(value, dict):
        pairs = [(key, key) for key in value]
    elif isinstance(value, list):
        pairs = [(index, name) for index in range(len(value))]
    else:
        return []
    return [
        found for key, named in pairs for found in [(value, key, named), *places(value[key], named)]
    ]


def near(good: Sequence[Any], schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Good bodies in which a few values are others near a limit, are gone, added or repeated."""
    return _near(list(good), _Limits(edges(schema)))


class _Limits(dict[str, list[Any]]):
    """Without its content in the reports of hypothesis."""

    def __repr__(self) -> str:
        return "limits"


@st.composite
def _near(draw: st.DrawFn, good: Sequence[Any], limits: _Limits) -> Any:
    names = sorted(limits)
    body = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 3))):
        if not (found := places(body)):
            break
        container, key, name = draw(st.sampled_from(found))
        action = draw(st.sampled_from(["edge", "edge", "edge", "other", "add", "remove", "repeat"]))
        if action == "remove":
            del container[key]
        elif action == "repeat" and isinstance(container, list):
            times = draw(st.sampled_from([1, 15, 16, 63, 64]))
            container += [copy.deepcopy(container[key]) for _ in range(times)]
        else:
            if action == "add" and isinstance(container, dict):
                key = name = draw(st.sampled_from(names))
            values = ANYWHERE if action == "other" else limits.get(name) or ANYWHERE
            container[key] = copy.deepcopy(draw(st.sampled_from(values)))
    return body


def respelled(value: Any, *, floats: bool) -> Any:
    """The same JSON, with whole numbers written as 10.0 (``floats``) or as 10; see `FREE`."""
    if isinstance(value, dict):
        return {
            name: item if name in FREE else respelled(item, floats=floats)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [respelled(item, floats=floats) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        return value
    return float(value) if floats else int(value)
