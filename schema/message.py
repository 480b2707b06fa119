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

from schema.json_values import check_json, quoted

MAX_BLOCKS = 1024
MAX_BLOCKS_OF_TASK = 4096
"""In all messages together; JSON Schema can only limit each message."""
MAX_IMAGES = 64
"""Images of a task; JSON Schema can only limit each message."""
MAX_TOOL_CALLS = 128
MAX_TEXT_CHARS = 8_000_000
"""Of one text: more than two million tokens. Long before that a model's context is full."""
MAX_TOOL_CALL_ID_CHARS = 256
MAX_NAME_CHARS = 256
MAX_URL_CHARS = 8192
"""Of an image's address, where a request may have one; `data:` URLs are not addresses."""

# Pydantic puts these into the paths of errors; `problems` takes them out again. No field has such a
# name.
TEXT_TAG, BLOCKS_TAG, TEXT_BLOCK_TAG, IMAGE_BLOCK_TAG, REFUSAL_TAG = (
    "<text>",
    "<blocks>",
    "<text block>",
    "<image block>",
    "<refusal>",
)

_BASE64 = re.compile(r"([A-Za-z0-9+/]+)={0,2}")
_PADDING = {0: (0,), 1: (), 2: (0, 2), 3: (0, 1)}
"""How many = may follow so many characters beyond whole groups of four."""
_WHITE = re.compile(r"[\t\n\f\r ]")
_SPACE = str.maketrans("", "", "\t\n\f\r ")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")


def _base64_pattern() -> str:
    """The same for JSON Schema, with white space anywhere and at least one byte.

    Python's `$` also matches before a last newline, hence the look-ahead; elsewhere it changes
    nothing.
    """
    space = r"[\t\n\f\r ]*"
    char, pad = f"[A-Za-z0-9+/]{space}", f"={space}"
    two, three, four = char * 2, char * 3, char * 4
    return f"^{space}(?:{four})*(?:{four}|{three}(?:{pad})?|{two}(?:{pad}{pad})?)$(?!\\n)"


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
"""An object that a chat template reads as it is; see `json_values` for its limits."""


def rule(problem: str, *path: str) -> PydanticCustomError:
    """The error of a rule that pydantic does not know; `path` leads from here to the field."""
    return PydanticCustomError("task_rule", "{problem}", {"problem": problem, "path": path})


def _standard_base64(text: str) -> str:
    """The same in the strict form: without white space, with padding.

    What is accepted is what browsers accept (https://infra.spec.whatwg.org/#forgiving-base64): the
    command `base64` breaks lines, and some libraries leave the padding out. Only the alphabet is
    checked; the image preprocessor decodes the image.
    """
    if text.startswith("data:"):
        raise rule('must be base64 alone; leave out the "data:...;base64," before it')
    if text.startswith(("http:", "https:")):
        raise rule("must be the image itself in base64; addresses are not fetched")
    plain = text.translate(_SPACE) if _WHITE.search(text) else text
    match = _BASE64.fullmatch(plain)
    if match is None or len(plain) - match.end(1) not in _PADDING[match.end(1) % 4]:
        raise rule(f"must be base64 (A-Z a-z 0-9 + /, padded with =); {_why_not_base64(plain)}")
    return plain + "=" * (-len(plain) % 4)


def _why_not_base64(plain: str) -> str:
    digits = plain.rstrip("=")
    foreign = _FOREIGN.search(digits)
    if foreign is not None:
        return f"it has {quoted(foreign[0])} at character {foreign.start()}"
    if len(digits) % 4 == 1:
        return f"its end is missing: {len(digits)} characters are not a whole number of bytes"
    return "its padding is wrong" if digits else "it is empty"


Base64 = Annotated[
    str,
    Field(
        min_length=1,
        description="An image file, such as PNG or JPEG, in standard base64. White space in it is "
        "left out, and padding may be absent.",
        json_schema_extra={"pattern": _base64_pattern(), "contentEncoding": "base64"},
    ),
    AfterValidator(_standard_base64),
]


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
    text: str = Field(max_length=MAX_TEXT_CHARS)


class ImageBlock(_Part):
    """An image in the place where it stands in the message."""

    model_config = ConfigDict(json_schema_extra=_require_type)

    type: Literal["image"] = "image"
    base64: Base64

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


def _only_for(role: str, field: str, empty: Any) -> dict[str, Any]:
    return {
        "if": {"not": {"properties": {"role": {"const": role}}}},
        "then": {"properties": {field: {"enum": [None, empty]}}},
    }


ROLE_RULES: list[dict[str, Any]] = [
    _only_for("assistant", "tool_calls", []),
    _only_for("assistant", "reasoning_content", ""),
    _only_for("tool", "tool_call_id", ""),
    {
        "$comment": "Only an assistant's message may have no content.",
        "if": {"properties": {"role": {"const": "assistant"}}},
        "else": {"properties": {"content": {"not": {"type": "null"}}}, "required": ["content"]},
    },
]
"""What belongs to which role, in JSON Schema; `Message` checks the same."""

_SCHEMA_RULES: dict[str, Any] = {
    "allOf": ROLE_RULES,
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
        description="Text, or blocks of text and images. Only an assistant's message may have "
        "none.",
    )
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = Field(
        default=None,
        description="Who speaks, or of a tool's message which function answers; for chat templates "
        "that read it.",
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
        if self.reasoning_content and self.role != "assistant":
            raise rule(f"is for assistant messages only, not for {self.role}", "reasoning_content")
        if self.tool_calls and self.role != "assistant":
            raise rule(f"is for assistant messages only, not for {self.role}", "tool_calls")
        if self.tool_call_id and self.role != "tool":
            raise rule(f"is for tool messages only, not for {self.role}", "tool_call_id")
        if self.content is None and self.role != "assistant":
            raise rule("is required; only an assistant message may have none", "content")
        return self
