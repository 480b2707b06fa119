"""``POST /v1/chat/completions``: the request.

The fields are those of OpenAI's API reference (https://platform.openai.com/docs/api-reference/chat)
and, beside them, settings that other servers take in the same place. Each is
honoured, a hint, or refused by name.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field, model_validator

from schema.clients.fields import Hint, Only, forced_calls, not_yet, published
from schema.clients.openai import response_format as formats
from schema.clients.openai import tool_choice as choices
from schema.clients.openai.messages import ChatMessage, Function
from schema.clients.openai.other_servers import ChatSettingsOfOtherServers
from schema.clients.openai.request import BEAMS, OpenAIRequest
from schema.clients.openai.response_format import ResponseFormat, structured_output
from schema.clients.openai.tool_choice import ToolChoice, task_choice
from schema.generation import MaxNewTokens, NumLogprobs
from schema.message import JsonObject, rule
from schema.task import MAX_EFFORT_CHARS, MAX_MESSAGES, MAX_TOOLS, Task

_EXAMPLES: list[Any] = [
    {
        "model": "demo",
        "messages": [{"role": "user", "content": "Count from 3 to 9."}],
        "temperature": 0,
        "max_tokens": 64,
    },
    {
        "model": "Qwen/Qwen3-8B",
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": [{"type": "text", "text": "What is the capital of Peru?"}]},
        ],
        "seed": 42,
        "n": 2,
        "stop": ["\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": False},
    },
]


# The rules between fields, as far as JSON Schema can express them.
_FORM: dict[str, Any] = {
    "properties": {
        "response_format": {"properties": {"type": {"not": {"const": "text"}}}, "type": "object"}
    },
    "required": ["response_format"],
}
_RULES: list[dict[str, Any]] = [
    forced_calls({"not": {"enum": ["none", "auto", None]}}, BEAMS),
    {
        "$comment": "A beam search follows no form, and its tokens have no log probabilities.",
        "if": BEAMS,
        "then": {"properties": {"logprobs": {"enum": [False, None]}}, "not": _FORM},
    },
    {
        "$comment": "Alternatives are reported beside log probabilities.",
        "if": {
            "properties": {"top_logprobs": {"type": "integer", "minimum": 1}},
            "required": ["top_logprobs"],
        },
        "then": {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
    },
]

_CACHE = "Beginnings of prompts are kept for all, and a kept one does not change the answer."


class ChatCompletionRequest(
    ChatSettingsOfOtherServers, OpenAIRequest, json_schema_extra=published(_EXAMPLES, _RULES)
):
    """A conversation to continue, as OpenAI's clients send it."""

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {
        **OpenAIRequest.inner,
        **formats.INNER,
        **choices.INNER,
    }
    free_form: ClassVar[tuple[str, ...]] = ("tools", "chat_template_kwargs", "response_format")

    messages: Annotated[
        list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    ]
    max_completion_tokens: MaxNewTokens | None = Field(
        default=None, description="OpenAI's newer name for max_tokens."
    )
    tools: Annotated[list[Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        default=None,
        description="Given to the model's chat template. Calls in an unknown format stay in the "
        "answer's text.",
    )
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="none: the model does not get the tools. required, or a function: every choice "
        "is calls, or one call of it, and the arguments are valid under its parameters.",
    )
    reasoning_effort: Annotated[str, Field(max_length=MAX_EFFORT_CHARS)] | None = Field(
        default=None,
        description="For templates that read reasoning_effort, or enable_thinking, which is false "
        "for none; others do not change.",
    )
    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Further variables for the chat template."
    )
    logprobs: bool | None = Field(
        default=None, description="Report the log probability of every token."
    )
    top_logprobs: NumLogprobs | None = Field(
        default=None,
        description="With logprobs: true, report this many of the most probable tokens too; "
        "without it 0.",
    )
    response_format: ResponseFormat | None = Field(
        default=None, description="The form that every choice has to have."
    )
    parallel_tool_calls: bool | None = Field(
        default=None,
        description="false: at most one call; further ones are not told.",
    )
    modalities: Annotated[Any, Only("is not supported; there is text only", (["text"],))] = None
    functions: Annotated[Any, Only("is not supported; use tools", ([],))] = None
    function_call: Annotated[Any, Only("is not supported; use tool_choice", ("none", "auto"))] = (
        None
    )
    audio: Annotated[Any, not_yet()] = None
    moderation: Annotated[Any, not_yet()] = None
    web_search_options: Annotated[Any, not_yet()] = None
    verbosity: Annotated[Any, Hint("Say in the messages how long the answer should be.")] = None
    prediction: Annotated[Any, Hint("It could only make the same answer faster.")] = None
    store: Annotated[Any, Hint("Nothing is stored.")] = None
    metadata: Annotated[Any, Hint("Nothing is stored.")] = None
    service_tier: Annotated[Any, Hint("There is one tier.")] = None
    safety_identifier: Annotated[Any, Hint("OpenAI's newer name for user.")] = None
    prompt_cache_key: Annotated[Any, Hint(_CACHE)] = None
    prompt_cache_options: Annotated[Any, Hint(_CACHE)] = None
    prompt_cache_retention: Annotated[Any, Hint(_CACHE)] = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise rule(
                f"is {self.max_tokens}, and max_completion_tokens, which means the same, is "
                f"{self.max_completion_tokens}; leave one of them out",
                "max_tokens",
            )
        return self

    @model_validator(mode="after")
    def _logprobs_that_are_wanted(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise rule("has a meaning only with logprobs: true; leave it out", "top_logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each token; None to report no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit

    def task(self, seed: int, number: int = 0) -> Task:
        """The task that this request means."""
        return self._task(
            seed,
            messages=[message.task_fields() for message in self.messages],
            tools=None if self.tool_choice == "none" else self.tools or None,
            tool_choice=task_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            reasoning_effort=self.reasoning_effort,
            template_args=self.chat_template_kwargs,
            structured_output=structured_output(self.response_format),
            return_token_ids=bool(self.return_token_ids),
        )
