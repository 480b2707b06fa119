"""The answer to a task: one `TaskResponse`, or `StreamChunk`s, which `collect` makes into one.

These are `TypedDict`s and not models, so that the engine's hot path makes plain dictionaries and
its own output is not validated. The JSON Schemas are made from the same definitions.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NotRequired

from pydantic import Field, with_config
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from schema.answers.receipt import ExecutionRecord, Receipt
from schema.answers.usage import Count as _Count
from schema.answers.usage import FinishReason as FinishReason
from schema.answers.usage import Usage as Usage

_Model = Annotated[str, Field(min_length=1, description="The model that answered.")]
_Fingerprint = Annotated[
    str,
    Field(
        description="Stands for all that may change an answer's bytes apart from the task: "
        "versions, device, dtype. The same task and the same fingerprint give the same bytes."
    ),
]


_Reasoning = Annotated[
    str, Field(description="What the model wrote between its markers of reasoning.")
]
_Arguments = Annotated[
    str,
    Field(description="As the model wrote them: mostly a JSON object, which may be cut or wrong."),
]
_CallId = Annotated[
    str, Field(min_length=1, description="A function of the task and the call's place.")
]


@with_config(extra="forbid", strict=True)
class FunctionCall(TypedDict):
    """A function of the task's tools, and what it is called with."""

    name: str
    arguments: _Arguments


@with_config(extra="forbid", strict=True)
class ToolCall(TypedDict):
    """A call of a tool."""

    id: _CallId
    type: Literal["function"]
    function: FunctionCall


@with_config(extra="forbid", strict=True)
class ResponseMessage(TypedDict):
    """The message that the model generated.

    With the task's `answer_format` "text" all of it is `content`, tool calls and reasoning in the
    model's own form. With "message" they have fields of their own, which are absent where empty.
    """

    role: Literal["assistant"]
    content: str
    reasoning_content: NotRequired[_Reasoning]
    tool_calls: NotRequired[Annotated[list[ToolCall], Field(min_length=1)]]


_Token = Annotated[
    str, Field(description="Its text. U+FFFD stands for bytes that are not a whole character.")
]
_Bytes = Annotated[
    list[Annotated[int, Field(ge=0, le=255)]] | None,
    Field(
        description="Its UTF-8 bytes, to be joined where a character is spread over several "
        "tokens. null for a token without text, such as a special token."
    ),
]
_Logprob = Annotated[
    float,
    Field(
        description="Natural logarithm of its probability by the model's own logits, before "
        "temperature, penalties, bias and the like. -9999.0 stands for all lower values."
    ),
]


@with_config(extra="forbid", strict=True, allow_inf_nan=False)
class TopLogprob(TypedDict):
    """A token that could have been sampled."""

    token: _Token
    token_id: _Count
    bytes: _Bytes
    logprob: _Logprob


@with_config(extra="forbid", strict=True, allow_inf_nan=False)
class TokenLogprob(TypedDict):
    """A token of the answer, with the most probable ones in its place, the most probable first.

    The fields are those of OpenAI's `logprobs.content`, and `token_id`.
    """

    token: _Token
    token_id: _Count
    bytes: _Bytes
    logprob: _Logprob
    top_logprobs: list[TopLogprob]


@with_config(extra="forbid", strict=True, allow_inf_nan=False)
class PromptTokenLogprob(TypedDict):
    """A token of the prompt, with the most probable ones in its place, the most probable first.

    Of the first token `logprob` is null and `top_logprobs` is empty: nothing comes before it.
    """

    token: _Token
    token_id: _Count
    bytes: _Bytes
    text_offset: Annotated[
        int, Field(ge=0, description="Where it begins in the prompt's text, in characters.")
    ]
    logprob: _Logprob | None
    top_logprobs: list[TopLogprob]


_PromptText = Annotated[
    str,
    Field(
        description="The prompt's text, where the task has `echo`: as it was tokenized, or the "
        "token ids decoded as those of an answer are. In a stream it is in the first chunk."
    ),
]
_PromptLogprobs = Annotated[
    list[PromptTokenLogprob],
    Field(
        min_length=1,
        description="The tokens of the prompt, image placeholders included, where "
        "`generation_config.prompt_logprobs` asks for them. In a stream they are in the first "
        "chunk.",
    ),
]
_PromptTokenIds = Annotated[
    list[_Count],
    Field(
        description="The tokens of the prompt, image placeholders included, where the task has "
        "`return_token_ids`. In a stream they are in the first chunk."
    ),
]
_Logprobs = Annotated[
    list[TokenLogprob],
    Field(
        description="The tokens in order, where `generation_config.logprobs` asks for them. An "
        "end-of-sequence token is among them only beside the `token_ids`, of which each has an "
        "entry then, or the `prompt_logprobs`. In a stream, those of the text so far that no "
        "earlier chunk has reported."
    ),
]

_TokenIds = Annotated[
    list[_Count],
    Field(
        description="The tokens of the answer in order, a token that ends it included, where the "
        "task has `return_token_ids`. In a stream, those that no earlier chunk has reported."
    ),
]


_Receipt = Annotated[
    Receipt,
    Field(
        description="What was asked and answered, and how, signed by the server: where the task "
        "has `receipt`. In a stream it is in the last chunk."
    ),
]
_Record = Annotated[ExecutionRecord, SkipJsonSchema()]
"""Between an engine and its server, which makes the receipt of it: no client gets it."""

_StopString = Annotated[
    str,
    Field(
        min_length=1,
        description="The stop string that ended the choice, if one did and it was cut off: where "
        'the task\'s `answer_format` is "message".',
    ),
]


@with_config(extra="forbid", strict=True)
class Choice(TypedDict):
    """One of the `num_return_sequences` answers, complete."""

    index: _Count
    message: ResponseMessage
    logprobs: NotRequired[_Logprobs]
    token_ids: NotRequired[_TokenIds]
    stop_string: NotRequired[_StopString]
    finish_reason: FinishReason


@with_config(extra="forbid", strict=True)
class TaskResponse(TypedDict):
    """The answer to a task. `choices` are in the order of their `index`."""

    model: _Model
    prompt_text: NotRequired[_PromptText]
    prompt_token_ids: NotRequired[_PromptTokenIds]
    prompt_logprobs: NotRequired[_PromptLogprobs]
    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage
    system_fingerprint: NotRequired[_Fingerprint]
    receipt: NotRequired[_Receipt]
    record: NotRequired[_Record]


@with_config(extra="forbid", strict=True)
class FunctionCallDelta(TypedDict):
    """`name` is there when the call begins; `arguments` grow."""

    name: NotRequired[str]
    arguments: _Arguments


@with_config(extra="forbid", strict=True)
class ToolCallDelta(TypedDict):
    """What was added to the call of that `index`; `id` and `type` are there when it begins."""

    index: _Count
    id: NotRequired[_CallId]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta


@with_config(extra="forbid", strict=True)
class Delta(TypedDict):
    """What was added to a choice's message. `content` is empty if only other fields grew."""

    role: Literal["assistant"]
    content: str
    reasoning_content: NotRequired[_Reasoning]
    tool_calls: NotRequired[Annotated[list[ToolCallDelta], Field(min_length=1)]]


@with_config(extra="forbid", strict=True)
class StreamChoice(TypedDict):
    """What was added to one choice; `finish_reason` is null until the choice's last chunk."""

    index: _Count
    delta: Delta
    logprobs: NotRequired[_Logprobs]
    token_ids: NotRequired[_TokenIds]
    stop_string: NotRequired[_StopString]
    finish_reason: FinishReason | None


@with_config(extra="forbid", strict=True)
class StreamChunk(TypedDict):
    """A piece of the answer. A choice's deltas, joined, are its message in `TaskResponse`.

    A chunk holds the choices that grew or ended since the last one, in the order of their `index`.
    """

    model: _Model
    prompt_text: NotRequired[_PromptText]
    prompt_token_ids: NotRequired[_PromptTokenIds]
    prompt_logprobs: NotRequired[_PromptLogprobs]
    choices: Annotated[list[StreamChoice], Field(min_length=1)]
    usage: Usage
    system_fingerprint: NotRequired[_Fingerprint]
    receipt: NotRequired[_Receipt]
    record: NotRequired[_Record]


def collect(chunks: Iterable[StreamChunk]) -> TaskResponse:
    """The response that a task's chunks add up to: whole answers are made of the same chunks."""
    deltas: dict[int, list[Delta]] = {}
    reasons: dict[int, FinishReason] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    token_ids: dict[int, list[int]] = {}
    stop_strings: dict[int, str] = {}
    prompt_text: str | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[PromptTokenLogprob] | None = None
    last: Mapping[str, object] | None = None
    for chunk in chunks:
        last = chunk
        prompt_text = chunk.get("prompt_text", prompt_text)
        prompt_token_ids = chunk.get("prompt_token_ids", prompt_token_ids)
        prompt_logprobs = chunk.get("prompt_logprobs", prompt_logprobs)
        for choice in chunk["choices"]:
            deltas.setdefault(choice["index"], []).append(choice["delta"])
            if (reason := choice["finish_reason"]) is not None:
                reasons[choice["index"]] = reason
            if "logprobs" in choice:
                logprobs.setdefault(choice["index"], []).extend(choice["logprobs"])
            if "token_ids" in choice:
                token_ids.setdefault(choice["index"], []).extend(choice["token_ids"])
            if "stop_string" in choice:
                stop_strings[choice["index"]] = choice["stop_string"]
    if last is None or set(deltas) != set(reasons):
        raise ValueError("the stream ended before every choice was finished")
    choices: list[Choice] = [
        {
            "index": index,
            "message": joined(deltas[index]),
            "finish_reason": reasons[index],
        }
        for index in sorted(deltas)
    ]
    for whole in choices:
        if whole["index"] in logprobs:
            whole["logprobs"] = logprobs[whole["index"]]
        if whole["index"] in token_ids:
            whole["token_ids"] = token_ids[whole["index"]]
        if whole["index"] in stop_strings:
            whole["stop_string"] = stop_strings[whole["index"]]
    response: TaskResponse = {
        "model": chunk["model"],
        "choices": choices,
        "usage": chunk["usage"],
        "system_fingerprint": chunk["system_fingerprint"],
    }
    if prompt_text is not None:
        response["prompt_text"] = prompt_text
    if prompt_token_ids is not None:
        response["prompt_token_ids"] = prompt_token_ids
    if prompt_logprobs is not None:
        response["prompt_logprobs"] = prompt_logprobs
    if "receipt" in chunk:
        response["receipt"] = chunk["receipt"]
    if "record" in chunk:
        response["record"] = chunk["record"]
    return response


def joined(deltas: Iterable[Delta]) -> ResponseMessage:
    """The message that a choice's deltas add up to."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        content.append(delta["content"])
        reasoning.append(delta.get("reasoning_content", ""))
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            if "id" in call:
                empty: FunctionCall = {"name": function["name"], "arguments": ""}
                calls.append({"id": call["id"], "type": "function", "function": empty})
                arguments.append([])
            arguments[call["index"]].append(function["arguments"])
    for whole, pieces in zip(calls, arguments, strict=True):
        whole["function"]["arguments"] = "".join(pieces)
    message: ResponseMessage = {"role": "assistant", "content": "".join(content)}
    if any(reasoning):
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message
