"""``tools``, ``tool_choice`` and ``output_config`` of the Messages API."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from schema.clients.fields import Hint, Strict
from schema.clients.offered import OfferedTool, function_tool
from schema.json_values import quoted
from schema.message import MAX_TEXT_CHARS, JsonObject, rule
from schema.structured import AnswerSchema
from schema.task import MAX_EFFORT_CHARS
from schema.tool_choice import FUNCTION_TAG, MAX_FUNCTION_NAME_CHARS

AUTO_TAG, ANY_TAG, NONE_TAG = ("<auto>", "<any>", "<none>")
TOOL_TAG, OTHER_TAG = ("<tool>", "<other tool>")
_Name = Annotated[str, Field(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]


class Tool(Strict):
    """A function that the model may call."""

    name: _Name
    description: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = None
    input_schema: JsonObject = Field(description="A JSON Schema of what it is called with.")
    type: Literal["custom"] | None = None
    strict: bool | None = Field(default=None, description="As in chat completions.")
    cache_control: Annotated[Any, Hint("The server decides itself what it keeps.")] = None
    defer_loading: Annotated[Any, Hint("The model gets all tools.")] = None
    eager_input_streaming: Annotated[Any, Hint("Arguments are always streamed at once.")] = None
    allowed_callers: Annotated[Any, Hint("The model calls.")] = None
    input_examples: Annotated[Any, Hint("Templates do not read them.")] = None

    def offered(self, path: str) -> OfferedTool:
        """The tool as the model gets it; ``path`` leads to it in the request."""
        fields = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
            "strict": self.strict,
        }
        return OfferedTool(function_tool(fields), path, self.name)


_IS_TOOL = (None, "custom")


class OtherTool(BaseModel):
    """A tool that Anthropic's servers run, or whose form only its models know.

    The model does not get it. One with an ``input_schema`` is a function whose type is misspelt.
    """

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        frozen=True,
        json_schema_extra={"not": {"required": ["input_schema"]}},
    )

    type: str = Field(json_schema_extra={"not": {"const": "custom"}})

    @model_validator(mode="before")
    @classmethod
    def _refuse_function(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "input_schema" in value:
            kind = value.get("type")
            shown = quoted(kind) if isinstance(kind, str) else "something else"
            raise rule(
                f'must be "custom", not {shown}: a tool of another type has no input_schema, and '
                "is not offered to the model",
                "type",
            )
        return value


def _tool_tag(value: Any) -> str:
    if isinstance(value, OtherTool):
        return OTHER_TAG
    return (
        OTHER_TAG if isinstance(value, Mapping) and value.get("type") not in _IS_TOOL else TOOL_TAG
    )


AnyTool = Annotated[
    Annotated[Tool, Tag(TOOL_TAG)] | Annotated[OtherTool, Tag(OTHER_TAG)], Discriminator(_tool_tag)
]


class _Calls(Strict):
    disable_parallel_tool_use: bool | None = Field(
        default=None, description="true: the answer makes one call at most."
    )


class AutoChoice(_Calls):
    """The model may call tools."""

    type: Literal["auto"]


class AnyChoice(_Calls):
    """The answer is calls of tools."""

    type: Literal["any"]


class FunctionChoice(_Calls):
    """The answer is one call of a tool."""

    type: Literal["tool"]
    name: _Name


class NoChoice(Strict):
    """The model does not get the tools."""

    type: Literal["none"]


_TAGS = {"auto": AUTO_TAG, "any": ANY_TAG, "tool": FUNCTION_TAG, "none": NONE_TAG}


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return _TAGS.get(kind) if isinstance(kind, str) else None


ToolChoice = Annotated[
    Annotated[AutoChoice, Tag(AUTO_TAG)]
    | Annotated[AnyChoice, Tag(ANY_TAG)]
    | Annotated[FunctionChoice, Tag(FUNCTION_TAG)]
    | Annotated[NoChoice, Tag(NONE_TAG)],
    Discriminator(
        _tag,
        custom_error_type="choice_type",
        custom_error_message='must be {"type": "auto"}, {"type": "any"}, {"type": "none"} or '
        '{"type": "tool", "name": ...}',
    ),
]


class JsonFormat(Strict):
    """JSON that is valid under a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: AnswerSchema = Field(alias="schema", description="As in a task.")


class OutputConfig(Strict):
    """The form of the answer."""

    format: JsonFormat | None = None
    effort: Annotated[str, Field(max_length=MAX_EFFORT_CHARS)] | None = Field(
        default=None, description="As reasoning_effort of chat completions."
    )


INNER: dict[str | int, type[BaseModel]] = {
    TOOL_TAG: Tool,
    OTHER_TAG: OtherTool,
    AUTO_TAG: AutoChoice,
    ANY_TAG: AnyChoice,
    FUNCTION_TAG: FunctionChoice,
    NONE_TAG: NoChoice,
    "output_config": OutputConfig,
    "format": JsonFormat,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def task_choice(choice: Any) -> Any:
    """The same in a task, which has no "none": such a task has no tools."""
    if isinstance(choice, FunctionChoice):
        return {"function": choice.name}
    return "required" if isinstance(choice, AnyChoice) else "auto"


def one_call(choice: Any) -> bool:
    """Whether the answer may make one call at most."""
    return isinstance(choice, _Calls) and choice.disable_parallel_tool_use is True
