"""The messages of a task: a conversation, of text and images."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schema.json_values import check_json

MAX_BLOCKS = 1024
MAX_BLOCKS_OF_TASK = 4096
"""In all messages together; JSON Schema can only limit each message."""
MAX_IMAGES = 64
"""Images of a task; JSON Schema can only limit each message."""
MAX_TOOL_CALLS = 128
MAX_TEXT_CHARS = 8_000_000
"""Of one text: more than two million tokens. Long before that a model's context is full."""
MAX_TOOL_CALL_ID_CHARS = 256
MAX_URL_CHARS = 8192
"""Of an image's address, where a request may have one; `data:` URLs are not addresses."""

# Pydantic puts these into the paths of errors; `problems` takes them out again. No field has such a
# name.
TEXT_TAG, BLOCKS_TAG, TEXT_BLOCK_TAG, IMAGE_BLOCK_TAG = TAGS = (
    "<text>",
    "<blocks>",
    "<text block>",
    "<image block>",
)

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# The same for JSON Schema, where only a pattern can count characters. Python's `$` also matches
# before a last newline, hence the look-ahead; elsewhere it changes nothing.
_BASE64_PATTERN = (
    r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)$(?!\n)"
)

JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
"""An object that a chat template reads as it is; see `json_values` for its limits."""


def rule(problem: str, *path: str) -> PydanticCustomError:
    """The error of a rule that pydantic does not know; `path` leads from here to the field."""
    return PydanticCustomError("task_rule", "{problem}", {"problem": problem, "path": path})


def _check_base64(text: str) -> str:
    # Only the alphabet is checked; the image preprocessor decodes the image.
    if text.startswith("data:"):
        raise rule('must be base64 alone; leave out the "data:...;base64," before it')
    if text.startswith(("http:", "https:")):
        raise rule("must be the image itself in base64; addresses are not fetched")
    if not _BASE64.fullmatch(text):
        raise rule("must be base64: A-Z a-z 0-9 + / and = at the end, without line breaks")
    if len(text) % 4:
        raise rule("must be base64 with padding: its length is not a multiple of 4")
    return text


def _require_type(schema: dict[str, Any]) -> None:
    # `type` has a default for callers in Python. In JSON it says which block this is.
    schema["required"] = ["type", *schema["required"]]
    del schema["properties"]["type"]["default"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextBlock(_Part):
    """A piece of a message's text."""

    model_config = ConfigDict(json_schema_extra=_require_type)

    type: Literal["text"] = "text"
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)


class ImageBlock(_Part):
    """An image in the place where it stands in the message."""

    model_config = ConfigDict(json_schema_extra=_require_type)

    type: Literal["image"] = "image"
    base64: Annotated[str, Field(min_length=1), AfterValidator(_check_base64)] = Field(
        description="An image file, such as PNG or JPEG, in standard base64 with padding.",
        json_schema_extra={"pattern": _BASE64_PATTERN, "contentEncoding": "base64"},
    )

    @classmethod
    def at(cls, url: str) -> Self:
        """An image that is still to be fetched from ``url``, which is kept in place of the base64.

        Made without validation: no task of a client can have such a block. See `is_address`.
        """
        return cls.model_construct(base64=url)


def is_address(source: str) -> bool:
    """Whether an image block holds an address (`ImageBlock.at`): base64 has no colon."""
    return ":" in source


def _block_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if kind == "text":
        return TEXT_BLOCK_TAG
    return IMAGE_BLOCK_TAG if kind == "image" else None


def _content_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return BLOCKS_TAG if isinstance(value, list) else None


BLOCK_KIND = Discriminator(
    _block_tag,
    custom_error_type="block_type",
    custom_error_message='must be {"type": "text", "text": ...} or '
    '{"type": "image", "base64": ...}',
)
CONTENT_KIND = Discriminator(
    _content_tag,
    custom_error_type="content_type",
    custom_error_message="must be a string or an array of text and image blocks",
)

ContentBlock = Annotated[
    Annotated[TextBlock, Tag(TEXT_BLOCK_TAG)] | Annotated[ImageBlock, Tag(IMAGE_BLOCK_TAG)],
    BLOCK_KIND,
]

_Blocks = Annotated[
    list[ContentBlock],
    Field(
        fail_fast=True,
        min_length=1,
        max_length=MAX_BLOCKS,
        json_schema_extra={
            "contains": {"properties": {"type": {"const": "image"}}, "required": ["type"]},
            "minContains": 0,
            "maxContains": MAX_IMAGES,
        },
    ),
]

Content = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT_TAG)]
    | Annotated[_Blocks, Tag(BLOCKS_TAG)],
    CONTENT_KIND,
]


def _only_for(role: str, field: str) -> dict[str, Any]:
    return {
        "if": {"not": {"properties": {"role": {"const": role}}}},
        "then": {"properties": {field: {"type": "null"}}},
    }


_SCHEMA_RULES: dict[str, Any] = {
    "allOf": [
        _only_for("assistant", "tool_calls"),
        _only_for("assistant", "reasoning_content"),
        _only_for("tool", "tool_call_id"),
        {
            "$comment": "Only an assistant's message that calls tools may have no content.",
            "if": {
                "properties": {
                    "role": {"const": "assistant"},
                    "tool_calls": {"type": "array", "minItems": 1},
                },
                "required": ["role", "tool_calls"],
            },
            "else": {"properties": {"content": {"not": {"type": "null"}}}, "required": ["content"]},
        },
    ],
    "examples": [{"role": "user", "content": "I want to create a chat bot. Any suggestions?"}],
}


class Message(_Part):
    """One message of the conversation.

    Images may stand in a message of any role: a tool may answer with one, and the model's chat
    template decides whether the model can see it there.
    """

    model_config = ConfigDict(json_schema_extra=_SCHEMA_RULES)

    role: Literal["system", "user", "assistant", "tool"]
    content: Content | None = Field(
        default=None,
        description="Text, or blocks of text and images. Only an assistant's message that calls "
        "tools may have none.",
    )
    tool_call_id: Annotated[str, Field(max_length=MAX_TOOL_CALL_ID_CHARS)] | None = Field(
        default=None, description="Which tool call a tool's message answers."
    )
    tool_calls: (
        Annotated[list[JsonObject], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None
    ) = Field(
        default=None,
        description="The tools that an assistant's message calls, in the form that the model's "
        'chat template reads: mostly {"id", "type": "function", "function": {"name", '
        '"arguments"}}. Arguments are an object or a string of JSON; the template gets what it '
        "takes.",
    )

    reasoning_content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = Field(
        default=None,
        description="The reasoning of an assistant's message, for chat templates that read it.",
    )

    @property
    def text(self) -> str:
        """The text of the content; image blocks have none."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(b.text for b in self.content if not isinstance(b, ImageBlock))

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.reasoning_content is not None and self.role != "assistant":
            raise rule(f"is for assistant messages only, not for {self.role}", "reasoning_content")
        if self.tool_calls is not None and self.role != "assistant":
            raise rule(f"is for assistant messages only, not for {self.role}", "tool_calls")
        if self.tool_call_id is not None and self.role != "tool":
            raise rule(f"is for tool messages only, not for {self.role}", "tool_call_id")
        if self.content is None and not self.tool_calls:
            raise rule(
                "is required; only an assistant message with tool_calls may have none", "content"
            )
        return self
