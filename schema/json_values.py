"""Strict JSON: what may be inside the free-form parts of a task, and how its bytes are read.

The standard parser is lenient: it accepts NaN, keeps the last of two equal keys and makes strings
that are not Unicode. Two programs could understand such a task differently.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from schema.errors import TaskArgsInvalid

MAX_JSON_DEPTH = 32
"""Depth of objects and arrays in `tools`, `template_args` and `tool_calls`. Chat templates walk
them recursively."""

MAX_JSON_VALUES = 100_000
"""Values in `tools`, `template_args` and all `tool_calls` of a task, counted at all depths. JSON
Schema cannot express this limit."""

MAX_BRACKETS = 1_000_000
"""Objects and arrays in one body, brackets inside strings counted too: sixteen million empty arrays
fit into 32 MB and would block the parser, and all other requests, for seconds."""

MAX_JSON_KEYS = 10_000
"""Keys of one object: an object of a million unknown fields would make a million errors."""

MAX_JSON_INTEGER = 2**64 - 1
"""Other parsers round larger ones, and the task would no longer be the same everywhere."""


def parse_json(body: bytes | str) -> Any:
    """Read one JSON value. Raises a `TaskArgsInvalid` that says why `body` is not one."""
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        if not text.strip():
            raise TaskArgsInvalid("The body is empty; it must be a JSON object.")
        if text.startswith("\ufeff"):
            raise TaskArgsInvalid("The body begins with a byte order mark; leave it out.")
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise TaskArgsInvalid(
                f"The body has more than {MAX_BRACKETS} objects and arrays; no task needs so many."
            )
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise TaskArgsInvalid(
            f"The body is not UTF-8: byte {error.start} cannot be read. JSON is UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise TaskArgsInvalid(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise TaskArgsInvalid(
            f"The body is nested too deeply; at most {MAX_JSON_DEPTH} levels are allowed."
        ) from None
    except ValueError:
        # Python refuses integers of more than some thousand digits.
        raise TaskArgsInvalid(
            f"The body has an integer of thousands of digits; the largest is {MAX_JSON_INTEGER}."
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_JSON_KEYS:
        raise TaskArgsInvalid(
            f"The body has an object with {len(pairs)} keys; at most {MAX_JSON_KEYS} are allowed."
        )
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise TaskArgsInvalid(
                    f"The body has an object with the key {quoted(key)} twice; keep one of them."
                )
            seen.add(key)
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise TaskArgsInvalid(f"The body is not valid JSON: {name} is not a JSON number.")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise TaskArgsInvalid(f"The number {clipped(digits)} is too large for a 64-bit float.")
    if value == 0 and digits.lower().partition("e")[0].strip("-0."):
        raise TaskArgsInvalid(
            f"The number {clipped(digits)} is too small for a 64-bit float; 0 is another number."
        )
    return value


def check_json(value: dict[str, Any]) -> dict[str, Any]:
    """Pydantic validator of a free-form object: refuse what some JSON parsers cannot read."""
    if not _plainly_fine(value):
        _raise_first_problem(value)
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


WHOLE = BeforeValidator(_whole)
"""For integers: 10.0 is one, as it is in JSON Schema. Behind the limits of its type, which pydantic
would not publish otherwise."""


def _all_whole(value: Any) -> Any:
    if isinstance(value, list) and float in set(map(type, value)):
        return [_whole(item) for item in value]
    return value


ALL_WHOLE = BeforeValidator(_all_whole)
"""The same for lists of integers. There may be a million, of which each would be a call."""


def count_values(value: Any, most: int) -> int:
    """Values in parsed JSON at all depths; stops counting soon after ``most``."""
    count = 0
    level = [value]
    while level and count <= most:
        count += len(level)
        below: list[Any] = []
        for item in level:
            if isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.values()
        level = below
    return count


def _plainly_fine(value: dict[str, Any]) -> bool:
    """Whether nothing is wrong; fast, because there may be megabytes of brackets.

    Goes level by level, because a Python caller's object may be nested without end. `False` only
    means that a closer look is needed.
    """
    level: list[Any] = [value]
    count = 0
    for _ in range(MAX_JSON_DEPTH + 1):
        count += len(level)
        if count > MAX_JSON_VALUES:
            return False
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is list:
                below += item
            elif kind is dict:
                below += item.values()
                if _problem(item) is not None:
                    return False
            elif kind is str:
                if not (item.isascii() or _is_unicode(item)):
                    return False
            elif isinstance(item, dict | list) or _problem(item) is not None:
                return False
        level = below
    return not level


def _raise_first_problem(value: dict[str, Any]) -> None:
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(value, ())]
    count = 0
    while stack:
        item, path = stack.pop()
        count += 1
        problem = _problem(item)
        if problem is None and isinstance(item, dict | list) and item:
            if len(path) == MAX_JSON_DEPTH:
                problem, path = f"is nested deeper than {MAX_JSON_DEPTH} levels", path[:1]
            elif count + len(stack) + len(item) > MAX_JSON_VALUES:
                problem, path = f"has more than {MAX_JSON_VALUES} values", ()
            else:
                # Reversed, so that the first problem in the text is reported first.
                children = reversed(list(_children(item)))
                stack.extend((child, (*path, key)) for key, child in children)
        if problem is not None:
            raise PydanticCustomError("json_value", "{problem}", {"problem": problem, "path": path})


def _children(item: dict[str, Any] | list[Any]) -> Iterator[tuple[str | int, Any]]:
    return iter(item.items()) if isinstance(item, dict) else enumerate(item)


def _problem(item: Any) -> str | None:
    """What is wrong with this one value, apart from its children."""
    if item is None or isinstance(item, bool | list):
        return None
    if isinstance(item, str):
        return None if _is_unicode(item) else "must be Unicode text; it has half a surrogate pair"
    if isinstance(item, int):
        within = -MAX_JSON_INTEGER <= item <= MAX_JSON_INTEGER
        return None if within else "must be an integer of at most 64 bits; write it as a string"
    if isinstance(item, float):
        return None if math.isfinite(item) else "must be a finite number"
    if isinstance(item, dict):
        if all(isinstance(key, str) and _is_unicode(key) for key in item):
            return None
        return "must be an object whose keys are Unicode strings"
    return f"must be a JSON value, and {clipped(type(item).__name__)} is not one"


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clipped(text: str, limit: int = 64) -> str:
    """`text`, short and printable, so that an error message can quote what a client sent."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return short.encode("utf-8", "backslashreplace").decode()


def quoted(text: str) -> str:
    """`clipped`, as a JSON string."""
    return json.dumps(clipped(text), ensure_ascii=False)
