"""``tool_choice`` of chat completions: whether tools have to be called, and which."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from schema.clients.fields import Strict
from schema.tool_choice import FUNCTION_TAG, MAX_FUNCTION_NAME_CHARS, MODE_TAG, choice_tag


class FunctionName(Strict):
    """Which function."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]


class FunctionChoice(Strict):
    """A function that has to be called."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(MODE_TAG)]
    | Annotated[FunctionChoice, Tag(FUNCTION_TAG)],
    Discriminator(
        choice_tag,
        custom_error_type="choice_type",
        custom_error_message='must be "none", "auto", "required" or '
        '{"type": "function", "function": {"name": ...}}',
    ),
]

INNER: dict[str | int, type[BaseModel]] = {
    FUNCTION_TAG: FunctionChoice,
    "function": FunctionName,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def task_choice(choice: str | FunctionChoice | None) -> Any:
    """The same in a task, which has no "none": such a task has no tools."""
    if isinstance(choice, FunctionChoice):
        return {"function": choice.function.name}
    return "required" if choice == "required" else "auto"
