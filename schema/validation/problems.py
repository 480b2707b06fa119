"""From pydantic's errors to one `TaskArgsInvalid` that says which field, what limit, what to do."""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from schema.errors import (
    InvalidType,
    MissingParameter,
    TaskArgsInvalid,
    UnknownParameter,
    UnsupportedParameter,
)
from schema.generation import GenerationConfig
from schema.json_values import clipped, quoted
from schema.message import IMAGE_BLOCK_TAG, TEXT_BLOCK_TAG, ImageBlock, Message, TextBlock
from schema.structured import FORMS
from schema.tool_choice import FUNCTION_TAG, NamedFunction

_DECIDES = {"block_type": "type", "message_role": "role"}
"""The field that decides of which kind an object is, by the error for an unknown one."""
MAX_PROBLEMS = 5
"""How many problems a message lists; the others are only counted."""
UNSUPPORTED = "unsupported"
"""The type of the errors of fields that exist only to be refused."""


@dataclass(frozen=True)
class Dialect:
    """The names that one kind of request has for its parts.

    Attributes:
        noun: the request itself.
        elsewhere: names in other interfaces, with ours.
        advice: messages for certain unknown fields of the request itself.
        inner: the model of an object, by its field or tag; those of messages have none.
        message: the model of a message.
        never: fields that have no effect or exist only to be refused, and so are never suggested.
    """

    noun: str
    elsewhere: Mapping[str, str]
    advice: Mapping[str, str]
    inner: Mapping[str | int, type[BaseModel]]
    message: type[BaseModel]
    never: frozenset[str] = frozenset()


# Names of the same thing elsewhere, mostly in OpenAI's API.
_ELSEWHERE = {
    "max_tokens": "generation_config.max_new_tokens",
    "max_completion_tokens": "generation_config.max_new_tokens",
    "max_length": "generation_config.max_new_tokens",
    "stop": "generation_config.stop_strings",
    "n": "generation_config.num_return_sequences",
    "top_logprobs": "generation_config.logprobs",
    "torch_dtype": "dtype",
    "response_format": "structured_output",
    "image_url": "base64",
    "url": "base64",
}
TASK_DIALECT = Dialect(
    noun="task",
    elsewhere=_ELSEWHERE
    | {name: f"generation_config.{name}" for name in GenerationConfig.model_fields},
    advice={"stream": "is not a field of a task; ask for a stream in the address: ?stream=true"},
    inner={
        "generation_config": GenerationConfig,
        TEXT_BLOCK_TAG: TextBlock,
        IMAGE_BLOCK_TAG: ImageBlock,
        **FORMS,
        FUNCTION_TAG: NamedFunction,
    },
    message=Message,
)


def explain(
    error: ValidationError, root: type[BaseModel], dialect: Dialect = TASK_DIALECT
) -> TaskArgsInvalid:
    """The error to raise for a `root` that is not valid. `param` is the first field at fault."""
    details = error.errors(include_url=False)
    problems = [_problem(detail, root, dialect) for detail in details[:MAX_PROBLEMS]]
    lines = [f"{path}: {text}" if path else f"The {dialect.noun} {text}" for path, text in problems]
    if len(details) == 1:
        message = lines[0] if lines[0].endswith("?") else f"{lines[0]}."
    else:
        more = len(details) - len(lines)
        rest = f"; and {more} more" if more else ""
        noun, count = dialect.noun, len(details)
        message = f"The {noun} has {count} problems: {'; '.join(lines)}{rest}."
    kind: str = details[0]["type"]
    other = InvalidType if kind.endswith("_type") else TaskArgsInvalid
    return _CLASSES.get(kind, other)(message, param=problems[0][0] or None)


_CLASSES: dict[str, type[TaskArgsInvalid]] = {
    "extra_forbidden": UnknownParameter,
    "missing": MissingParameter,
    UNSUPPORTED: UnsupportedParameter,
    "block_type": TaskArgsInvalid,  # its field `type` has an unknown value
}
"""The error to raise, by pydantic's type of the first problem, where it has one of its own."""


def _problem(detail: Mapping[str, Any], root: type[BaseModel], dialect: Dialect) -> tuple[str, str]:
    """The dotted path of the field, and the problem."""
    kind, loc, value = detail["type"], detail["loc"], detail["input"]
    context = detail.get("ctx", {})
    unknown = kind == "extra_forbidden"
    # An unknown field may have any name, even that of a tag.
    path = tuple(part for part in loc[:-1] if not _is_tag(part))
    if loc and (unknown or not _is_tag(loc[-1])):
        path += (loc[-1],)
    path += tuple(context.get("path", ()))
    if (key := _DECIDES.get(kind)) is not None and isinstance(value, Mapping):
        path += (key,)
        value = value.get(key)
    name = ".".join(clipped(str(part)) for part in path)
    if unknown:
        return name, _unknown_field(loc, root, dialect)
    if kind in ("task_rule", "json_value", UNSUPPORTED):
        return name, context["problem"]
    if kind == "missing":
        return name, "is required"
    text = requirement(kind, context) or clipped(detail["msg"], 200)
    return name, f"{text}, not {describe(value)}"


def _is_tag(part: str | int) -> bool:
    """Whether a part of pydantic's path is the tag of a union's member, and no field's name."""
    return isinstance(part, str) and part[:1] == "<" and part[-1:] == ">"


def _must_be(what: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda _: f"must be {what}"


def _literal(context: Mapping[str, Any]) -> str:
    return "must be " + re.sub(r"'([^']*)'", r'"\1"', context["expected"])


# By pydantic's error type. https://docs.pydantic.dev/latest/errors/validation_errors/
_SAY: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "model_type": _must_be("an object"),
    "dict_type": _must_be("an object"),
    "list_type": _must_be("an array"),
    "string_type": _must_be("a string"),
    "string_unicode": _must_be("Unicode text without half surrogate pairs"),
    "bool_type": _must_be("true or false"),
    "int_type": _must_be("an integer"),
    "float_type": _must_be("a number"),
    "finite_number": _must_be("a finite number"),
    "literal_error": _literal,
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {_number(c['ge'])}",
    "less_than_equal": lambda c: f"must be at most {_number(c['le'])}",
    "too_short": lambda c: f"must have at least {c['min_length']} item",
    "too_long": lambda c: f"must have at most {c['max_length']} items",
    "string_too_short": lambda c: f"must have at least {c['min_length']} character",
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
}


def requirement(kind: str, context: Mapping[str, Any]) -> str | None:
    """What a value must be, such as "must be at least 1"; None for an error of another kind.

    Args:
        kind: pydantic's type of the error.
        context: the error's ``ctx``.
    """
    say = _SAY.get(kind)
    return say(context) if say else None


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def describe(value: Any) -> str:
    """What a client sent, in a few words; never megabytes of it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return quoted(value) if len(value) <= 64 else f"a string of {len(value)} characters"
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of more than 128 bits"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return f"an array of {len(value)}" if value else "an empty array"
    if isinstance(value, dict):
        return "an object"
    return f"a Python {clipped(type(value).__name__)}"


def _model_at(loc: Sequence[str | int], dialect: Dialect) -> type[BaseModel]:
    """The model of the object at a place: by its field or tag, or by that of its list."""
    named = next((part for part in reversed(loc) if isinstance(part, str)), "")
    return dialect.inner.get(named, dialect.message)


def _unknown_field(loc: Sequence[str | int], root: type[BaseModel], dialect: Dialect) -> str:
    name, top = str(loc[-1]), len(loc) == 1
    if top and name in dialect.advice:
        return dialect.advice[name]
    model = root if top else _model_at(loc[:-1], dialect)
    fields = (info.alias or name for name, info in model.model_fields.items())
    here = [field for field in fields if field not in dialect.never]
    wanted = dialect.elsewhere.get(name)
    if wanted is not None and not top:
        wanted = wanted.removeprefix("generation_config.")
        wanted = wanted if wanted in here else None
    if wanted is None:
        wanted = next(iter(difflib.get_close_matches(clipped(name), here, n=1)), None)
    if wanted is None:
        return f"is not a known field; the fields here are {', '.join(here)}"
    return f"is not a known field; did you mean {wanted}?"
