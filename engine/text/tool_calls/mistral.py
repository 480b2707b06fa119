"""Calls of Mistral's models, in both forms.

https://github.com/mistralai/mistral-common: tokenizers up to version 7 write a list, later ones a
marker before each call::

    [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
    [TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]XYZ123abc[ARGS]{}
"""

from __future__ import annotations

import re

from engine.text.cursor import Reading, TextCursor
from engine.text.events import CallLayout, Out, ToolFormat
from engine.text.tool_calls.json_object import call_with, calls_after, json_call
from schema.tool_choice import Functions

_BEGIN, _ARGS, _ID = _MARKERS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
_NAME = re.compile(r"[^\s\[{]*")
_ID_TEXT = re.compile(r"[0-9A-Za-z_-]*")


def _calls(source: TextCursor, out: Out, functions: Functions) -> Reading[bool]:
    yield from source.space()
    kind = yield from source.peek()
    if kind == "[":
        return (yield from _list(source, out, functions))
    if kind == "{":
        return (yield from json_call(source, out, functions))
    return (yield from _named(source, out, functions))


def _list(source: TextCursor, out: Out, functions: Functions) -> Reading[bool]:
    yield from source.accept("[")
    while True:
        yield from source.space()
        if not (yield from json_call(source, out, functions)):
            return False
        source.hold()
        yield from source.space()
        if not (yield from source.accept(",")):
            return (yield from source.accept("]"))


def _named(source: TextCursor, out: Out, functions: Functions) -> Reading[bool]:
    pieces: list[str] = []
    yield from source.run(_NAME, pieces.append)
    name = "".join(pieces)
    if name not in functions:
        return False
    if (yield from source.accept(_ID)):
        yield from source.run(_ID_TEXT, pieces.append)
    yield from source.accept(_ARGS)
    yield from source.space()
    if (yield from source.peek()) != "{":
        return False
    return (yield from call_with(source, out, name))


_READ = calls_after(_BEGIN, _calls)

MISTRAL = ToolFormat(
    "mistral",
    _MARKERS,
    _READ,
    CallLayout('{"name": "', '", "arguments": ', "}", ", ", "[TOOL_CALLS][", "]"),
)

MISTRAL_NAMED = ToolFormat("mistral", _MARKERS, _READ, CallLayout(_BEGIN, _ARGS, "", ""))
