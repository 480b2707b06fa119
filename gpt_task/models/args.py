"""gpt-task's definitions: lenient where `schema.Task` is strict, and dictionaries all the way down.

Numbers in strings are taken as numbers. Unknown fields are dropped, as gpt-task drops them, but a
log line names each. A task that passes these definitions must still be a valid `schema.Task`.
"""

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, Tag, model_validator, with_config
from typing_extensions import TypedDict

from schema.answers.response import Choice, StreamChoice, Usage
from schema.json_values import clipped
from schema.message import BLOCK_KIND, BLOCKS_TAG, CONTENT_KIND, IMAGE_BLOCK_TAG, TEXT_BLOCK_TAG
from schema.message import TEXT_TAG as STRING_TAG
from schema.task import Dtype, QuantizeBits

__all__ = [
    "GPTGenerationConfig",
    "GPTTaskArgs",
    "GPTTaskResponse",
    "GPTTaskStreamResponse",
    "ImageContentBlock",
    "Message",
    "MessageContent",
    "MessageContentBlock",
    "ResponseChoice",
    "StreamChoice",
    "TextContentBlock",
    "Usage",
]

logger = logging.getLogger(__name__)

NonEmptyString = Annotated[str, Field(min_length=1)]


def _check_base64(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


@with_config(extra="forbid")
class TextContentBlock(TypedDict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: NonEmptyString


@with_config(extra="forbid")
class ImageContentBlock(TypedDict):
    """An image file in base64."""

    type: Literal["image"]
    base64: Annotated[NonEmptyString, AfterValidator(_check_base64)]


MessageContentBlock = Annotated[
    Annotated[TextContentBlock, Tag(TEXT_BLOCK_TAG)]
    | Annotated[ImageContentBlock, Tag(IMAGE_BLOCK_TAG)],
    BLOCK_KIND,
]
MessageContent = Annotated[
    Annotated[str, Tag(STRING_TAG)] | Annotated[list[MessageContentBlock], Tag(BLOCKS_TAG)],
    CONTENT_KIND,
]


class Message(TypedDict, total=False):
    """A message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: MessageContent | None
    tool_call_id: str | None
    tool_calls: list[dict[str, Any]] | None


class GPTGenerationConfig(TypedDict, total=False):
    """How to generate; see `schema.generation.GenerationConfig` for what each means."""

    max_new_tokens: int
    stop_strings: list[str]
    do_sample: bool
    num_beams: int
    temperature: float
    typical_p: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    num_return_sequences: int


class GPTTaskArgs(BaseModel):
    """A task. Raises pydantic's `ValidationError`, which is a `ValueError`."""

    model: NonEmptyString
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    generation_config: GPTGenerationConfig | None = None
    template_args: dict[str, Any] | None = None
    seed: int = 0
    dtype: Dtype = "auto"
    quantize_bits: QuantizeBits | None = None
    return_token_ids: bool = False  # not of gpt-task: for `gpt_task.inference.verify_task`

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping):
            for name in _unknown_fields(fields):
                logger.warning("%s is not a field of a task and is dropped", clipped(name, 128))
        return fields


ResponseChoice = Choice


class GPTTaskResponse(TypedDict):
    """The answer to a task."""

    model: NonEmptyString
    choices: list[ResponseChoice]
    usage: Usage


class GPTTaskStreamResponse(TypedDict):
    """The argument of a stream callback."""

    model: NonEmptyString
    choices: list[StreamChoice]
    usage: Usage


def _unknown_fields(fields: Mapping[str, Any]) -> Iterator[str]:
    yield from _keys_beyond(GPTTaskArgs.model_fields, fields)
    settings = fields.get("generation_config")
    yield from _keys_beyond(GPTGenerationConfig.__annotations__, settings, "generation_config.")
    messages = fields.get("messages")
    for index, message in enumerate(messages if isinstance(messages, Sequence) else ()):
        yield from _keys_beyond(Message.__annotations__, message, f"messages.{index}.")


def _keys_beyond(known: Mapping[str, Any], value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (f"{path}{key}" for key in value if key not in known)
