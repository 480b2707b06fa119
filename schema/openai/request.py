"""What chat completions and completions have in common."""

from abc import abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from schema.errors import TaskError
from schema.generation import (
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MIN_TEMPERATURE,
    CountPenalty,
    LogitBias,
    MaxNewTokens,
    MinP,
    NumBeams,
    NumReturnSequences,
    RepetitionPenalty,
    TopP,
    TypicalP,
)
from schema.json_values import WHOLE, parse_json
from schema.message import rule
from schema.model_variant import MODEL_ID_PATTERN, ModelName
from schema.openai.fields import Hint, Only, Strict
from schema.openai.other_servers import SettingsOfOtherServers
from schema.openai.terms import dialect, in_terms
from schema.task import MAX_SEED, Dtype, QuantizeBits, Task
from schema.validation.bulk import refuse_bulk
from schema.validation.problems import explain

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


# Texts, temperatures and numbers of tokens that other servers read as "off".
_StopString = Annotated[str, Field(max_length=MAX_STOP_STRING_CHARS)]
_Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
_TopK = Annotated[int, Field(ge=-1, le=MAX_TOP_K), WHOLE]


class OpenAIRequest(SettingsOfOtherServers):
    """Fields of all requests. Absent and null are the same.

    Settings that OpenAI does not have, such as ``top_k``, come from the model's own settings where
    they are absent, as in a task. Where OpenAI documents a default, it holds here.
    """

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {"stream_options": StreamOptions}
    free_form: ClassVar[tuple[str, ...]] = ()
    text_field: ClassVar[str] = "messages"

    model: ModelName = Field(json_schema_extra={"pattern": MODEL_ID_PATTERN})
    n: NumReturnSequences | None = Field(default=None, description="Choices to generate; 1.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] | None = Field(
        default=None,
        description="Where random numbers start. If absent, it is drawn, and the answer has it.",
    )
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
    temperature: _Temperature | None = Field(
        default=None, description=f"1 where absent; below {MIN_TEMPERATURE} is greedy."
    )
    top_p: TopP | None = Field(default=None, description="1 where absent.")
    top_k: _TopK | None = Field(default=None, description="0 and -1 are off.")
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: CountPenalty | None = None
    presence_penalty: CountPenalty | None = None
    logit_bias: LogitBias | None = None
    num_beams: NumBeams | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(
        default=None, description="Without stream: true it has no effect."
    )
    user: Annotated[Any, Hint("An end user; nothing of it is kept.")] = None
    dtype: Dtype | None = Field(default=None, description="As in a task: which variant to ask.")
    quantize_bits: QuantizeBits | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_bulk(cls, fields: Any) -> Any:
        refuse_bulk(fields, *cls.free_form)
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        choices, beams = self.n or 1, self.num_beams or 1
        if beams > 1 and choices > beams:
            raise rule(f"must be at most num_beams, {beams}, and is {choices}", "n")
        return self

    @classmethod
    def parse(cls, body: bytes | str, image_schemes: Collection[str] = ()) -> Self:
        """The request in ``body``, which is JSON. Raises `TaskArgsInvalid`, and nothing else.

        ``image_schemes`` are those of the addresses that images may have, beside ``data``.
        """
        try:
            return cls.model_validate(parse_json(body), context=image_schemes)
        except ValidationError as error:
            raise explain(error, cls, dialect(cls, cls.inner)) from None

    @abstractmethod
    def task(self, seed: int) -> Task:
        """The task that this request means, with the seed that was given or drawn.

        Raises:
            TaskArgsInvalid: in the request's own terms.
        """

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_tokens", self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each token; None to report no log probabilities."""

    @property
    def wants_usage(self) -> bool:
        """Whether the end of a stream reports the usage."""
        options = self.stream_options
        return bool(self.stream and options is not None and options.include_usage)

    @contextmanager
    def own_terms(self) -> Iterator[None]:
        """In the body, errors of the task are raised with the names of this request's fields."""
        try:
            yield
        except TaskError as error:
            raise self.in_own_terms(error) from error

    def in_own_terms(self, error: TaskError) -> TaskError:
        """An error of the task, with the names of this request's fields."""
        return in_terms(error, self.limit[0], self.text_field)

    def _generation_config(self) -> dict[str, Any]:
        temperature = 1.0 if self.temperature is None else self.temperature
        if temperature < MIN_TEMPERATURE:
            temperature = 0.0
        return {
            "max_new_tokens": self.limit[1],
            "stop_strings": [text for text in self.stop or () if text] or None,
            "do_sample": temperature > 0,
            "temperature": temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias or None,
            "logprobs": self.num_logprobs,
            "num_beams": self.num_beams,
            "num_return_sequences": self.n or 1,
        }

    def _task(self, seed: int, **fields: Any) -> Task:
        with self.own_terms():
            return Task.from_fields(
                model=self.model,
                seed=seed,
                dtype=self.dtype or "auto",
                quantize_bits=self.quantize_bits,
                generation_config=self._generation_config(),
                answer_format="message",
                **fields,
            )
