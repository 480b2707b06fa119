"""Random JSON Schemas of the supported kinds, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

KEYS = st.sampled_from(["a", "b", "ab", "name", 'q"', "é", "\n", "", "__proto__"])
VALUES = st.sampled_from([None, True, 0, -1, 7, 1.5, -0.25, 1e22, 2**53, "a", "é\n", "e9", '"\\'])


def _described(schema: Schema) -> st.SearchStrategy[Schema]:
    """With annotations, which have no effect."""
    notes = {"title": "T", "deprecated": True, "x-more": {"not": 1}, "nullable": True}
    return st.sampled_from([{}, {}, {}, notes]).map(lambda more: schema | more)


def _ordered(low: Any, high: Any) -> tuple[Any, Any]:
    return (low, high) if low <= high else (high, low)


@st.composite
def integers(draw: st.DrawFn) -> Schema:
    """Integers, some with bounds anywhere."""
    edges = st.one_of(
        st.integers(-20, 20), st.sampled_from([2**31, -(2**63), 2**53 + 1, 2**63 - 1, 10**17])
    )
    low, high = _ordered(draw(edges), draw(edges))
    schema: Schema = {"type": "integer"}
    if draw(st.booleans()):
        schema["minimum"] = low
    if draw(st.booleans()):
        schema["maximum"] = high + 10
    if draw(st.integers(0, 4)) == 0 and abs(low) < 100 and "maximum" not in schema:
        schema["multipleOf"] = draw(st.sampled_from([1, 3, 10]))
    if schema.get("minimum", 0) >= 2**62 or schema.get("maximum", 0) <= -(2**62):
        return {"type": "integer"}
    return schema


@st.composite
def numbers(draw: st.DrawFn) -> Schema:
    """Numbers, some with bounds, also excluded ones."""
    edges = st.sampled_from([-1e18, -3, -1, -0.5, 0, 1e-9, 0.1, 1, 1.5, 2, 1000, 1e18])
    low, high = _ordered(draw(edges), draw(edges))
    schema: Schema = {"type": "number"}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high + 1
    return schema


@st.composite
def strings(draw: st.DrawFn) -> Schema:
    """Strings of a length, a format or a pattern."""
    kinds: list[Schema] = [
        {},
        {"maxLength": 3},
        {"minLength": 2, "maxLength": 5},
        {"format": draw(st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"]))},
        {"format": draw(st.sampled_from(["binary", "byte", "password", "int64", "path"]))},
        {"pattern": '^[a-z\\\\"]{1,4}$'},
        {"format": "date", "pattern": "^2"},
        {"contentEncoding": "base64", "contentMediaType": "image/png"},
    ]
    return {"type": "string"} | draw(st.sampled_from(kinds))


LEAVES: st.SearchStrategy[Schema] = st.one_of(
    integers(),
    numbers(),
    strings(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({}),
    st.just({"type": "object"}),
    st.just({"type": ["string", "null"], "maxLength": 2}),
    VALUES.map(lambda value: {"const": value}),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
).flatmap(_described)


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    """Objects that say nothing of other keys, or anything."""
    properties: dict[str, Any] = draw(st.dictionaries(KEYS, values, max_size=3))
    schema: Schema = {"type": "object", "properties": properties}
    if draw(st.booleans()) and properties:
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    more: str = draw(st.sampled_from(["", "", "closed", "open", "of", "patterns"]))
    if more == "closed":
        schema["additionalProperties"] = False
    elif more == "open":
        schema["additionalProperties"] = True
    elif more == "of":
        schema["additionalProperties"] = draw(values)
    elif more == "patterns":
        schema["patternProperties"] = {"^x": draw(values)}
    return schema


def maps(values: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    """Objects without declared keys."""
    names = st.sampled_from(
        [{}, {"type": "string"}, {"pattern": "^[ab]+$"}, {"enum": ["a", 'b"']}, {"maxLength": 2}]
    )
    return st.tuples(values, names).map(
        lambda both: {
            "type": "object",
            "additionalProperties": both[0],
            "propertyNames": both[1],
        }
    )


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    """Lists and tuples."""
    if draw(st.booleans()):
        return {"type": "array", "items": draw(values), "maxItems": draw(st.integers(0, 3))}
    first = draw(st.lists(values, min_size=1, max_size=2))
    size = len(first)
    return {"type": "array", "prefixItems": first, "minItems": size, "maxItems": size}


@st.composite
def unions(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    """Choices, some of them tagged; the tags may be missing in ``required``."""
    if draw(st.booleans()):
        return {"anyOf": draw(st.lists(values, min_size=1, max_size=3))}
    branches = []
    for tag in draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3, unique=True)):
        branch = draw(objects(values))
        branch["properties"] = {"kind": {"const": tag, "default": tag}} | branch["properties"]
        branches.append(branch)
    return {"oneOf": branches, "discriminator": {"propertyName": "kind"}}


@st.composite
def joined(draw: st.DrawFn, values: st.SearchStrategy[Schema]) -> Schema:
    """Objects of several parts, none of which speaks of other keys."""

    def part(*names: str) -> Schema:
        own = {name: draw(values) for name in names}
        return {"type": "object", "properties": own, "required": list(names)[:1]}

    parts = [part("base"), part("own", "more")]
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return {"allOf": parts}
    if kind == 1:
        return parts[0] | {"allOf": parts[1:]}
    if kind == 2:
        return parts[0] | {"anyOf": [parts[1], part("other")]}
    return {"allOf": [parts[0], {"anyOf": [parts[1], part("other")]}]}


def schemas() -> st.SearchStrategy[Schema]:
    """All of these inside each other, with a definition that refers to itself."""
    inner: st.SearchStrategy[Schema] = st.recursive(
        st.one_of(LEAVES, st.just({"$ref": "#/$defs/tree"})),
        lambda values: st.one_of(
            objects(values), maps(values), arrays(values), unions(values), joined(values)
        ),
        max_leaves=6,
    )
    children = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
    tree = {"type": "object", "properties": {"n": {"type": "number"}, "c": children}}
    return inner.map(lambda schema: schema | {"$defs": {"tree": tree}})
