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
    NOT_TOO_COLD,
    CountPenalty,
    LogitBias,
    MaxNewTokens,
    MinP,
    NumBeams,
    NumReturnSequences,
    RepetitionPenalty,
    StopString,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)
from schema.json_values import parse_json
from schema.message import rule
from schema.model_variant import MODEL_ID_PATTERN, ModelName
from schema.openai.fields import Only, Strict
from schema.openai.terms import dialect, in_terms
from schema.task import MAX_SEED, Dtype, QuantizeBits, Task
from schema.validation.bulk import refuse_bulk
from schema.validation.problems import explain

MAX_USER_CHARS = 512

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
    include_obfuscation: Annotated[Any, Only("is not supported; leave it out", (False,))] = None


def _list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class OpenAIRequest(Strict):
    """Fields of all requests. Absent and null are the same.

    Settings that OpenAI does not have, such as ``top_k``, come from the model's own settings where
    they are absent, as in a task. Where OpenAI documents a default, it holds here.
    """

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {"stream_options": StreamOptions}
    free_form: ClassVar[tuple[str, ...]] = ()
    text_field: ClassVar[str] = "messages"

    model: ModelName = Field(json_schema_extra={"pattern": MODEL_ID_PATTERN})
    n: NumReturnSequences | None = Field(default=None, description="Choices to generate; 1.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        default=None,
        description="Where random numbers start. If absent, it is drawn, and the answer has it.",
    )
    stop: Annotated[
        list[StopString] | None,
        Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
        BeforeValidator(_list_of_one),
        WithJsonSchema(_STOP),
    ] = Field(default=None, description="Texts that end a choice; they are not part of it.")
    max_tokens: MaxNewTokens | None = None
    temperature: Temperature | None = Field(
        default=None, description="1 where absent; 0 is greedy.", json_schema_extra=NOT_TOO_COLD
    )
    top_p: TopP | None = Field(default=None, description="1 where absent.")
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: CountPenalty | None = None
    presence_penalty: CountPenalty | None = None
    logit_bias: LogitBias | None = None
    num_beams: NumBeams | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=MAX_USER_CHARS)] | None = Field(
        default=None, description="An end user; does not change the answer and is not kept."
    )
    dtype: Dtype | None = Field(default=None, description="As in a task: which variant to ask.")
    quantize_bits: QuantizeBits | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_bulk(cls, fields: Any) -> Any:
        refuse_bulk(fields, *cls.free_form)
        return fields

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

    @classmethod
    def parse(cls, body: bytes | str, image_schemes: Collection[str] = ()) -> Self:
        """The request in ``body``, which is JSON. Raises `TaskArgsInvalid`, and nothing else.

        ``image_schemes`` are those of the addresses that images may have, beside ``data``.
        """
        try:
            return cls.model_validate(parse_json(body), context=image_schemes)
        except ValidationError as error:
            raise explain(error, cls, dialect(cls, cls.inner)) from None

    @property
    def num_prompts(self) -> int:
        """How many tasks the request means."""
        return 1

    @abstractmethod
    def task(self, seed: int, number: int = 0) -> Task:
        """The task that this request means, with the seed that was given or drawn.

        Args:
            seed: of the task.
            number: which of the tasks, where the request means several.

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
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @contextmanager
    def own_terms(self, number: int = 0) -> Iterator[None]:
        """In the body, errors of a task are raised with the names of this request's fields."""
        try:
            yield
        except TaskError as error:
            raise self.in_own_terms(error, number) from error

    def in_own_terms(self, error: TaskError, number: int = 0) -> TaskError:
        """An error of a task, with the names of this request's fields."""
        return in_terms(error, self.limit[0], self.text_field)

    def _generation_config(self) -> dict[str, Any]:
        temperature = 1.0 if self.temperature is None else self.temperature
        return {
            "max_new_tokens": self.limit[1],
            "stop_strings": self.stop or None,
            "do_sample": temperature > 0,
            "temperature": temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k,
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

    def _task(self, seed: int, number: int = 0, **fields: Any) -> Task:
        with self.own_terms(number):
            return Task.from_fields(
                model=self.model,
                seed=seed,
                dtype=self.dtype or "auto",
                quantize_bits=self.quantize_bits,
                generation_config=self._generation_config(),
                answer_format="message",
                **fields,
            )
