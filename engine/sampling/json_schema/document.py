"""A client's JSON Schema as a document: its references, and what its parts say of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

from schema.errors import TaskArgsInvalid
from schema.json_values import quoted

Node = Any
"""A schema: an object or a boolean, or something else that llguidance refuses."""

CHOICES = ("anyOf", "oneOf")
_MAX_WORK = 400_000
_INDEX = re.compile(r"[0-9]{1,6}")  # Python refuses to read thousands of digits
ANNOTATIONS = {
    *("$defs", "definitions", "$comment", "title", "description", "default", "examples"),
    *("readOnly", "writeOnly", "deprecated", "contentEncoding", "contentMediaType"),
    *("contentSchema", "discriminator"),
}
"""Keywords that constrain nothing."""


@dataclass
class Shape:
    """What a schema and its in-place parts (``allOf``, ``$ref`` and so on) say of an object's keys.

    Attributes:
        names: keys that ``properties`` declares, in order.
        patterns: of ``patternProperties``.
        required: keys that have to be there.
        declares: there are ``properties`` or ``patternProperties``, maybe empty ones, or other keys
            are forbidden by ``unevaluatedProperties``, which knows all parts.
        decided: the schema itself says what becomes of other keys.
        chooses: some of this stands in a branch of an ``anyOf`` or ``oneOf``.
    """

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    required: dict[str, None] = field(default_factory=dict)
    declares: bool = False
    decided: bool = False
    chooses: bool = False

    @classmethod
    def of(cls, shapes: Iterable[Shape]) -> Shape:
        """What several parts say together."""
        whole = cls()
        for shape in shapes:
            whole.names |= shape.names
            whole.patterns |= shape.patterns
            whole.required |= shape.required
            whole.declares |= shape.declares
            whole.decided |= shape.decided
            whole.chooses |= shape.chooses
        return whole


class Document:
    """A whole schema. ``param`` is the field that errors name.

    Attributes:
        has_multiples: it has a ``multipleOf`` somewhere.
    """

    def __init__(self, root: dict[str, Any], param: str) -> None:
        self.root = root
        self.param = param
        self._shapes: dict[int, Shape] = {}
        self._kept: list[dict[str, Any]] = []
        self._work = 0
        self.has_multiples = '"multipleOf"' in json.dumps(root)

    def spend(self, work: int = 1) -> None:
        """Count work; a schema of definitions that name each other could make it endless.

        Raises:
            TaskArgsInvalid: it has become too much.
        """
        self._work += work
        if self._work > _MAX_WORK:
            self.refuse("the schema is too large")

    def refuse(self, why: str) -> NoReturn:
        """End with an error that names the field."""
        raise TaskArgsInvalid(f"{self.param} cannot be used: {why}", param=self.param)

    def resolve(self, reference: Any) -> Node:
        """The schema that a ``$ref`` names.

        Raises:
            TaskArgsInvalid: it is not in this document.
        """
        if not isinstance(reference, str):
            self.refuse("$ref must be a string")
        if not (reference in ("#", "#/") or reference.startswith("#/")):
            self.refuse(f"$ref {quoted(reference)} is not of the form #/...")
        node: Any = self.root
        for part in reference[2:].split("/") if len(reference) > 2 else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and _INDEX.fullmatch(key) and int(key) < len(node):
                node = node[int(key)]
            else:
                self.refuse(f"$ref {quoted(reference)} names nothing in it")
        return node

    def parts(self, node: dict[str, Any], keywords: tuple[str, ...]) -> Iterator[Node]:
        """The schemas in lists under some keywords."""
        for keyword in keywords:
            if isinstance(branches := node.get(keyword), list):
                yield from branches

    def shape(self, node: Node) -> Shape:
        """What a schema says of an object's keys, with all that it refers to."""
        if not isinstance(node, dict):
            return Shape()
        if (known := self._shapes.get(id(node))) is None:
            self._kept.append(node)  # so that no other gets its id
            self._shapes[id(node)] = Shape()  # for a schema that refers to itself
            shapes = [self.own_shape(node)]
            if "$ref" in node:
                shapes.append(self.shape(self.resolve(node["$ref"])))
            shapes += map(self.shape, self.parts(node, ("allOf",)))
            choice = Shape.of(map(self.shape, self.parts(node, CHOICES)))
            choice.chooses |= choice.declares
            known = self._shapes[id(node)] = Shape.of([*shapes, choice])
        return known

    def own_shape(self, node: dict[str, Any]) -> Shape:
        """What the keywords of a schema itself say."""
        required = node.get("required")
        names = required if isinstance(required, list) else []
        beyond = node.get("unevaluatedProperties")
        return Shape(
            dict.fromkeys(_mapping(node, "properties")),
            dict.fromkeys(_mapping(node, "patternProperties")),
            {name: None for name in names if isinstance(name, str)},
            declares="properties" in node or "patternProperties" in node or beyond is False,
            decided="additionalProperties" in node or beyond not in (None, False),
        )


def _mapping(node: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = node.get(keyword)
    return value if isinstance(value, dict) else {}
