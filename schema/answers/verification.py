"""Verifications: a task and a response to it that is claimed to be its answer; and the verdict.

A claimed response is checked in form only as far as it is read: other fields may be there and are
not looked at.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator, with_config
from typing_extensions import TypedDict

from schema.answers.response import FinishReason
from schema.errors import TaskError
from schema.generation import MAX_NEW_TOKENS, MAX_PROMPT_LOGPROBS, MAX_RETURN_SEQUENCES
from schema.json_values import ALL_WHOLE, WHOLE, parse_json
from schema.message import MAX_TEXT_CHARS, MAX_TOOL_CALLS, rule
from schema.task import MAX_TOKEN_ID, Task, TokenIds
from schema.validation.problems import TASK_DIALECT, explain

MAX_RESPONSE_DIFFERENCES = 16
MAX_REPORTED_CHARS = 200

_Count = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), WHOLE]
_Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
_Bytes = Annotated[
    list[Annotated[int, Field(ge=0, le=255)]],
    Field(max_length=MAX_TEXT_CHARS, fail_fast=True),
    ALL_WHOLE,
]


class _Claimed(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class ClaimedFunction(_Claimed):
    """The function of a call."""

    name: _Text
    arguments: _Text


class ClaimedCall(_Claimed):
    """A call of a tool."""

    id: _Text
    type: Literal["function"]
    function: ClaimedFunction


class ClaimedMessage(_Claimed):
    """The message of a choice."""

    role: Literal["assistant"]
    content: _Text
    reasoning_content: _Text | None = None
    tool_calls: (
        Annotated[list[ClaimedCall], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None
    ) = None


class ClaimedTop(_Claimed):
    """A token that could have been sampled."""

    token: _Text
    token_id: _Count
    bytes: _Bytes | None
    logprob: float


_Tops = Annotated[list[ClaimedTop], Field(max_length=MAX_PROMPT_LOGPROBS, fail_fast=True)]


class ClaimedLogprob(ClaimedTop):
    """A token of an answer."""

    top_logprobs: _Tops


class ClaimedPromptLogprob(_Claimed):
    """A token of the prompt."""

    token: _Text
    token_id: _Count
    bytes: _Bytes | None
    text_offset: _Count
    logprob: float | None
    top_logprobs: _Tops


_PromptLogprobs = Annotated[
    list[ClaimedPromptLogprob], Field(max_length=MAX_PROMPT_LOGPROBS, fail_fast=True)
]


class ClaimedChoice(_Claimed):
    """A choice."""

    index: _Count
    message: ClaimedMessage
    finish_reason: FinishReason
    token_ids: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]],
        Field(
            max_length=MAX_NEW_TOKENS,
            fail_fast=True,
            description="The tokens of the answer: a task with `return_token_ids` has them.",
        ),
        ALL_WHOLE,
    ]
    logprobs: (
        Annotated[list[ClaimedLogprob], Field(max_length=MAX_NEW_TOKENS, fail_fast=True)] | None
    ) = None
    stop_string: _Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_token_ids(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("token_ids") is None:
            raise rule(
                "is required: a response can be verified if its task was run with "
                "return_token_ids: true",
                "token_ids",
            )
        return fields


class ClaimedUsage(_Claimed):
    """How many tokens the task took."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count


class ClaimedReceiptChoice(_Claimed):
    """What a receipt says of how a choice was computed."""

    index: _Count
    token_ids_digest: _Text
    trace: _Text | None


class ClaimedReceipt(_Claimed):
    """What a receipt says of how the answer was computed: see `ExecutionRecord`.

    Its signature and its other digests are compared by who has the request as it was sent.
    """

    version: Literal[1]
    dtype: _Text
    quantize_bits: _Count | None
    layout: _Text | None
    choices: Annotated[
        list[ClaimedReceiptChoice],
        Field(min_length=1, max_length=MAX_RETURN_SEQUENCES, fail_fast=True),
    ]


class ClaimedResponse(_Claimed):
    """A response of the form of `TaskResponse`, with the `token_ids` of each choice.

    `logprobs`, `prompt_logprobs`, `prompt_text`, `prompt_token_ids` and how the answer was computed
    by its `receipt` are compared where they are given. Fields that a response of this server does
    not have are not looked at.
    """

    model: _Text
    choices: Annotated[
        list[ClaimedChoice],
        Field(min_length=1, max_length=MAX_RETURN_SEQUENCES, fail_fast=True),
    ]
    usage: ClaimedUsage
    system_fingerprint: _Text | None = None
    prompt_text: _Text | None = None
    prompt_token_ids: TokenIds | None = None
    prompt_logprobs: _PromptLogprobs | None = None
    receipt: ClaimedReceipt | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for place, choice in enumerate(self.choices):
            if choice.index != place:
                raise rule(
                    f"must be {place}: choices are in the order of their index, from 0",
                    "choices",
                    str(place),
                    "index",
                )
        return self


_Tolerance = Annotated[
    float,
    Field(
        ge=0,
        description="By how much a claimed token may have lost, and by how much a number such as "
        "a log probability may differ. 0: not at all.",
    ),
]


class Claim(NamedTuple):
    """What is claimed to be the answer to a task, and how exactly it has to be."""

    response: ClaimedResponse
    tolerance: float = 0.0


class VerificationRequest(BaseModel):
    """A task and a response that is claimed to be its answer."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "task": {
                        "model": "gpt2",
                        "messages": [{"role": "user", "content": "Count from 1 to 5."}],
                        "return_token_ids": True,
                        "seed": 42,
                    },
                    "response": {
                        "model": "gpt2",
                        "choices": [
                            {
                                "index": 0,
                                "message": {"role": "assistant", "content": " 1, 2"},
                                "token_ids": [352, 11, 362, 50256],
                                "finish_reason": "stop",
                            }
                        ],
                        "usage": {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12},
                        "system_fingerprint": "fp_12559359b47a",
                    },
                    "tolerance": 0.0,
                }
            ]
        },
    )

    task: Task = Field(description="The task that was run.")
    response: ClaimedResponse = Field(description="What is claimed to be its answer.")
    tolerance: _Tolerance = 0.0

    @property
    def claim(self) -> Claim:
        """The request without its task."""
        return Claim(self.response, self.tolerance)

    @classmethod
    def parse(cls, body: bytes | str) -> Self:
        """The request in `body`, which is JSON. Raises `TaskArgsInvalid`, and nothing else."""
        return cls.from_fields(parse_json(body))

    @classmethod
    def from_fields(cls, fields: Any) -> Self:
        """The request with these fields, checked as JSON is. Raises `TaskArgsInvalid`."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise explain(error, cls, _DIALECT) from None

    @staticmethod
    def in_own_terms(error: TaskError) -> TaskError:
        """The error of running the task, whose ``param`` is then a field of the request."""
        if error.param is None:
            return error
        return type(error)(error.message, f"task.{error.param}", error.retry_after_s)


def claim_of(response: Any, tolerance: float = 0.0) -> Claim:
    """A claim, checked as strictly as that of a request.

    Args:
        response: a `TaskResponse` with token ids, or any dictionary.
        tolerance: see `VerificationRequest`.

    Raises:
        TaskArgsInvalid: it has not the form of a response, or no token ids.
    """
    try:
        return _ClaimFields.model_validate({"response": response, "tolerance": tolerance}).claim
    except ValidationError as error:
        raise explain(error, _ClaimFields, _DIALECT) from None


class _ClaimFields(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    response: ClaimedResponse
    tolerance: _Tolerance

    @property
    def claim(self) -> Claim:
        return Claim(self.response, self.tolerance)


_DIALECT = replace(
    TASK_DIALECT,
    noun="verification",
    advice={},
    inner={**TASK_DIALECT.inner, "task": Task},
)


@with_config(extra="forbid", strict=True, allow_inf_nan=False)
class TokenDifference(TypedDict):
    """A token that is not the one that this system draws.

    The tokens before it are those of the claim.
    """

    choice: Annotated[int, Field(ge=0)]
    position: Annotated[int, Field(ge=0, description="Its place in the answer, from 0.")]
    claimed: Annotated[
        int | None, Field(description="The claimed token; null if the claim has ended before.")
    ]
    expected: Annotated[
        int | None,
        Field(description="The token that is drawn here; null if the answer has ended before."),
    ]
    margin: Annotated[
        float | None,
        Field(
            ge=0,
            description="By how much the claimed token lost: greedily the difference of the two "
            "scores, sampled that of log(probability) - log(noise). null if it could not have been "
            "drawn at all, or if it is not known because the task ran as a whole.",
        ),
    ]


_Reported = Annotated[
    str | int | float | None, Field(description="Clipped; null if there is no such value.")
]


@with_config(extra="forbid", strict=True, allow_inf_nan=False)
class ResponseDifference(TypedDict):
    """A field of the response that is not what its tokens make of it."""

    field: Annotated[str, Field(description="Such as choices.0.message.content.")]
    claimed: _Reported
    expected: _Reported


@with_config(extra="forbid", strict=True, allow_inf_nan=False)
class Verdict(TypedDict):
    """What a verification has found.

    `exact`: the response is the answer of this system to the task, token by token and field by
    field. `within_tolerance`: it is not, but each difference is within the tolerance; the first one
    is named. `different`: it is not; the first difference beyond the tolerance is named.
    """

    model: Annotated[str, Field(min_length=1, description="The model that verified.")]
    verdict: Literal["exact", "within_tolerance", "different"]
    first_difference: Annotated[
        TokenDifference | None,
        Field(description="By choice, then by position. null if no token differs."),
    ]
    response_differences: Annotated[
        list[ResponseDifference],
        Field(
            max_length=MAX_RESPONSE_DIFFERENCES,
            description="Further differences, the first ones. Those of a choice whose tokens are "
            "different are not among them: they follow from its tokens.",
        ),
    ]
    tokens_checked: Annotated[
        int, Field(ge=0, description="Claimed tokens that were compared with what is drawn.")
    ]
    prompt_tokens: Annotated[int, Field(ge=0)]
    system_fingerprint: Annotated[str, Field(description="Of the system that verified.")]
    same_fingerprint: Annotated[
        bool | None, Field(description="Whether the response has the same; null if it has none.")
    ]
