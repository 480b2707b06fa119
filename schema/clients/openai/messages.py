"""The messages of a chat completion, and what they are in a task."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from schema.clients.fields import Hint, Only, Strict, not_yet
from schema.clients.images import ADDRESS_PATTERN, check_address, image_block
from schema.message import (
    BLOCKS_TAG,
    CONTENT_KIND,
    IMAGE_BLOCK_TAG,
    MAX_BLOCKS,
    MAX_IMAGES,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    MAX_TOOL_CALL_ID_CHARS,
    MAX_TOOL_CALLS,
    REFUSAL_TAG,
    ROLE_RULES,
    TEXT_BLOCK_TAG,
    TEXT_TAG,
    ImageBlock,
    JsonObject,
    rule,
)

_CONTINUE = "is not supported; put continue_final_message: true into chat_template_kwargs"


def check_function(value: dict[str, Any]) -> dict[str, Any]:
    """Pydantic validator of a tool or a call of one: a function with a name, the rest as it is."""
    if value.get("type") != "function":
        raise rule('must be "function"; there are no other tools here', "type")
    function = value.get("function")
    if not isinstance(function, dict):
        raise rule("must be an object", "function")
    if not isinstance(function.get("name"), str):
        raise rule("must be a string", "function", "name")
    return value


Function = Annotated[
    JsonObject,
    Field(
        json_schema_extra={
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}},
                },
            },
        }
    ),
    AfterValidator(check_function),
]
"""A tool or a call of one; the chat template reads it as it is, so that its order is kept."""


_MARK = "A mark for other servers' caches."


class _Part(Strict):
    cache_control: Annotated[Any, Hint(_MARK)] = None
    prompt_cache_breakpoint: Annotated[Any, Hint(_MARK)] = None


class TextPart(_Part):
    """A piece of a message's text. Fields that clients have added have no effect."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class RefusalPart(_Part):
    """A piece of an earlier answer's text, in which OpenAI's model refuses something."""

    type: Literal["refusal"]
    refusal: Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class ImageUrl(Strict):
    """Where an image is: in the URL itself, or at an address that the operator has allowed."""

    url: Annotated[str, AfterValidator(check_address)] = Field(
        description='The image as a data URL: "data:image/png;base64,...". Addresses (https:, '
        "http:, file:) are refused unless the server's configuration opens them.",
        json_schema_extra={"pattern": ADDRESS_PATTERN},
    )
    detail: Annotated[Any, Hint("Images are prepared as their model does it.")] = None
    format: Annotated[Any, Hint("The bytes say what kind of image it is.")] = None


class ImagePart(_Part):
    """An image in the place where it stands in the message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if kind == "text":
        return TEXT_BLOCK_TAG
    if kind == "refusal":
        return REFUSAL_TAG
    return IMAGE_BLOCK_TAG if kind == "image_url" else None


_AnyPart = Annotated[
    Annotated[TextPart, Tag(TEXT_BLOCK_TAG)]
    | Annotated[ImagePart, Tag(IMAGE_BLOCK_TAG)]
    | Annotated[RefusalPart, Tag(REFUSAL_TAG)],
    Discriminator(
        _part_tag,
        custom_error_type="block_type",
        custom_error_message='must be {"type": "text", "text": ...} or '
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}',
    ),
]
_Parts = Annotated[
    list[_AnyPart],
    Field(
        fail_fast=True,
        max_length=MAX_BLOCKS,
        json_schema_extra={
            "contains": {"properties": {"type": {"const": "image_url"}}, "required": ["type"]},
            "minContains": 0,
            "maxContains": MAX_IMAGES,
        },
    ),
]
Content = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT_TAG)]
    | Annotated[_Parts, Tag(BLOCKS_TAG)],
    CONTENT_KIND,
]


def _publish_rules(schema: dict[str, Any]) -> None:
    """Add the rules of the roles; an assistant's message may have any further fields."""
    names = list(schema["properties"])
    del schema["additionalProperties"]
    known = {
        "if": {"not": {"properties": {"role": {"const": "assistant"}}}},
        "then": {"propertyNames": {"enum": names}},
    }
    schema["allOf"] = [*ROLE_RULES, known]


class ChatMessage(Strict):
    """One message of the conversation. What belongs to which role is checked with the task.

    An assistant's message may have any further fields, which have no effect: it is an earlier
    answer, perhaps of another server, and clients send it back with all that they have added.
    """

    model_config = ConfigDict(json_schema_extra=_publish_rules)

    role: Literal["developer", "system", "user", "assistant", "tool"] = Field(
        description="developer is OpenAI's newer name for system, and the same here."
    )
    content: Content | None = None
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = Field(
        default=None, description="For chat templates that read it."
    )
    tool_call_id: Annotated[str, Field(max_length=MAX_TOOL_CALL_ID_CHARS)] | None = None
    tool_calls: (
        Annotated[list[Function], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None
    ) = None
    reasoning_content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = Field(
        default=None,
        description="Of an earlier answer of the model; for chat templates that read it.",
    )
    refusal: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = Field(
        default=None,
        description="The text of an earlier answer of OpenAI's that has no content.",
    )
    audio: Annotated[Any, not_yet()] = None
    function_call: Annotated[Any, Only("is not supported; use tool_calls")] = None
    prefix: Annotated[Any, Only(_CONTINUE, (False,))] = None
    partial: Annotated[Any, Only(_CONTINUE, (False,))] = None
    parsed: Annotated[Any, Hint("What OpenAI's client has read in the content.")] = None
    annotations: Annotated[Any, Hint("The model gets the content.")] = None
    cache_control: Annotated[Any, Hint(_MARK)] = None
    id: Annotated[Any, Hint("The model gets the content.")] = None

    @model_validator(mode="before")
    @classmethod
    def _without_additions(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("role") == "assistant":
            return {name: value for name, value in fields.items() if name in cls.model_fields}
        return fields

    def task_fields(self) -> dict[str, Any]:
        """This message in a task; its parts keep their places."""
        content: Any = self.content
        if isinstance(content, list):
            content = [_block(part) for part in content]
        fields = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content or self.refusal or content,
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": [_without_notes(call) for call in self.tool_calls or ()] or None,
            "reasoning_content": self.reasoning_content or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _without_notes(call: dict[str, Any]) -> dict[str, Any]:
    """A call without the fields that OpenAI's client adds: some templates print all fields.

    The same answer, streamed or not, must give the same prompt when it comes back.
    """
    plain = {name: value for name, value in call.items() if name != "index"}
    function = plain["function"].items()
    plain["function"] = {name: value for name, value in function if name != "parsed_arguments"}
    return plain


def _block(part: TextPart | RefusalPart | ImagePart) -> dict[str, str] | ImageBlock:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    return image_block(part.image_url.url)
