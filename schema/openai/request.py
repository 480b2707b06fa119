"""What chat completions and completions have in common."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from schema.generation import (
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MaxNewTokens,
    NumBeams,
    NumReturnSequences,
    StopString,
)
from schema.message import rule
from schema.openai.client_request import ClientRequest
from schema.openai.fields import Hint, Strict
from schema.openai.terms import renamed

_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS}
_STOP = {
    "anyOf": [
        _STOP_STRING,
        {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOP_STRINGS},
        {"type": "null"},
    ],
    "default": None,
}


class StreamOptions(Strict):
    """What a stream reports beside the text."""

    include_usage: bool | None = Field(
        default=None, description="true: a last chunk without choices has the usage."
    )
    include_obfuscation: Annotated[
        Any, Hint("Chunks are not padded; their sizes show those of the texts.")
    ] = None


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class OpenAIRequest(ClientRequest):
    """Fields of both requests."""

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {"stream_options": StreamOptions}
    text_field: ClassVar[str] = "messages"

    n: NumReturnSequences | None = Field(default=None, description="Choices to generate; 1.")
    stop: Annotated[
        list[StopString] | None,
        Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
        BeforeValidator(_list_of_one),
        WithJsonSchema(_STOP),
    ] = Field(default=None, description="Texts that end a choice; they are not part of it.")
    max_tokens: MaxNewTokens | None = None
    num_beams: NumBeams | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[Any, Hint("An end user; nothing of it is kept.")] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise rule("has a meaning only with stream: true; leave it out", "stream_options")
        choices, beams = self.n or 1, self.num_beams or 1
        if beams > 1 and choices > beams:
            raise rule(f"must be at most num_beams, {beams}, and is {choices}", "n")
        if beams == 1 and choices > 1 and self.temperature == 0:
            raise rule(
                f"is {choices}, but with temperature 0 there is only one answer; raise temperature "
                "above 0, or num_beams to as many",
                "n",
            )
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether the end of a stream reports the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def renamed(self, text: str) -> str:
        """A message or a path of a task's error, with the names of this request's fields."""
        return renamed(text, self.limit[0], self.text_field)

    def _generation_config(self) -> dict[str, Any]:
        return super()._generation_config() | {
            "stop_strings": self.stop or None,
            "num_beams": self.num_beams,
            "num_return_sequences": self.n or 1,
        }
