"""The blocks of a message of the Messages API, and of its system prompt.

Answers come back as messages of the next request, so all that an answer may hold is taken here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag

from schema.clients.fields import Hint, Only, Strict
from schema.clients.images import ADDRESS_PATTERN, check_address
from schema.message import (
    BLOCKS_TAG,
    CONTENT_KIND,
    IMAGE_BLOCK_TAG,
    MAX_BLOCKS,
    MAX_TEXT_CHARS,
    MAX_TOOL_CALL_ID_CHARS,
    TEXT_BLOCK_TAG,
    TEXT_TAG,
    Base64,
    JsonObject,
)
from schema.tool_choice import MAX_FUNCTION_NAME_CHARS

TOOL_USE_TAG, TOOL_RESULT_TAG, THINKING_TAG, REDACTED_TAG, BASE64_TAG, URL_TAG = (
    "<tool use>",
    "<tool result>",
    "<thinking>",
    "<redacted thinking>",
    "<base64>",
    "<url>",
)
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
CallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS)]

CACHE = "The server decides itself which beginnings of prompts it keeps."
_DIRECT = "There is one kind of call."


def _tagger(tags: Mapping[str, str]) -> Any:
    def tag(value: Any) -> str | None:
        kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        return tags.get(kind) if isinstance(kind, str) else None

    return tag


class TextBlock(Strict):
    """A piece of a text. An empty one says nothing and is left out."""

    type: Literal["text"]
    text: Text
    cache_control: Annotated[Any, Hint(CACHE)] = None
    citations: Annotated[Any, Hint("Models read the text.")] = None
    parsed_output: Annotated[Any, Hint("What Anthropic's client has read in the text.")] = None


class Base64Source(Strict):
    """An image itself."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"] = Field(
        description="Not read: the image's own first bytes say what it is."
    )
    data: Base64 = Field(description="An image file in standard base64 with padding.")


class UrlSource(Strict):
    """An image at an address that the operator has allowed."""

    type: Literal["url"]
    url: Annotated[str, AfterValidator(check_address)] = Field(
        json_schema_extra={"pattern": ADDRESS_PATTERN}
    )


class ImageBlock(Strict):
    """An image in the place where it stands in the message."""

    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag(BASE64_TAG)] | Annotated[UrlSource, Tag(URL_TAG)],
        Discriminator(
            _tagger({"base64": BASE64_TAG, "url": URL_TAG}),
            custom_error_type="block_type",
            custom_error_message='must be "base64" or "url"; no files are kept',
        ),
    ]
    cache_control: Annotated[Any, Hint(CACHE)] = None
    transformations: Annotated[Any, Hint("Images are prepared as their model does it.")] = None


class ToolUseBlock(Strict):
    """A call that the model made in an earlier answer."""

    type: Literal["tool_use"]
    id: CallId
    name: Annotated[str, Field(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]
    input: JsonObject
    cache_control: Annotated[Any, Hint(CACHE)] = None
    caller: Annotated[Any, Hint(_DIRECT)] = None
    toolset_name: Annotated[Any, Only("is not supported: there are no toolsets")] = None


class ThinkingBlock(Strict):
    """Reasoning of an earlier answer; for chat templates that read it."""

    type: Literal["thinking"]
    thinking: Text
    signature: Annotated[Any, Hint("Thinking is not signed here.")] = None


class RedactedThinkingBlock(Strict):
    """Reasoning that only the server that wrote it can read; the model does not get it."""

    type: Literal["redacted_thinking"]
    data: Annotated[Any, Hint("The server cannot read it.")] = None


_SHOWN = {"text": TEXT_BLOCK_TAG, "image": IMAGE_BLOCK_TAG}
ShownBlock = Annotated[
    Annotated[TextBlock, Tag(TEXT_BLOCK_TAG)] | Annotated[ImageBlock, Tag(IMAGE_BLOCK_TAG)],
    Discriminator(
        _tagger(_SHOWN),
        custom_error_type="block_type",
        custom_error_message='must be "text" or "image"; documents and search results are not '
        "supported",
    ),
]


class ToolResultBlock(Strict):
    """What a tool that the model called has returned."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: (
        Annotated[
            Annotated[Text, Tag(TEXT_TAG)]
            | Annotated[
                Annotated[list[ShownBlock], Field(fail_fast=True, max_length=MAX_BLOCKS)],
                Tag(BLOCKS_TAG),
            ],
            CONTENT_KIND,
        ]
        | None
    ) = None
    is_error: Annotated[Any, Hint("The content says it.")] = None
    cache_control: Annotated[Any, Hint(CACHE)] = None
    toolset_name: Annotated[Any, Only("is not supported: there are no toolsets")] = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag(TEXT_BLOCK_TAG)]
    | Annotated[ImageBlock, Tag(IMAGE_BLOCK_TAG)]
    | Annotated[ToolResultBlock, Tag(TOOL_RESULT_TAG)],
    Discriminator(
        _tagger(_SHOWN | {"tool_result": TOOL_RESULT_TAG}),
        custom_error_type="block_type",
        custom_error_message='must be "text", "image" or "tool_result" in a user\'s message; '
        "documents and search results are not supported",
    ),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag(TEXT_BLOCK_TAG)]
    | Annotated[ToolUseBlock, Tag(TOOL_USE_TAG)]
    | Annotated[ThinkingBlock, Tag(THINKING_TAG)]
    | Annotated[RedactedThinkingBlock, Tag(REDACTED_TAG)],
    Discriminator(
        _tagger(
            {
                "text": TEXT_BLOCK_TAG,
                "tool_use": TOOL_USE_TAG,
                "thinking": THINKING_TAG,
                "redacted_thinking": REDACTED_TAG,
            }
        ),
        custom_error_type="block_type",
        custom_error_message='must be "text", "tool_use", "thinking" or "redacted_thinking" in an '
        "assistant's message; server tools are not supported",
    ),
]
UserContent = Annotated[
    Annotated[Text, Tag(TEXT_TAG)]
    | Annotated[
        Annotated[list[UserBlock], Field(fail_fast=True, max_length=MAX_BLOCKS)], Tag(BLOCKS_TAG)
    ],
    CONTENT_KIND,
]
AssistantContent = Annotated[
    Annotated[Text, Tag(TEXT_TAG)]
    | Annotated[
        Annotated[list[AssistantBlock], Field(fail_fast=True, max_length=MAX_BLOCKS)],
        Tag(BLOCKS_TAG),
    ],
    CONTENT_KIND,
]
System = Annotated[
    Annotated[Text, Tag(TEXT_TAG)]
    | Annotated[
        Annotated[list[TextBlock], Field(fail_fast=True, max_length=MAX_BLOCKS)], Tag(BLOCKS_TAG)
    ],
    CONTENT_KIND,
]

INNER: dict[str | int, type[BaseModel]] = {
    TEXT_BLOCK_TAG: TextBlock,
    IMAGE_BLOCK_TAG: ImageBlock,
    TOOL_USE_TAG: ToolUseBlock,
    TOOL_RESULT_TAG: ToolResultBlock,
    THINKING_TAG: ThinkingBlock,
    REDACTED_TAG: RedactedThinkingBlock,
    BASE64_TAG: Base64Source,
    URL_TAG: UrlSource,
    BLOCKS_TAG: TextBlock,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""
