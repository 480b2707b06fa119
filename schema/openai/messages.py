"""The messages of a chat completion, and what they are in a task."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo

from schema.message import (
    BLOCKS_TAG,
    CONTENT_KIND,
    IMAGE_BLOCK_TAG,
    MAX_BLOCKS,
    MAX_TEXT_CHARS,
    MAX_TOOL_CALL_ID_CHARS,
    MAX_TOOL_CALLS,
    MAX_URL_CHARS,
    TEXT_BLOCK_TAG,
    TEXT_TAG,
    ImageBlock,
    JsonObject,
    rule,
)
from schema.openai.fields import Hint, Only, Strict, not_yet

_DATA_URL = re.compile(r"data:image/[A-Za-z0-9.+-]+;base64,", re.IGNORECASE)


def _check_address(url: str, info: ValidationInfo) -> str:
    # What follows the comma is checked when the task is made.
    if _DATA_URL.match(url):
        return url
    scheme = url.partition(":")[0].lower()
    if scheme in ("http", "https", "file"):
        if scheme not in (info.context or ()):  # see `OpenAIRequest.parse`
            raise rule(
                f"{scheme}: addresses are not opened by configuration; send the image itself: "
                '"data:image/png;base64,..."'
            )
        if len(url) > MAX_URL_CHARS:
            raise rule(f"must have at most {MAX_URL_CHARS} characters, and has {len(url)}")
        return url  # where it leads is checked when it is fetched
    raise rule('must be an image as a data URL: "data:image/png;base64,..."')


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


Function = Annotated[JsonObject, AfterValidator(check_function)]
"""A tool or a call of one; the chat template reads it as it is, so that its order is kept."""


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]


class ImageUrl(Strict):
    """Where an image is: in the URL itself, or at an address that the operator has allowed."""

    url: Annotated[str, AfterValidator(_check_address)] = Field(
        description='The image as a data URL: "data:image/png;base64,...". Addresses (https:, '
        "http:, file:) are refused unless the server's configuration opens them.",
        json_schema_extra={
            "pattern": "^([Dd][Aa][Tt][Aa]|[Hh][Tt][Tt][Pp][Ss]?|[Ff][Ii][Ll][Ee]):"
        },
    )
    detail: Annotated[Any, Hint("Images are prepared as their model does it.")] = None


class ImagePart(Strict):
    """An image in the place where it stands in the message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if kind == "text":
        return TEXT_BLOCK_TAG
    return IMAGE_BLOCK_TAG if kind == "image_url" else None


_Part = Annotated[
    Annotated[TextPart, Tag(TEXT_BLOCK_TAG)] | Annotated[ImagePart, Tag(IMAGE_BLOCK_TAG)],
    Discriminator(
        _part_tag,
        custom_error_type="block_type",
        custom_error_message='must be {"type": "text", "text": ...} or '
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}',
    ),
]
_Parts = Annotated[list[_Part], Field(fail_fast=True, min_length=1, max_length=MAX_BLOCKS)]
Content = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT_TAG)]
    | Annotated[_Parts, Tag(BLOCKS_TAG)],
    CONTENT_KIND,
]


class ChatMessage(Strict):
    """One message of the conversation. What belongs to which role is checked with the task."""

    role: Literal["developer", "system", "user", "assistant", "tool"] = Field(
        description="developer is OpenAI's newer name for system, and the same here."
    )
    content: Content | None = None
    tool_call_id: Annotated[str, Field(max_length=MAX_TOOL_CALL_ID_CHARS)] | None = None
    tool_calls: (
        Annotated[list[Function], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None
    ) = None
    reasoning_content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = Field(
        default=None,
        description="Of an earlier answer of the model; for chat templates that read it.",
    )
    # Answers come back as messages of the next request, with fields that clients have added.
    parsed: Any = Field(
        default=None,
        description="What OpenAI's client has parsed from an earlier answer; the model gets the "
        "content.",
    )
    name: Annotated[Any, not_yet("is not supported: chat templates do not read it")] = None
    refusal: Annotated[Any, not_yet()] = None
    annotations: Annotated[Any, Only("is not supported yet; leave it out", ([],))] = None
    audio: Annotated[Any, not_yet()] = None
    function_call: Annotated[Any, Only("is not supported; use tool_calls")] = None

    def task_fields(self) -> dict[str, Any]:
        """This message in a task; its parts keep their places."""
        content: Any = self.content
        if isinstance(content, list):
            content = [_block(part) for part in content]
        fields = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content,
            "tool_call_id": self.tool_call_id,
            "tool_calls": self.tool_calls and [_without_notes(call) for call in self.tool_calls],
            "reasoning_content": self.reasoning_content,
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


def _block(part: TextPart | ImagePart) -> dict[str, str] | ImageBlock:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = part.image_url.url
    if not _DATA_URL.match(url):
        return ImageBlock.at(url)
    return {"type": "image", "base64": url.partition(",")[2]}
