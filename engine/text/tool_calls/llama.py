"""Calls of Llama 3.1 and later: a bare JSON object, or several, that begin the answer.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/ ::

    {"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}

They may also follow ``<|python_tag|>``, anywhere. Anything else after that tag, such as calls of
the built-in tools in Python, is content.
"""

from __future__ import annotations

from engine.text.cursor import Reading, TextCursor
from engine.text.events import CallLayout, Out, ToolFormat
from engine.text.tool_calls.json_object import after_call, json_call
from schema.tool_choice import Functions

_TAG = "<|python_tag|>"


def _read(source: TextCursor, out: Out, functions: Functions) -> Reading[None]:
    spaces = yield from _calls(source, out, functions, "")
    while spaces is not None:
        spaces = yield from source.until(_TAG, out.content, before=spaces)
        if spaces is None:
            return
        spaces = yield from _calls(source, out, functions, spaces + _TAG)


def _calls(source: TextCursor, out: Out, functions: Functions, before: str) -> Reading[str | None]:
    """Read the calls that come next; returns what `after_call` returns."""
    source.hold(before)
    yield from source.space()
    if not before:
        yield from source.accept(_TAG)
        yield from source.space()
    while (yield from source.peek()) == "{":
        if not (yield from json_call(source, out, functions)):
            break
        source.hold()
        yield from source.space()
        if (yield from source.accept(";")):
            yield from source.space()
    return (yield from after_call(source, out))


LLAMA = ToolFormat(
    "llama", (_TAG,), _read, CallLayout('{"name": "', '", "parameters": ', "}", "; ")
)
