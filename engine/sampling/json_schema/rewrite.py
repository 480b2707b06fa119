"""A client's JSON Schema as one that llguidance compiles to a grammar whose answers are valid.

What changes is narrower than what the client wrote, or equal:

* Objects that declare keys and say nothing of others are closed (`_Rewriter._in_place`).
* Numbers have bounds that floats can express (`numbers`), and formats that are only annotations are
  left out (`strings`). A ``oneOf`` whose branches exclude each other is an ``anyOf`` (`disjoint`).
* References lead to fresh definitions: the same one may be needed open and closed.

What is left over and not supported is refused by llguidance, by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engine.sampling.json_schema.disjoint import are_disjoint, tag
from engine.sampling.json_schema.document import ANNOTATIONS, CHOICES, Document, Node, Shape
from engine.sampling.json_schema.maps import allows_anything, with_declared_keys
from engine.sampling.json_schema.numbers import bounded, check_multiples
from engine.sampling.json_schema.strings import constrained, needs_look_around

_NODE = 20  # work of a schema, in units of `Document.spend`
_MAPS = ("properties", "patternProperties")
_LISTS = ("prefixItems",)
_SINGLE = ("additionalProperties", "items", "additionalItems")


@dataclass(frozen=True)
class AnswerSchema:
    """A schema for llguidance.

    Attributes:
        schema: the schema.
        is_open: answers may have keys that are not declared, or numbers without bounds, which a
            grammar alone cannot keep valid.
    """

    schema: dict[str, Any]
    is_open: bool


def rewritten(schema: dict[str, Any], param: str) -> AnswerSchema:
    """The schema that answers follow.

    Args:
        schema: as the client wrote it, of at most `MAX_JSON_DEPTH` levels.
        param: the field that errors name.

    Raises:
        TaskArgsInvalid: it cannot be kept to.
    """
    document = Document(schema, param)
    try:
        return _Rewriter(document).run()
    except RecursionError:
        document.refuse("its references are nested too deeply")


@dataclass(frozen=True)
class _Mode:
    """How the object that a schema describes is closed.

    Attributes:
        close: keys that are not declared are forbidden, unless the schema decides itself.
        closed_beside: a part beside this one forbids them.
        always: also where the schema declares none, because a schema around it does.
        names: keys that schemas around it declare.
        patterns: patterns of such keys.
        required: keys that schemas around it require.
        adds: a key that has to be there, though the client's schema does not say so.
    """

    close: bool = True
    closed_beside: bool = False
    always: bool = False
    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    adds: str | None = None

    def among(self, others: Shape) -> _Mode:
        """The same for the part of a schema that closes the object, beside other parts."""
        return replace(
            self,
            always=self.always or others.declares,
            names=tuple(dict.fromkeys((*self.names, *others.names))),
            patterns=tuple(dict.fromkeys((*self.patterns, *others.patterns))),
            required=tuple(dict.fromkeys((*self.required, *others.required))),
            adds=None,
        )


_CLOSED_BESIDE = _Mode(close=False, closed_beside=True)
_OPEN = _Mode(close=False)


class _Rewriter:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._definitions: dict[str, Node] = {}
        self._names: dict[tuple[int, _Mode], str] = {}
        self._pending: list[tuple[str, Node, _Mode]] = []
        self._steps: set[float] = set()
        self._is_open = False

    def run(self) -> AnswerSchema:
        schema = self._schema(self._document.root, _Mode())
        while self._pending:
            name, node, mode = self._pending.pop()
            self._definitions[name] = self._schema(node, mode)
        check_multiples(self._steps, self._document)
        if self._definitions:
            schema["$defs"] = self._definitions
        return AnswerSchema(schema, self._is_open)

    def _schema(self, node: Node, mode: _Mode) -> Any:
        """A schema at its place."""
        self._document.spend(_NODE)
        if not isinstance(node, dict):
            self._is_open |= node is True
            if node is True and mode.always:
                node = {}
            else:
                return node
        node = with_declared_keys(node, self._document)
        node = constrained(bounded(node, self._document))
        made = {key: value for key, value in node.items() if key not in ANNOTATIONS}
        if isinstance(step := made.get("multipleOf"), int | float):
            self._steps.add(step)
        if made.get("uniqueItems") is False or _has_one_item(made):
            made.pop("uniqueItems", None)
        if made.get("unevaluatedProperties") is True:
            del made["unevaluatedProperties"]
        if mode.adds:
            own = made.get("required")
            made["required"] = [*(own if isinstance(own, list) else ()), mode.adds]
        self._children(made)
        is_closed = self._in_place(node, made, mode)
        self._is_open |= allows_anything(made, is_closed=is_closed)
        return made

    def _children(self, made: dict[str, Any]) -> None:
        """Rewrite the schemas of values inside a value."""
        for keyword in _MAPS:
            if isinstance(value := made.get(keyword), dict):
                made[keyword] = {key: self._schema(item, _Mode()) for key, item in value.items()}
        for keyword in (*_LISTS, "items"):
            if isinstance(value := made.get(keyword), list):
                made[keyword] = [self._schema(item, _Mode()) for item in value]
        for keyword in _SINGLE:
            if isinstance(value := made.get(keyword), dict):
                made[keyword] = self._schema(value, _Mode())

    def _in_place(self, node: dict[str, Any], made: dict[str, Any], mode: _Mode) -> bool:
        """Rewrite the parts of a schema that describe the same value, and close its object.

        Exactly one part closes an object, and it knows the keys that all others declare: if each
        closed itself, the parts of an ``allOf`` would forbid each other's keys. The branches of an
        ``anyOf`` close it where there is one, because only they know which keys come together.

        Returns:
            Whether the object is closed, here or by a part.
        """
        document = self._document
        targets = [document.resolve(node["$ref"])] if "$ref" in node else []
        all_of = list(document.parts(node, ("allOf",)))
        groups = [list(document.parts(node, (key,))) for key in CHOICES]
        shapes = [
            document.own_shape(node),
            *map(document.shape, [*targets, *all_of]),
            *(Shape.of(map(document.shape, group)) for group in groups),
        ]
        modes = self._modes(made, shapes, mode)
        is_closed = mode.closed_beside or any(one is not _OPEN for one in modes)
        if targets:
            if mode.adds and set(made) == {"$ref", "required"}:
                # llguidance follows no recursion through a $ref with keywords beside it.
                del made["required"]
                modes[1] = replace(modes[1], adds=mode.adds)
            made["$ref"] = self._definition(targets[0], modes[1])
        if all_of:
            closers = made["allOf"][len(all_of) :]
            made["allOf"] = [*map(self._schema, all_of, modes[1 + len(targets) :]), *closers]
        self._choose(node, made, dict(zip(CHOICES, modes[-2:], strict=True)))
        if is_closed and made.get("unevaluatedProperties") is False and mode.close:
            del made["unevaluatedProperties"]
        return is_closed

    def _modes(self, made: dict[str, Any], shapes: list[Shape], mode: _Mode) -> list[_Mode]:
        """The mode of each part of a schema, so that one of them closes the object.

        Args:
            made: the schema; it is closed itself where no part of it is to do so.
            shapes: of the keywords of the schema itself, of what its ``$ref`` names, of the parts
                of its ``allOf``, and of its ``anyOf`` and ``oneOf``.
            mode: of the whole.
        """
        conjuncts = shapes[: -len(CHOICES)]
        if not mode.close or any(shape.decided for shape in conjuncts):
            return [_CLOSED_BESIDE if mode.closed_beside else _OPEN] * len(shapes)
        declaring = [index for index, shape in enumerate(shapes) if shape.declares]
        choosing = [
            index for index in declaring if shapes[index].chooses or index >= len(conjuncts)
        ]
        if not declaring and not mode.always:
            return [_OPEN] * len(shapes)
        modes = [_CLOSED_BESIDE] * len(shapes)
        if len(choosing) > 1:
            self._is_open = True  # what one declares is any value in a branch of another
        elif len(declaring) > 1 and choosing:
            declaring = choosing
        if declaring in ([], [0]):
            others = Shape.of(shapes[1:])
            self._close(made, mode.among(others))
        elif len(declaring) == 1:
            closing = declaring[0]
            others = Shape.of(shape for index, shape in enumerate(shapes) if index != closing)
            modes[closing] = mode.among(others)
        else:
            closer: dict[str, Any] = {}
            self._close(closer, mode.among(Shape.of(shapes)))
            own = made.get("allOf")
            made["allOf"] = [*(own if isinstance(own, list) else ()), closer]
        return modes

    def _close(self, made: dict[str, Any], mode: _Mode) -> None:
        """Forbid keys that are not declared here, nor by the schemas around."""
        own = made.get("properties", {})
        patterns = made.get("patternProperties", {})
        required = made.get("required", [])
        if not (
            isinstance(own, dict) and isinstance(patterns, dict) and isinstance(required, list)
        ):
            return  # llguidance says what is wrong
        known = dict.fromkeys((*own, *mode.names))
        undeclared = [
            name
            for name in (*required, *mode.required)
            if isinstance(name, str) and name not in known
        ]
        self._is_open |= bool(undeclared)
        if more := {name: True for name in (*mode.names, *undeclared) if name not in own}:
            made["properties"] = own | more
            self._document.spend(len(more))
        if more := {pattern: True for pattern in mode.patterns if pattern not in patterns}:
            made["patternProperties"] = patterns | more
        made["additionalProperties"] = False

    def _choose(self, node: dict[str, Any], made: dict[str, Any], modes: dict[str, _Mode]) -> None:
        """Rewrite ``anyOf`` and ``oneOf``."""
        if isinstance(branches := node.get("anyOf"), list):
            usable = [branch for branch in branches if not needs_look_around(branch)]
            made["anyOf"] = [self._schema(one, modes["anyOf"]) for one in usable or branches]
        if isinstance(branches := node.get("oneOf"), list):
            mode = modes["oneOf"]
            if not are_disjoint(branches, self._document):
                name = tag(node, branches, self._document)
                if name is None:
                    self._document.refuse(
                        "the branches of a oneOf may overlap. Use anyOf, or give each branch a "
                        "property with a const of its own"
                    )
                mode = replace(mode, adds=name)
            either = [self._schema(one, mode) for one in branches]
            if "anyOf" in made:
                del made["oneOf"]
                made["allOf"] = [*made.get("allOf", ()), {"anyOf": either}]
            else:  # in its place, because properties come in the order of a schema
                renamed = [("anyOf" if key == "oneOf" else key, made[key]) for key in made]
                made.clear()
                made.update(renamed)
                made["anyOf"] = either

    def _definition(self, node: Node, mode: _Mode) -> str:
        """A reference to a definition, which is made later if it is new."""
        key = (id(node), mode)
        if key not in self._names:
            self._names[key] = str(len(self._names))
            self._pending.append((self._names[key], node, mode))
        return f"#/$defs/{self._names[key]}"


def _has_one_item(made: dict[str, Any]) -> bool:
    most = made.get("maxItems")
    return isinstance(most, int) and most <= 1
