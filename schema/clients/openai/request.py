"""What chat completions and completions have in common."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from schema.clients.fields import Hint, Only, Strict
from schema.clients.openai.messages import ChatMessage
from schema.clients.openai.other_servers import SettingsOfOtherServers
from schema.clients.openai.terms import ELSEWHERE, INNER, PATHS, in_field
from schema.clients.request import ClientRequest
from schema.clients.terms import renamed
from schema.generation import (
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MaxNewTokens,
    NumBeams,
    NumLogprobs,
    NumReturnSequences,
)
from schema.message import rule

_STOP_STRING = {"type": "string", "maxLength": MAX_STOP_STRING_CHARS}
_STOP = {
    "anyOf": [
        _STOP_STRING,
        {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOP_STRINGS},
        {"type": "null"},
    ],
    "default": None,
}


BEAMS: dict[str, Any] = {
    "properties": {"num_beams": {"type": "integer", "minimum": 2}},
    "required": ["num_beams"],
}
"""Whether a request asks for a beam search, in JSON Schema."""


class StreamOptions(Strict):
    """What a stream reports beside the text."""

    include_usage: bool | None = Field(
        default=None, description="true: a last chunk without choices has the usage."
    )
    include_obfuscation: Annotated[
        Any, Hint("Chunks are not padded; their sizes show those of the texts.")
    ] = None
    continuous_usage_stats: Annotated[
        Any, Only("is not supported; include_usage reports it at the end", (False,))
    ] = None


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# Other servers read an empty text as "off".
_StopString = Annotated[str, Field(max_length=MAX_STOP_STRING_CHARS)]


class OpenAIRequest(SettingsOfOtherServers, ClientRequest):
    """Fields of both requests."""

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {
        **INNER,
        "stream_options": StreamOptions,
    }
    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE
    message: ClassVar[type[BaseModel]] = ChatMessage
    text_field: ClassVar[str] = "messages"

    n: NumReturnSequences | None = Field(default=None, description="Choices to generate; 1.")
    stop: Annotated[
        list[_StopString] | None,
        Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
        BeforeValidator(_list_of_one),
        WithJsonSchema(_STOP),
    ] = Field(
        default=None,
        description="Texts that end a choice; they are not part of it. An empty one has no effect.",
    )
    max_tokens: MaxNewTokens | None = None
    num_beams: NumBeams | None = None
    stream_options: StreamOptions | None = Field(
        default=None, description="Without stream: true it has no effect."
    )
    return_token_ids: bool | None = Field(
        default=None,
        description="true: the answer has prompt_token_ids, and each choice token_ids, a token "
        "that ends it included; the logprobs have one entry for each of these then.",
    )
    prompt_logprobs: NumLogprobs | None = Field(
        default=None,
        description="Report the log probability of every token of the prompt, and of this many of "
        "the most probable ones in its place.",
    )
    user: Annotated[Any, Hint("An end user; nothing of it is kept.")] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        choices, beams = self.n or 1, self.num_beams or 1
        if beams > 1 and choices > beams:
            raise rule(f"must be at most num_beams, {beams}, and is {choices}", "n")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether the end of a stream reports the usage."""
        options = self.stream_options
        return bool(self.stream and options is not None and options.include_usage)

    def renamed(self, text: str) -> str:
        """A message or a path of a task's error, with the names of this request's fields."""
        return renamed(in_field(text, self.text_field), self.limit[0], PATHS)

    def _generation_config(self) -> dict[str, Any]:
        return super()._generation_config() | {
            "stop_strings": [text for text in self.stop or () if text] or None,
            "num_beams": self.num_beams,
            "num_return_sequences": self.n or 1,
            "prompt_logprobs": self.prompt_logprobs,
        }
