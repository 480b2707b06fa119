"""Objects as maps: keys that are not declared by name, and where answers may have such keys."""

from __future__ import annotations

from typing import Any

from engine.sampling.json_schema.document import ANNOTATIONS, Document
from engine.sampling.json_schema.strings import constrained


def with_declared_keys(node: dict[str, Any], document: Document) -> dict[str, Any]:
    """``propertyNames``, as maps have it, as properties or as a pattern of keys."""
    if "propertyNames" not in node or "properties" in node or "patternProperties" in node:
        return node
    keys = node["propertyNames"]
    if isinstance(keys, dict) and "$ref" in keys and not set(keys) - ANNOTATIONS - {"$ref"}:
        keys = document.resolve(keys["$ref"])
    if not isinstance(keys, dict):
        return node
    keys = constrained(keys)
    says = set(keys) - ANNOTATIONS - {"type"}
    value = node.get("additionalProperties", True)
    rest = {key: item for key, item in node.items() if key != "propertyNames"}
    if not says:
        return rest
    if says in ({"enum"}, {"const"}):
        names = [keys["const"]] if "const" in keys else keys["enum"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            named = dict.fromkeys(names, value)
            return rest | {"properties": named, "additionalProperties": False}
    if says == {"pattern"} and isinstance(keys["pattern"], str):
        return rest | {
            "patternProperties": {keys["pattern"]: value},
            "additionalProperties": False,
        }
    if says <= {"minLength", "maxLength"}:
        length = f"^(?s:.{{{keys.get('minLength', 0)},{keys.get('maxLength', '')}}})$"
        return rest | {"patternProperties": {length: value}, "additionalProperties": False}
    return node


def allows_anything(made: dict[str, Any], *, is_closed: bool) -> bool:
    """Whether a rewritten schema itself allows undeclared keys, or numbers without bounds."""
    if "const" in made or "enum" in made:
        return False
    types = made.get("type")
    if types is None:
        others = set(made) - {"$ref", "anyOf", "allOf", "$schema"}
        if len(others) < len(made) and not others:
            return False  # its parts say what is allowed
        types = ["object", "array", "number"]
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list):
        return False
    has_bounds = ("minimum" in made or "exclusiveMinimum" in made) and (
        "maximum" in made or "exclusiveMaximum" in made
    )
    is_closed |= made.get("additionalProperties") is False
    return (
        ("object" in types and (not is_closed or bool(made.get("patternProperties"))))
        or ("array" in types and _has_free_items(made))
        or ("number" in types and not has_bounds)
    )


def _has_free_items(made: dict[str, Any]) -> bool:
    """Whether an array may have items that nothing constrains."""
    first, items = made.get("prefixItems"), made.get("items", True)
    if isinstance(items, list):  # of older drafts
        first, items = items, made.get("additionalItems", True)
    most = made.get("maxItems")
    if isinstance(first, list) and isinstance(most, int) and most <= len(first):
        return False
    return items is True
