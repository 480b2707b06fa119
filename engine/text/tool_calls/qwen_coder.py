"""Calls of Qwen3-Coder: a tag for each argument, whose value is text.

https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct ::

    <tool_call>
    <function=f>
    <parameter=a>
    1
    </parameter>
    </function>
    </tool_call>

The function's own JSON Schema says which type a value has. A value is a string if the schema says
so, or if it is not JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

from engine.text.cursor import WHITE, Reading, TextCursor
from engine.text.events import Out, ToolFormat
from engine.text.tool_calls.json_object import calls_after
from schema.errors import TaskArgsInvalid
from schema.json_values import parse_json
from schema.tool_choice import Functions

_BEGIN, _END = "<tool_call>", "</tool_call>"
_VALUE_END = "</parameter>"
_TAG_NAME = re.compile(r"[^>\s]*")


def _call(source: TextCursor, out: Out, functions: Functions) -> Reading[bool]:
    """Read a function and its parameters, which are emitted as one JSON object."""
    yield from source.space()
    name = yield from _tag(source, "<function=")
    if name is None or name not in functions:
        return False
    out.call(name)
    out.arguments("{")
    separator = ""
    while True:
        source.hold()
        yield from source.space()
        key = yield from _tag(source, "<parameter=")
        if key is None:
            break
        source.release()
        out.arguments(f"{separator}{_quoted(key)}: ")
        separator = ", "
        if not (yield from _value(source, out, _is_string(functions[name], key))):
            source.hold()
            return False
    if not (yield from source.accept("</function>")):
        return False
    out.arguments("}")
    source.hold()
    yield from source.space()
    return (yield from source.accept(_END))


def _tag(source: TextCursor, begin: str) -> Reading[str | None]:
    """The name in a tag, such as ``<function=name>``."""
    if not (yield from source.accept(begin)):
        return None
    pieces: list[str] = []
    yield from source.run(_TAG_NAME, pieces.append)
    return "".join(pieces) if (yield from source.accept(">")) else None


def _value(source: TextCursor, out: Out, is_string: bool) -> Reading[bool]:
    """Read a parameter's value, without the line breaks around it; returns whether it is complete.

    A string is emitted as it arrives; anything else once it is known to be JSON.
    """
    yield from source.accept("\n")
    if is_string:
        out.arguments('"')
        breaks = yield from source.until(
            _VALUE_END, lambda text: out.arguments(_quoted(text)[1:-1]), loose="\n"
        )
        if breaks is None:
            return False
        out.arguments(_quoted(breaks[:-1])[1:])
        return True
    pieces: list[str] = []
    breaks = yield from source.until(_VALUE_END, pieces.append, loose="\n")
    text = "".join(pieces)
    if breaks is None:
        out.arguments(text)
        return False
    try:
        parse_json(text)
        out.arguments(text.strip(WHITE))
    except TaskArgsInvalid:
        out.arguments(_quoted(text + breaks[:-1]))
    return True


def _is_string(parameters: Any, key: str) -> bool:
    """Whether a function's JSON Schema says that an argument is, or may be, a string."""
    for name in ("properties", key):
        parameters = parameters.get(name) if isinstance(parameters, dict) else None
    kind = parameters.get("type") if isinstance(parameters, dict) else None
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


QWEN_CODER = ToolFormat("qwen_coder", (_BEGIN, _END), calls_after(_BEGIN, _call), None)
