"""Whether no value is valid under two schemas: a ``oneOf`` of such schemas is an ``anyOf``.

It is judged on schemas as the client wrote them, before objects are closed: closing may take from
one branch what makes another branch of the client's schema ambiguous.
"""

from __future__ import annotations

import json
from typing import Any

from engine.sampling.json_schema.document import CHOICES, Document, Node

_TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))
_MAX_BRANCHES = 100
_MAX_DEPTH = 16


def are_disjoint(branches: list[Node], document: Document) -> bool:
    """Whether no value is valid under two of some schemas, as far as this is easily seen."""
    if len(branches) > _MAX_BRANCHES:
        return False
    return all(
        _disjoint(one, other, document, 0)
        for index, one in enumerate(branches)
        for other in branches[index + 1 :]
    )


def tag(node: dict[str, Any], branches: list[Node], document: Document) -> str | None:
    """The property whose values tell the branches of a ``oneOf`` apart, if all had it.

    Libraries that write a discriminator leave the property out of ``required`` where it has a
    default; the branches are disjoint once it is required.
    """
    if len(branches) > _MAX_BRANCHES or not branches:
        return None
    if any(_types(branch, document, 0) != {"object"} for branch in branches):
        return None
    properties = [_properties(branch, document, 0) for branch in branches]
    discriminator = node.get("discriminator")
    named = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    for name in sorted(properties[0], key=lambda name: name != named):
        if all(name in own for own in properties):
            values = [_values(own[name], document, 0) for own in properties]
            known = [value for value in values if value is not None]
            if len(known) == len(values) and sum(map(len, known)) == len(frozenset().union(*known)):
                return name
    return None


def _disjoint(one: Node, other: Node, document: Document, depth: int) -> bool:
    document.spend()
    if depth > _MAX_DEPTH:
        return False
    common = _types(one, document, 0) & _types(other, document, 0)
    if not common:
        return True
    values, others = _values(one, document, 0), _values(other, document, 0)
    if values is not None and others is not None:
        return not values & others
    if common != {"object"}:
        return False
    own, its = _properties(one, document, 0), _properties(other, document, 0)
    for name in _required(one, document, 0) | _required(other, document, 0):
        if name in own and name in its:
            if _disjoint(own[name], its[name], document, depth + 1):
                return True
        elif _forbids(one, name) or _forbids(other, name):
            return True
    return False


def _forbids(node: Node, name: str) -> bool:
    """Whether a schema itself, without its references, forbids a key."""
    return (
        isinstance(node, dict)
        and node.get("additionalProperties") is False
        and not node.get("patternProperties")
        and name not in _own_properties(node)
    )


def _types(node: Node, document: Document, depth: int) -> frozenset[str]:
    """The types of values that a schema may allow; integers are numbers."""
    document.spend()
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return frozenset() if node is False else _TYPES
    types = _TYPES
    stated = node.get("type")
    stated = [stated] if isinstance(stated, str) else stated
    if isinstance(stated, list):
        names = [name for name in stated if isinstance(name, str)]
        types &= {"number" if name == "integer" else name for name in names}
    if (values := _own_values(node)) is not None:
        types &= {_type_of(value) for value in values}
    if "$ref" in node:
        types &= _types(document.resolve(node["$ref"]), document, depth + 1)
    for part in document.parts(node, ("allOf",)):
        types &= _types(part, document, depth + 1)
    for keyword in CHOICES:
        if branches := list(document.parts(node, (keyword,))):
            either = [_types(branch, document, depth + 1) for branch in branches]
            types &= frozenset().union(*either)
    return types


def _values(node: Node, document: Document, depth: int) -> frozenset[str] | None:
    """The values that a schema allows at most, as JSON; None if they are not listed."""
    document.spend()
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return None
    own = _own_values(node)
    if own is not None:
        document.spend(len(own))
        return frozenset(_canonical(value) for value in own)
    if "$ref" in node:
        found = _values(document.resolve(node["$ref"]), document, depth + 1)
        if found is not None:
            return found
    for part in document.parts(node, ("allOf",)):
        if (found := _values(part, document, depth + 1)) is not None:
            return found
    for keyword in CHOICES:
        branches = list(document.parts(node, (keyword,)))
        either = [_values(branch, document, depth + 1) for branch in branches]
        known = [values for values in either if values is not None]
        if branches and len(known) == len(either):
            return frozenset().union(*known)
    return None


def _properties(node: Node, document: Document, depth: int) -> dict[str, Node]:
    """The properties that a schema and its conjunctive parts declare."""
    document.spend()
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return {}
    found = _own_properties(node)
    if "$ref" in node:
        found = _properties(document.resolve(node["$ref"]), document, depth + 1) | found
    for part in document.parts(node, ("allOf",)):
        found = _properties(part, document, depth + 1) | found
    return found


def _required(node: Node, document: Document, depth: int) -> frozenset[str]:
    document.spend()
    if not isinstance(node, dict) or depth > _MAX_DEPTH:
        return frozenset()
    own = node.get("required")
    found = (
        frozenset(name for name in own if isinstance(name, str))
        if isinstance(own, list)
        else frozenset()
    )
    if "$ref" in node:
        found |= _required(document.resolve(node["$ref"]), document, depth + 1)
    for part in document.parts(node, ("allOf",)):
        found |= _required(part, document, depth + 1)
    return found


def _own_properties(node: dict[str, Any]) -> dict[str, Node]:
    own = node.get("properties")
    return own if isinstance(own, dict) else {}


def _own_values(node: dict[str, Any]) -> list[Any] | None:
    if "const" in node:
        return [node["const"]]
    return node["enum"] if isinstance(node.get("enum"), list) else None


def _canonical(value: Any) -> str:
    """Equal for values that are equal in JSON Schema: 1 and 1.0, objects in any order."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"
