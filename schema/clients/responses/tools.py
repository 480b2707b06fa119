"""``tools`` and ``tool_choice`` of the Responses API: functions, written flat."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, WithJsonSchema

from schema.clients.fields import Strict
from schema.json_values import check_json, quoted
from schema.message import rule
from schema.tool_choice import FUNCTION_TAG, MAX_FUNCTION_NAME_CHARS, MODE_TAG

_HINTS = ("allowed_callers", "async", "defer_loading", "output_schema")
"""Fields of a function that would let a server call it later, or elsewhere."""


def check_tool(value: dict[str, Any]) -> dict[str, Any]:
    """Pydantic validator of a tool: a function with a name, the rest as it is."""
    check_json(value)
    kind = value.get("type")
    if kind != "function":
        shown = quoted(kind) if isinstance(kind, str) else "something else"
        raise rule(f'must be "function", not {shown}: there are no built-in tools here', "type")
    name = value.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_FUNCTION_NAME_CHARS:
        raise rule(f"must be a string of 1 to {MAX_FUNCTION_NAME_CHARS} characters", "name")
    return value


FlatTool = Annotated[
    dict[str, Any],
    AfterValidator(check_tool),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "name": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_FUNCTION_NAME_CHARS,
                },
            },
            "required": ["type", "name"],
        }
    ),
]
"""A function that the model may call."""


def task_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a task: as chat completions write it, with the fields in the same order."""
    left_out = ("type", *_HINTS)
    function = {name: value for name, value in tool.items() if name not in left_out}
    return {
        "type": "function",
        "function": {name: value for name, value in function.items() if value is not None},
    }


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
        "...}; there are no built-in tools, and allowed_tools is not supported",
    ),
]

INNER: dict[str | int, type[BaseModel]] = {FUNCTION_TAG: FunctionChoice}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def task_choice(choice: str | FunctionChoice | None) -> Any:
    """The same in a task, which has no "none": such a task has no tools."""
    if isinstance(choice, FunctionChoice):
        return {"function": choice.name}
    return "required" if choice == "required" else "auto"
