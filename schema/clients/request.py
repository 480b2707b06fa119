"""What the requests of all APIs for clients have in common: settings, parsing, errors."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from schema.clients.fields import Strict
from schema.clients.terms import dialect, in_terms
from schema.errors import TaskError
from schema.generation import (
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MIN_TEMPERATURE,
    CountPenalty,
    LogitBias,
    MinP,
    RepetitionPenalty,
    TopP,
    TypicalP,
)
from schema.json_values import WHOLE, parse_json
from schema.model_variant import MODEL_NAME_PATTERN, ModelName
from schema.task import MAX_SEED, Dtype, QuantizeBits, Task
from schema.validation.bulk import refuse_bulk
from schema.validation.problems import explain

# Temperatures and numbers of tokens that other servers read as "off".
_Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
_TopK = Annotated[int, Field(ge=-1, le=MAX_TOP_K), WHOLE]


class ClientRequest(Strict):
    """Fields of all requests. Absent and null are the same.

    Settings that an API does not have come from the model's own settings where they are absent, as
    in a task; ``temperature`` and ``top_p`` are 1 there, as these APIs have it. So requests of two
    APIs that say the same mean the same task.

    Attributes:
        inner: the models of the objects in the request, by their field or tag.
        elsewhere: names that other APIs have for fields of this one.
        message: the model of a message.
        free_form: the fields that may hold any JSON.
        messages_field: the field that has the conversation.
    """

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}
    message: ClassVar[type[BaseModel]]
    free_form: ClassVar[tuple[str, ...]] = ()
    messages_field: ClassVar[str] = "messages"

    model: ModelName = Field(json_schema_extra={"pattern": MODEL_NAME_PATTERN})
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] | None = Field(
        default=None,
        description="Where random numbers start. If absent, it is drawn, and the answer has it.",
    )
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
    stream: bool | None = None
    receipt: bool | None = Field(
        default=None, description="true: the answer has a signed receipt, as a task's response."
    )
    dtype: Dtype | None = Field(default=None, description="As in a task: which variant to ask.")
    quantize_bits: QuantizeBits | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_bulk(cls, fields: Any) -> Any:
        refuse_bulk(fields, *cls.free_form, conversation=cls.messages_field)
        return fields

    @classmethod
    def parse(cls, body: bytes | str, image_schemes: Collection[str] = ()) -> Self:
        """The request in ``body``, which is JSON. Raises `TaskArgsInvalid`, and nothing else.

        ``image_schemes`` are those of the addresses that images may have, beside ``data``.
        """
        try:
            return cls.model_validate(parse_json(body), context=image_schemes)
        except ValidationError as error:
            words = dialect(cls, cls.inner, cls.elsewhere, cls.message)
            raise explain(error, cls, words) from None

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
    @abstractmethod
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each token; None to report no log probabilities."""
        return None

    @abstractmethod
    def renamed(self, text: str) -> str:
        """A message or a path of a task's error, with the names of this request's fields."""

    @contextmanager
    def own_terms(self, number: int = 0) -> Iterator[None]:
        """In the body, errors of a task are raised with the names of this request's fields."""
        try:
            yield
        except TaskError as error:
            raise self.in_own_terms(error, number) from error

    def in_own_terms(self, error: TaskError, number: int = 0) -> TaskError:
        """An error of a task, with the names of this request's fields.

        ``number`` says which of the tasks, where the request means several.
        """
        return in_terms(error, self.renamed)

    def _generation_config(self) -> dict[str, Any]:
        temperature = 1.0 if self.temperature is None else self.temperature
        if temperature < MIN_TEMPERATURE:
            temperature = 0.0
        return {
            "max_new_tokens": self.limit[1],
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
            "num_return_sequences": 1,
        }

    def _task(self, seed: int, number: int = 0, **fields: Any) -> Task:
        if fields.get("tool_choice", "auto") != "auto":
            fields["structured_output"] = None  # the form of text, and an answer has none of it
        with self.own_terms(number):
            return Task.from_fields(
                model=self.model,
                seed=seed,
                dtype=self.dtype or "auto",
                quantize_bits=self.quantize_bits,
                generation_config=self._generation_config(),
                answer_format="message",
                receipt=bool(self.receipt),
                **fields,
            )
