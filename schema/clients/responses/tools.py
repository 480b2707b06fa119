"""``tools`` and ``tool_choice`` of the Responses API: functions, written flat, and namespaces.

A namespace is a group of functions (OpenAI's `NamespaceTool`). The model calls one of them as
``NAMESPACE__NAME``; the client reads, and sends back, the two apart: a ``function_call`` has a
``namespace`` beside its ``name``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, WithJsonSchema

from schema.clients.fields import Strict
from schema.clients.offered import OfferedTool, function_tool
from schema.json_values import check_json, quoted
from schema.message import rule
from schema.task import MAX_TOOLS
from schema.tool_choice import FUNCTION_TAG, MAX_FUNCTION_NAME_CHARS, MODE_TAG

_HINTS = ("allowed_callers", "async", "defer_loading", "output_schema")
"""Fields of a function that would let a server call it later, or elsewhere."""
_SEARCH = "tool_search"
"""The one tool with ``parameters`` that is no function: it finds functions to offer."""


def check_tool(value: dict[str, Any]) -> dict[str, Any]:
    """Pydantic validator of a tool.

    That is a function with a name, a namespace of tools, or a tool of another type, which the model
    will not get. One of another type that has ``parameters`` is a function whose type is misspelt.
    """
    check_json(value)
    if value.get("type") != "namespace":
        _check_one(value, '"function" or "namespace"')
        return value
    _check_name(value)
    tools = value.get("tools")
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise rule(f"must be an array of at most {MAX_TOOLS} tools", "tools")
    for number, tool in enumerate(tools):
        here = ("tools", str(number))
        if not isinstance(tool, dict):
            raise rule("must be an object", *here)
        _check_one(tool, '"function" in a namespace', *here)
    return value


def _check_one(tool: Mapping[str, Any], types: str, *path: str) -> None:
    kind = tool.get("type")
    if kind == "function":
        _check_name(tool, *path)
    elif not isinstance(kind, str) or kind == "namespace":
        raise rule(f"must be {types}", *path, "type")
    elif kind != _SEARCH and "parameters" in tool:
        raise rule(
            f"must be {types}, not {quoted(kind)}: a tool of another type has no parameters, and "
            "is not offered to the model",
            *path,
            "type",
        )


def _check_name(tool: Mapping[str, Any], *path: str) -> None:
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_FUNCTION_NAME_CHARS:
        raise rule(f"must be a string of 1 to {MAX_FUNCTION_NAME_CHARS} characters", *path, "name")


_NAME = {"type": "string", "minLength": 1, "maxLength": MAX_FUNCTION_NAME_CHARS}
_FUNCTION: dict[str, Any] = {
    "title": "A function",
    "type": "object",
    "properties": {"type": {"const": "function"}, "name": _NAME},
    "required": ["type", "name"],
}
_OTHER: dict[str, Any] = {
    "title": "A tool that the model does not get",
    "description": "Such as web_search, mcp or custom. Only tool_search may have parameters.",
    "type": "object",
    "properties": {"type": {"type": "string", "not": {"enum": ["function", "namespace"]}}},
    "required": ["type"],
    "anyOf": [
        {"properties": {"type": {"const": _SEARCH}}},
        {"not": {"required": ["parameters"]}},
    ],
}
_NAMESPACE: dict[str, Any] = {
    "title": "A group of functions",
    "type": "object",
    "properties": {
        "type": {"const": "namespace"},
        "name": _NAME,
        "tools": {
            "type": "array",
            "items": {"anyOf": [_FUNCTION, _OTHER]},
            "maxItems": MAX_TOOLS,
        },
    },
    "required": ["type", "name", "tools"],
}
FlatTool = Annotated[
    dict[str, Any],
    AfterValidator(check_tool),
    WithJsonSchema({"anyOf": [_FUNCTION, _NAMESPACE, _OTHER]}),
]
"""A tool of a request."""
FlatTools = Annotated[list[FlatTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


def qualified(name: str, namespace: str | None) -> str:
    """By which name the model calls a function."""
    return f"{namespace}__{name}" if namespace else name


def offered(tools: Iterable[Mapping[str, Any]], path: str) -> Iterator[OfferedTool]:
    """The functions among tools, in order; ``path`` leads to the tools in the request."""
    for number, tool in enumerate(tools):
        here = f"{path}.{number}"
        if tool["type"] == "namespace":
            for inner, function in enumerate(tool["tools"]):
                if function["type"] == "function":
                    yield _offered(function, f"{here}.tools.{inner}", tool["name"])
        elif tool["type"] == "function":
            yield _offered(tool, here)


def _offered(function: Mapping[str, Any], path: str, namespace: str | None = None) -> OfferedTool:
    """As chat completions write it, with the fields in the same order."""
    name = function["name"]
    left_out = ("type", *_HINTS)
    fields = {field: value for field, value in function.items() if field not in left_out}
    value = function_tool(fields | {"name": qualified(name, namespace)})
    return OfferedTool(value, path, name, namespace)


class FunctionChoice(Strict):
    """A function that has to be called."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]


def _choice_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return MODE_TAG
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return FUNCTION_TAG if kind == "function" else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(MODE_TAG)]
    | Annotated[FunctionChoice, Tag(FUNCTION_TAG)],
    Discriminator(
        _choice_tag,
        custom_error_type="choice_type",
        custom_error_message='must be "none", "auto", "required" or {"type": "function", "name": '
        "...}; the model gets no tools but functions, and allowed_tools is not supported",
    ),
]

INNER: dict[str | int, type[BaseModel]] = {FUNCTION_TAG: FunctionChoice}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def task_choice(choice: str | FunctionChoice | None) -> Any:
    """The same in a task, which has no "none": such a task has no tools."""
    if isinstance(choice, FunctionChoice):
        return {"function": choice.name}
    return "required" if choice == "required" else "auto"
