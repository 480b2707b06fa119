"""``POST /v1/completions``: the request.

The fields are those of OpenAI's API reference
(https://platform.openai.com/docs/api-reference/completions) and the settings that chat completions
take beside them.
"""

import re
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from schema.clients.fields import Only, published
from schema.clients.openai.request import BEAMS, OpenAIRequest
from schema.clients.openai.terms import PATHS, in_field
from schema.clients.terms import in_terms, renamed
from schema.errors import TaskArgsInvalid, TaskError
from schema.generation import MAX_ANSWER_LOGPROBS, MaxNewTokensOrNone, NumLogprobs
from schema.json_values import WHOLE
from schema.message import MAX_TEXT_CHARS, rule
from schema.task import MAX_PROMPT_TOKENS, MAX_TOKEN_ID, Task
from schema.validation.problems import describe

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
MAX_PROMPTS = 512
"""Of one request. What runs of them at the same time is limited elsewhere; this limits how long a
request lasts, and the size of its answer."""
MAX_CHOICES = 2048
"""Of all prompts of one request together."""

_EXAMPLES: list[Any] = [
    {"model": "gpt2", "prompt": "Once upon a time", "max_tokens": 30, "seed": 42, "n": 3},
    {"model": "gpt2", "prompt": ["One, two", "Red, green"], "max_tokens": 8, "temperature": 0},
    {"model": "gpt2", "prompt": [[464, 1578], [3198]], "echo": True, "logprobs": 1},
]

_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARS}
_TOKEN_IDS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
    "maxItems": MAX_PROMPT_TOKENS,
}
_PROMPTS = {
    "description": "What to continue: a text or token ids; or a list of either, for each of which "
    "there are n choices, in order.",
    "anyOf": [
        _TEXT,
        _TOKEN_IDS,
        *(
            {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_PROMPTS}
            for items in (_TEXT, _TOKEN_IDS)
        ),
    ],
}


class Prompts(NamedTuple):
    """What a request wants continued.

    Attributes:
        items: texts, or lists of token ids.
        is_list: whether the request has a list of them, and not a single one.
    """

    items: list[Any]
    is_list: bool


def _prompts(value: Any) -> Prompts:
    """The prompts in ``value``, of which only the form and the numbers are checked here."""
    if not isinstance(value, list):
        return Prompts([_checked(value, str)], is_list=False)
    if not value:
        raise rule("must not be an empty list")
    if not isinstance(value[0], str | list):
        return Prompts([_checked(value, list)], is_list=False)
    if len(value) > MAX_PROMPTS:
        raise rule(
            f"has {len(value)} prompts; at most {MAX_PROMPTS} are allowed: send several requests"
        )
    kind = type(value[0])
    items = [_checked(item, kind, str(place)) for place, item in enumerate(value)]
    num_ids = sum(map(len, items)) if kind is list else 0
    if num_ids > MAX_PROMPT_TOKENS:
        raise rule(
            f"has {num_ids} token ids; at most {MAX_PROMPT_TOKENS} are allowed: send several "
            "requests"
        )
    return Prompts(items, is_list=True)


def _checked(item: Any, kind: type, *place: str) -> Any:
    if not isinstance(item, kind):
        forms = "a text, token ids, or a list of texts or of lists of token ids"
        wanted = forms if not place else "a text" if kind is str else "a list of token ids"
        raise rule(f"must be {wanted}, not {describe(item)}", *place)
    if not item:
        raise rule("must have at least 1 character" if kind is str else "is empty", *place)
    return item


_RULES: list[Any] = [
    {
        "$comment": "Log probabilities are not reported for beams.",
        "if": BEAMS,
        "then": {"properties": {"logprobs": {"const": None}}},
    },
    {
        "$comment": "A request that generates nothing echoes its prompt, or scores it.",
        "if": {"properties": {"max_tokens": {"const": 0}}, "required": ["max_tokens"]},
        "then": {
            "anyOf": [
                {"properties": {"echo": {"const": True}}, "required": ["echo"]},
                {
                    "properties": {"prompt_logprobs": {"type": "integer"}},
                    "required": ["prompt_logprobs"],
                },
            ]
        },
    },
    {
        "$comment": "A receipt is of one prompt.",
        "if": {"properties": {"receipt": {"const": True}}, "required": ["receipt"]},
        "then": {
            "properties": {
                "prompt": {
                    "not": {
                        "type": "array",
                        "items": {"type": ["string", "array"]},
                        "minItems": 2,
                    }
                }
            }
        },
    },
]


class CompletionRequest(OpenAIRequest, json_schema_extra=published(_EXAMPLES, _RULES)):
    """Texts to continue as they are, without a chat template."""

    text_field: ClassVar[str] = "prompt"

    prompt: Annotated[Prompts, PlainValidator(_prompts), WithJsonSchema(_PROMPTS)]
    max_tokens: MaxNewTokensOrNone | None = Field(
        default=None,
        description=f"{DEFAULT_MAX_TOKENS} where absent; 0 only with echo or prompt_logprobs.",
    )
    best_of: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        default=None, description="1, or as n: there is no choice among more than n."
    )
    echo: bool | None = Field(
        default=None,
        description="true: the text of each choice begins with the prompt; its logprobs, where "
        "they are asked for, with those of the prompt's tokens.",
    )
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

    @model_validator(mode="after")
    def _answers_something(self) -> Self:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise rule("must be at least 1; 0 is for echo: true or prompt_logprobs", "max_tokens")
        num_choices = self.num_prompts * (self.n or 1)
        if num_choices > MAX_CHOICES:
            raise rule(
                f"is {self.n} for each of {self.num_prompts} prompts, {num_choices} choices; at "
                f"most {MAX_CHOICES} are allowed: send several requests",
                "n",
            )
        return self

    @model_validator(mode="after")
    def _logprobs_fit_into_an_answer(self) -> Self:
        """The rule of a task, over all prompts together."""
        choices, tokens = self.num_prompts * (self.n or 1), self.limit[1] or 0
        count = choices * tokens * (1 + (self.logprobs or 0))
        if self.logprobs is not None and count > MAX_ANSWER_LOGPROBS:
            raise rule(
                f"is {self.logprobs}: {choices} choices of up to {tokens} tokens, with as many "
                f"alternatives each, are {count} log probabilities, and an answer may have at "
                f"most {MAX_ANSWER_LOGPROBS}: send fewer prompts in a request, or ask for fewer "
                "choices, tokens or alternatives",
                "logprobs",
            )
        return self

    @model_validator(mode="after")
    def _receipt_of_one_prompt(self) -> Self:
        if self.receipt and self.num_prompts > 1:
            raise rule(
                f"is of one prompt, and there are {self.num_prompts}; send a request for each",
                "receipt",
            )
        return self

    @property
    def num_prompts(self) -> int:
        """How many tasks the request means."""
        return len(self.prompt.items)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each token; None to report no log probabilities."""
        return self.logprobs

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_tokens", DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def task(self, seed: int, number: int = 0) -> Task:
        """The task that one of the prompts means."""
        prompt = self.prompt.items[number]
        fields: dict[str, Any] = {"prompt_token_ids": prompt}
        if isinstance(prompt, str):
            fields = {"messages": [{"role": "user", "content": prompt}]}
        return self._task(
            seed,
            number,
            use_chat_template=False,
            echo=bool(self.echo),
            return_token_ids=bool(self.return_token_ids),
            **fields,
        )

    def in_own_terms(self, error: TaskError, number: int = 0) -> TaskError:
        """An error of the task of one of the prompts, with the names of this request's fields."""
        name = f"prompt.{number}" if self.prompt.is_list else "prompt"
        named = in_terms(error, lambda text: renamed(in_field(text, name), self.limit[0], PATHS))
        message, param = named.message, named.param
        for pattern, meant in (
            (r"\bprompt_token_ids\b", name),
            (r"\bprompt_logprobs\b", self._scored_by),
            (r"\bthe (?=prompt\.\d)", ""),
        ):
            message = re.sub(pattern, meant, message)
            param = param and re.sub(pattern, meant, param)
        if self.prompt.is_list and isinstance(error, TaskArgsInvalid) and name not in message:
            message = f"{name}: {message}"
        return type(error)(message, param, error.retry_after_s)

    def _generation_config(self) -> dict[str, Any]:
        config = super()._generation_config()
        if self.echo and (self.logprobs is not None or self.max_tokens == 0):
            config["prompt_logprobs"] = max(self.logprobs or 0, self.prompt_logprobs or 0)
        return config

    @property
    def _scored_by(self) -> str:
        """The field that says how much is reported of the prompt's tokens."""
        echoed = self.logprobs or 0 if self.echo else -1
        wanted = self.prompt_logprobs
        return "logprobs" if wanted is None or echoed > wanted else "prompt_logprobs"
