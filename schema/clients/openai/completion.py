"""``POST /v1/completions``: the request.

The fields are those of OpenAI's API reference
(https://platform.openai.com/docs/api-reference/completions) and the settings that chat completions
take beside them.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from schema.clients.fields import Only, published
from schema.clients.openai.request import BEAMS, OpenAIRequest
from schema.generation import NumLogprobs
from schema.json_values import WHOLE
from schema.message import MAX_TEXT_CHARS, rule
from schema.task import Task

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

_EXAMPLES: list[Any] = [
    {"model": "gpt2", "prompt": "Once upon a time", "max_tokens": 30, "seed": 42, "n": 3},
]


def _one_text(value: Any) -> Any:
    if isinstance(value, list):
        raise rule("must be one text; send a request for each text, and no token ids")
    return value


_RULES: list[Any] = [
    {
        "$comment": "Log probabilities are not reported for beams.",
        "if": BEAMS,
        "then": {"properties": {"logprobs": {"const": None}}},
    }
]


class CompletionRequest(OpenAIRequest, json_schema_extra=published(_EXAMPLES, _RULES)):
    """A text to continue as it is, without a chat template."""

    text_field: ClassVar[str] = "prompt"

    prompt: Annotated[
        str, Field(min_length=1, max_length=MAX_TEXT_CHARS), BeforeValidator(_one_text)
    ]
    best_of: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        default=None, description="1, or as n: there is no choice among more than n."
    )
    echo: Annotated[
        Any, Only("is not supported: the answer is what follows the prompt", (False,))
    ] = None
    logprobs: NumLogprobs | None = Field(
        default=None,
        description="Report the log probabilities of every token and of this many of the most "
        "probable ones in its place.",
    )
    suffix: Annotated[Any, Only("is not supported; leave it out", ("",))] = None

    @model_validator(mode="after")
    def _all_that_are_made(self) -> Self:
        if self.best_of not in (None, 1, self.n or 1):
            raise rule(f"must be 1, or as n, {self.n or 1}; ask for more and choose", "best_of")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each token; None to report no log probabilities."""
        return self.logprobs

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_tokens", DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def task(self, seed: int) -> Task:
        """The task that this request means."""
        return self._task(
            seed,
            messages=[{"role": "user", "content": self.prompt}],
            use_chat_template=False,
        )
