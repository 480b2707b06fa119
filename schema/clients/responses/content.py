"""What a message of the Responses API holds: texts and images."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from schema.clients.conversation import Block
from schema.clients.fields import Hint, Only, Strict
from schema.clients.images import ADDRESS_PATTERN, check_address, image_block
from schema.message import (
    BLOCKS_TAG,
    CONTENT_KIND,
    MAX_BLOCKS,
    MAX_TEXT_CHARS,
    TEXT_TAG,
)

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
NO_CACHE_POINTS = "The server decides itself which beginnings of prompts it keeps."

INPUT_TEXT_TAG, INPUT_IMAGE_TAG, OUTPUT_TEXT_TAG, REFUSAL_TAG = (
    "<input text>",
    "<input image>",
    "<output text>",
    "<refusal>",
)


class InputText(Strict):
    """A text that the model is given."""

    type: Literal["input_text"]
    text: Text
    prompt_cache_breakpoint: Annotated[Any, Hint(NO_CACHE_POINTS)] = None


class InputImage(Strict):
    """An image that the model is given."""

    type: Literal["input_image"]
    image_url: Annotated[str, AfterValidator(check_address)] = Field(
        description='The image as a data URL: "data:image/png;base64,...". Addresses (https:, '
        "http:, file:) are refused unless the server's configuration opens them.",
        json_schema_extra={"pattern": ADDRESS_PATTERN},
    )
    file_id: Annotated[Any, Only("is not supported: no files are kept; use image_url")] = None
    detail: Annotated[Any, Hint("Images are prepared as their model does it.")] = None
    prompt_cache_breakpoint: Annotated[Any, Hint(NO_CACHE_POINTS)] = None


class OutputText(Strict):
    """A text that the model wrote in an earlier answer."""

    type: Literal["output_text"]
    text: Text
    annotations: Annotated[Any, Hint("Models read the text.")] = None
    logprobs: Annotated[Any, Hint("Models read the text.")] = None
    parsed: Annotated[Any, Hint("What OpenAI's client has read in the text.")] = None


class Refusal(Strict):
    """What another model said instead of an answer; the model reads it as text."""

    type: Literal["refusal"]
    refusal: Text


_TAGS = {
    "input_text": INPUT_TEXT_TAG,
    "input_image": INPUT_IMAGE_TAG,
    "output_text": OUTPUT_TEXT_TAG,
    "refusal": REFUSAL_TAG,
}


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return _TAGS.get(kind) if isinstance(kind, str) else None


Part = Annotated[
    Annotated[InputText, Tag(INPUT_TEXT_TAG)]
    | Annotated[InputImage, Tag(INPUT_IMAGE_TAG)]
    | Annotated[OutputText, Tag(OUTPUT_TEXT_TAG)]
    | Annotated[Refusal, Tag(REFUSAL_TAG)],
    Discriminator(
        _part_tag,
        custom_error_type="block_type",
        custom_error_message='must be {"type": "input_text", "text": ...}, {"type": "input_image", '
        '"image_url": "data:image/png;base64,..."} or {"type": "output_text", "text": ...}; files '
        "and audio are not supported",
    ),
]
Content = Annotated[
    Annotated[Text, Tag(TEXT_TAG)]
    | Annotated[
        Annotated[list[Part], Field(fail_fast=True, max_length=MAX_BLOCKS)], Tag(BLOCKS_TAG)
    ],
    CONTENT_KIND,
]
"""A string, or an array of parts; an empty array is the same as an empty string."""


def blocks(content: Any, path: str) -> str | list[Block]:
    """The content of a task's message; ``path`` leads to the content in the request.

    Empty texts say nothing and are left out.
    """
    if isinstance(content, str):
        return content
    made = []
    for index, part in enumerate(content):
        here = f"{path}.{index}"
        if isinstance(part, InputImage):
            made.append(Block(image_block(part.image_url), f"{here}.image_url"))
        elif text := part.refusal if isinstance(part, Refusal) else part.text:
            made.append(Block({"type": "text", "text": text}, f"{here}.text"))
    return made or ""


def written(content: Any, path: str) -> str | list[Block]:
    """As `blocks`, for what the model wrote: one text, as chat completions get it back."""
    made = blocks(content, path)
    if isinstance(made, str):
        return made
    texts = [block.text for block in made if block.text is not None]
    return "".join(texts) if len(texts) == len(made) else made
