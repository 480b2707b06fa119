"""Whether an answer must call functions, and which: a task's ``tool_choice``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from schema.json_values import quoted
from schema.message import rule
from schema.structured import MAX_SCHEMA_CHARS, StructuredOutput

MAX_FUNCTION_NAME_CHARS = 256
"""Of the function that a task names."""

# Pydantic puts these into the paths of errors; `schema.validation.problems` takes them out again.
MODE_TAG, FUNCTION_TAG = ("<tool choice>", "<function choice>")

Functions = Mapping[str, Any]
"""The functions that a task's tools offer: the JSON Schema of its parameters under each name."""


class NamedFunction(BaseModel):
    """The function that every choice has to call, once."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    function: Annotated[str, Field(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)] = Field(
        description="The name of one of the tools."
    )


def choice_tag(value: Any) -> str | None:
    """The tag of a choice: a word, or an object (pydantic's discriminator)."""
    if isinstance(value, str):
        return MODE_TAG
    return FUNCTION_TAG if isinstance(value, Mapping | BaseModel) else None


ToolChoice = Annotated[
    Annotated[Literal["auto", "required"], Tag(MODE_TAG)]
    | Annotated[NamedFunction, Tag(FUNCTION_TAG)],
    Discriminator(
        choice_tag,
        custom_error_type="choice_type",
        custom_error_message='must be "auto", "required" or {"function": "name"}',
    ),
]

# The rules of `check_calls`, as far as JSON Schema can express them.
_HAS_TOOLS = {"type": "array", "minItems": 1}
SCHEMA_RULES: list[dict[str, Any]] = [
    {
        "$comment": "Forced calls need tools, and cannot be combined with another form.",
        "if": {
            "properties": {"tool_choice": {"not": {"const": "auto"}}},
            "required": ["tool_choice"],
        },
        "then": {
            "properties": {
                "tools": _HAS_TOOLS,
                "structured_output": {"type": "null"},
                "generation_config": {
                    "not": {
                        "type": "object",
                        "properties": {"num_beams": {"type": "integer", "minimum": 2}},
                        "required": ["num_beams"],
                    }
                },
            },
            "required": ["tools"],
        },
    },
]


def functions_of(tools: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The functions of a task's tools; in another form than OpenAI's, those with a name."""
    functions: dict[str, Any] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            functions[name] = function.get("parameters")
    return functions


def forces_calls(tool_choice: ToolChoice) -> bool:
    """Whether an answer has to be calls of tools."""
    return tool_choice != "auto"


def callable_functions(
    tools: list[dict[str, Any]] | None, tool_choice: ToolChoice
) -> dict[str, Any]:
    """Those of a task's functions that its ``tool_choice`` allows."""
    functions = functions_of(tools)
    if isinstance(tool_choice, NamedFunction):
        name = tool_choice.function
        return {name: functions[name]} if name in functions else {}
    return functions


def check_calls(
    tools: list[dict[str, Any]] | None,
    tool_choice: ToolChoice,
    *,
    structured_output: StructuredOutput | None,
    num_beams: int,
) -> None:
    """Refuse a ``tool_choice`` that cannot be followed.

    The arguments are the fields of a task, as they are after validation.

    Raises:
        PydanticCustomError: for a validator of the task, which lets pydantic report it.
    """
    if not forces_calls(tool_choice):
        return
    if structured_output is not None:
        raise rule(
            "cannot be combined with structured_output, because an answer has one form; leave one "
            "of them out",
            "tool_choice",
        )
    if num_beams > 1:
        raise rule("cannot be followed by a beam search; leave it out, or num_beams", "tool_choice")
    if not functions_of(tools):
        raise rule("needs tools that have a name: there is nothing to call", "tool_choice")
    functions = callable_functions(tools, tool_choice)
    if isinstance(tool_choice, NamedFunction) and not functions:
        name = quoted(tool_choice.function)
        raise rule(
            f"must be the name of one of the tools, and {name} is not", "tool_choice", "function"
        )
    length = sum(
        len(name) + len(json.dumps(parameters, separators=(",", ":"), ensure_ascii=False))
        for name, parameters in functions.items()
    )
    if length > MAX_SCHEMA_CHARS:
        raise rule(
            f"have names and parameters of {length} characters as JSON; for a tool_choice other "
            f"than auto at most {MAX_SCHEMA_CHARS} are allowed",
            "tools",
        )
