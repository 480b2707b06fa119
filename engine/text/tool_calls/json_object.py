"""Calls that are a JSON object: ``{"name": "f", "arguments": {...}}``.

Most formats are made of such objects. They are read as they arrive. A call is certain once its name
is complete and is the name of a function of the task, and its arguments have begun with a brace.
Then the call is emitted, and the arguments follow as the model writes them, even if they turn out
to be cut off or not to be JSON. Text that is not a call up to that point is content, unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from engine.text.cursor import WHITE, Give, Reading, TextCursor
from engine.text.events import CallReader, Out
from schema.tool_choice import Functions

_ARGUMENTS = ("arguments", "parameters")
_IGNORED = ("id", "type")
_IN_STRING = re.compile(r'[^"\\]*')
# What may stand between strings and brackets. Anything else, such as the end marker of a call whose
# brackets do not match, ends the call.
_OUTSIDE = re.compile(r"[\s:,0-9A-Za-z.+-]*")
_SCALAR = re.compile(r"[0-9A-Za-z.+-]*")


def json_call(source: TextCursor, out: Out, functions: Functions) -> Reading[bool]:
    """Read one call, from its opening brace to its closing one.

    The caller has called `hold` on the source. If this returns False, what it holds is content.
    """
    if not (yield from source.accept("{")):
        return False
    name: str | None = None
    early: list[str] | None = None  # arguments that stand before the name
    started = False
    while True:
        yield from source.space()
        key = yield from _string(source)
        yield from source.space()
        if key is None or not (yield from source.accept(":")):
            return False
        yield from source.space()
        if key == "name" and name is None:
            name = yield from _string(source)
            if name is None or name not in functions:
                return False
        elif key in _ARGUMENTS and early is None and not started:
            if (yield from source.peek()) != "{":
                return False
            if name is None:
                early = []
                if not (yield from json_value(source, early.append)):
                    return False
            else:
                started = True
                if not (yield from call_with(source, out, name)):
                    return False
        elif key not in _IGNORED or not (yield from json_value(source, _nothing)):
            return False
        if name is not None and early is not None and not started:
            started = True
            _emit(source, out, name, "".join(early))
        yield from source.space()
        if (yield from source.accept(",")):
            continue
        if not (yield from source.accept("}")):
            return False
        if not started:
            if name is None:
                return False
            _emit(source, out, name, "{}")
        source.release()
        return True


def call_with(source: TextCursor, out: Out, name: str) -> Reading[bool]:
    """Emit a call and read its arguments, which come next; returns whether they are complete."""
    _emit(source, out, name, "")
    source.release()
    complete = yield from json_value(source, out.arguments)
    source.hold()
    return complete


def after_call(source: TextCursor, out: Out) -> Reading[str | None]:
    """Read on after a call, or after text that was not one: what the source holds is content.

    White space around calls is part of their layout. It is returned, since it is content if text
    follows it; None where the answer ends with a call.
    """
    rest = source.release() + (yield from source.space())
    solid = rest.rstrip(WHITE)
    out.content(solid)
    if not solid and out.num_calls and not (yield from source.peek()):
        return None
    return rest[len(solid) :]


def calls_after(
    begin: str, read_call: Callable[[TextCursor, Out, Functions], Reading[bool]]
) -> CallReader:
    """The reader of calls that stand after the marker ``begin``, anywhere in the text.

    ``read_call`` reads what follows the marker, and returns whether it was a whole call.
    """

    def read(source: TextCursor, out: Out, functions: Functions) -> Reading[None]:
        spaces: str | None = ""
        while spaces is not None:
            spaces = yield from source.until(begin, out.content, before=spaces)
            if spaces is None:
                return
            source.hold(spaces + begin)
            if (yield from read_call(source, out, functions)):
                source.release()
            spaces = yield from after_call(source, out)

    return read


def json_value(source: TextCursor, give: Give) -> Reading[bool]:
    """Read one JSON value as it is; returns whether it is complete.

    Only what is needed to find its end is checked.
    """
    depth = 0
    while True:
        character = yield from source.peek()
        if character == '"':
            if not (yield from _raw_string(source, give)):
                return False
        elif character and character in "{[":
            depth += 1
            give(source.take(1))
        elif depth and character and character in "}]":
            depth -= 1
            give(source.take(1))
        elif not (yield from source.run(_OUTSIDE if depth else _SCALAR, give)):
            return False
        if depth == 0:
            return True


def _raw_string(source: TextCursor, give: Give) -> Reading[bool]:
    if not (yield from source.accept('"')):
        return False
    give('"')
    while True:
        yield from source.run(_IN_STRING, give)
        character = yield from source.peek()
        if not character:
            return False
        give(source.take(1))
        if character == '"':
            return True
        if (yield from source.peek()):  # after a backslash
            give(source.take(1))


def _string(source: TextCursor) -> Reading[str | None]:
    """Read a string; None if there is none, or if it is not valid."""
    pieces: list[str] = []
    if not (yield from _raw_string(source, pieces.append)):
        return None
    try:
        text = json.loads("".join(pieces))
    except ValueError:
        return None
    assert isinstance(text, str)
    return text


def _emit(source: TextCursor, out: Out, name: str, arguments: str) -> None:
    source.hold()  # what has been read so far is emitted here
    out.call(name)
    out.arguments(arguments)


def _nothing(text: str) -> None:
    """Drops what is not emitted as part of a call."""
