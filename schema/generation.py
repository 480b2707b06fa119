"""How a task wants its text generated."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from schema.json_values import WHOLE, quoted

DEFAULT_MAX_NEW_TOKENS = 256
"""The default if neither the task nor the model's own generation_config has a value, nor the
operator another default."""
DEFAULT_NUM_RETURN_SEQUENCES = 1

MAX_NEW_TOKENS = 1_000_000
"""Only a guard against absurd values: the real limit of an answer is the model's context."""
MAX_BEAMS = 64
MAX_RETURN_SEQUENCES = 64
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_TOP_K = 2**31 - 1
MAX_TEMPERATURE = 100.0
MIN_TEMPERATURE = 1e-6
"""Scores are divided by the temperature in float32: below this they overflow and become NaN."""
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
"""Scores are divided or multiplied by the penalty: beyond these they overflow and become NaN."""
MAX_COUNT_PENALTY = 2.0
"""Of frequency_penalty and presence_penalty, in both directions; OpenAI's."""
MAX_LOGIT_BIAS = 100.0
"""In both directions; OpenAI's."""
MAX_BIASED_TOKENS = 1024
MAX_LOGPROBS = 20
"""Alternatives reported with each token; OpenAI's."""
MAX_PROMPT_LOGPROBS = 2**18
"""Log probabilities reported of one prompt: its tokens times one more than the alternatives."""
MAX_ANSWER_LOGPROBS = 2**22
"""Log probabilities that one answer may report of what is generated: choices times tokens times one
more than the alternatives. Each is about a hundred bytes of JSON."""

_ID = re.compile(r"0|[1-9][0-9]{0,9}")
# The same for JSON Schema. Python's `$` also matches before a last newline, hence the look-ahead.
_ID_PATTERN = r"^(?:0|[1-9][0-9]{0,9})$(?!\n)"


def _zero_or_enough(temperature: float) -> float:
    if 0 < temperature < MIN_TEMPERATURE:
        raise PydanticCustomError(
            "task_rule",
            "{problem}",
            {"problem": f"must be 0 (greedy) or at least {MIN_TEMPERATURE}"},
        )
    return temperature


def _token_ids(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not _ID.fullmatch(key):
            problem = f"must be the id of a token, as decimal digits, not {quoted(key)}"
            raise PydanticCustomError(
                "task_rule", "{problem}", {"problem": problem, "path": (key,)}
            )
    return bias


MaxNewTokens = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS), WHOLE]
MaxNewTokensOrNone = Annotated[int, Field(ge=0, le=MAX_NEW_TOKENS), WHOLE]
"""0 is for a task that only reads its prompt."""
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
NumBeams = Annotated[int, Field(ge=1, le=MAX_BEAMS), WHOLE]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE), AfterValidator(_zero_or_enough)]
TypicalP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K), WHOLE]
TopP = Annotated[float, Field(ge=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)]
CountPenalty = Annotated[float, Field(ge=-MAX_COUNT_PENALTY, le=MAX_COUNT_PENALTY)]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]],
    Field(
        max_length=MAX_BIASED_TOKENS,
        json_schema_extra={"propertyNames": {"pattern": _ID_PATTERN}},
    ),
    AfterValidator(_token_ids),
]
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE]
NumReturnSequences = Annotated[int, Field(ge=1, le=MAX_RETURN_SEQUENCES), WHOLE]

NOT_TOO_COLD: dict[str, Any] = {
    "not": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": MIN_TEMPERATURE}
}
"""The condition on a temperature in JSON Schema, beside its bounds."""

_BEAMS = {
    "properties": {"num_beams": {"type": "integer", "minimum": 2}},
    "required": ["num_beams"],
}
_SCHEMA_RULES: dict[str, Any] = {
    "allOf": [
        {
            "$comment": "Log probabilities are not reported for beams. JSON Schema cannot say that "
            "there must be at least as many beams as answers; the server checks it.",
            "if": _BEAMS,
            "then": {"properties": {"logprobs": {"const": None}}},
        },
        {
            "$comment": "A task that generates nothing reports the prompt's log probabilities.",
            "if": {
                "properties": {"max_new_tokens": {"const": 0}},
                "required": ["max_new_tokens"],
            },
            "then": {
                "properties": {"prompt_logprobs": {"type": "integer"}},
                "required": ["prompt_logprobs"],
            },
        },
    ],
    "examples": [{"max_new_tokens": 64, "do_sample": True, "temperature": 0.7, "top_p": 0.9}],
}


class GenerationConfig(BaseModel):
    """How to generate. A setting that is absent or null is left to the model's own
    `generation_config.json`. Meanings are those of transformers' settings of the same names;
    `frequency_penalty`, `presence_penalty`, `logit_bias`, `logprobs` and `prompt_logprobs`, which
    transformers does not have, are off where they are absent.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra=_SCHEMA_RULES,
    )

    max_new_tokens: MaxNewTokensOrNone | None = Field(
        default=None,
        description="The most tokens to generate per choice. "
        f"{DEFAULT_MAX_NEW_TOKENS} where neither the task, the model nor the operator says. 0, "
        "which only reads the prompt, needs prompt_logprobs.",
    )
    stop_strings: (
        Annotated[
            list[StopString],
            Field(max_length=MAX_STOP_STRINGS, fail_fast=True),
        ]
        | None
    ) = Field(
        default=None,
        description="A choice ends where its text has one of these; []: no text ends it.",
    )
    do_sample: bool | None = Field(
        default=None,
        description="true: sample tokens by their probability; false: take the most probable.",
    )
    num_beams: NumBeams | None = Field(
        default=None, description="Beams of the beam search; 1 means no beam search."
    )
    temperature: Temperature | None = Field(
        default=None,
        description="Divides the scores before sampling: less is more predictable. "
        f"0 means greedy, even if do_sample is true; else at least {MIN_TEMPERATURE}.",
        json_schema_extra=NOT_TOO_COLD,
    )
    typical_p: TypicalP | None = Field(
        default=None,
        description="Keeps the most typical tokens up to this total probability; 1 is off.",
    )
    top_k: TopK | None = Field(
        default=None, description="Keeps this many of the most probable tokens; 0 is off."
    )
    top_p: TopP | None = Field(
        default=None,
        description="Keeps the most probable tokens up to this total probability; 1 is off, and 0 "
        "keeps one.",
    )
    min_p: MinP | None = Field(
        default=None,
        description="Keeps tokens of at least this probability, relative to the best; 0 is off.",
    )
    repetition_penalty: RepetitionPenalty | None = Field(
        default=None,
        description="Above 1, tokens that have occurred already become less probable; 1 is off.",
    )
    frequency_penalty: CountPenalty | None = Field(
        default=None,
        description="Subtracted from a token's score for each time that it occurs in the choice, "
        "without the prompt; 0 is off.",
    )
    presence_penalty: CountPenalty | None = Field(
        default=None,
        description="Subtracted once from the score of every token that occurs in the choice, "
        "without the prompt; 0 is off.",
    )
    logit_bias: LogitBias | None = Field(
        default=None,
        description="Added to the scores of tokens: by token id, as decimal digits.",
    )
    logprobs: NumLogprobs | None = Field(
        default=None,
        description="Report the log probability of every token, and of this many of the most "
        "probable ones in its place. Not for beams. Absent: none are computed. "
        "num_return_sequences times max_new_tokens times (1 + this) may be at most "
        f"{MAX_ANSWER_LOGPROBS}.",
    )
    prompt_logprobs: NumLogprobs | None = Field(
        default=None,
        description="The same for the tokens of the prompt, which the response then lists as "
        f"prompt_logprobs: tokens times (1 + this) may be at most {MAX_PROMPT_LOGPROBS}. The "
        "logprobs of a choice then have its end-of-sequence token too.",
    )
    num_return_sequences: NumReturnSequences | None = Field(
        default=None,
        description="How many choices to generate; greedy ones are equal. "
        f"{DEFAULT_NUM_RETURN_SEQUENCES} where neither the task nor the model says.",
    )

    @model_validator(mode="after")
    def _beams_for_all_choices(self) -> Self:
        """The rule of transformers. The engine checks it again with the model's own settings."""
        count, beams = self.num_return_sequences or 1, self.num_beams or 1
        if beams > 1 and count > beams:
            problem = f"must be at most num_beams, {beams}, and is {count}; raise num_beams"
            raise PydanticCustomError(
                "task_rule", "{problem}", {"problem": problem, "path": ("num_return_sequences",)}
            )
        return self

    @model_validator(mode="after")
    def _generates_or_reads(self) -> Self:
        if self.max_new_tokens == 0 and self.prompt_logprobs is None:
            problem = "must be at least 1; 0, which only reads the prompt, needs prompt_logprobs"
            raise PydanticCustomError(
                "task_rule", "{problem}", {"problem": problem, "path": ("max_new_tokens",)}
            )
        return self

    @model_validator(mode="after")
    def _no_logprobs_of_beams(self) -> Self:
        if self.logprobs is not None and (self.num_beams or 1) > 1:
            problem = "are not reported for beams; leave it out, or num_beams"
            raise PydanticCustomError(
                "task_rule", "{problem}", {"problem": problem, "path": ("logprobs",)}
            )
        return self
