"""``POST /v1/chat/completions``: the request.

The fields are those of OpenAI's API reference (https://platform.openai.com/docs/api-reference/chat)
and, beside them, settings that other servers take in the same place. Each is honoured or refused by
name.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, Field, model_validator

from schema.generation import MaxNewTokens, NumLogprobs
from schema.message import JsonObject, rule
from schema.openai import response_format as formats
from schema.openai import tool_choice as choices
from schema.openai.fields import Only, not_yet
from schema.openai.messages import ChatMessage, Function
from schema.openai.request import MAX_USER_CHARS, OpenAIRequest
from schema.openai.response_format import ResponseFormat, structured_output
from schema.openai.tool_choice import ToolChoice, task_choice
from schema.task import MAX_MESSAGES, MAX_TOOLS, Task

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


class ChatCompletionRequest(OpenAIRequest, json_schema_extra={"examples": _EXAMPLES}):
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
    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Further variables for the chat template."
    )
    safety_identifier: Annotated[str, Field(max_length=MAX_USER_CHARS)] | None = Field(
        default=None, description="OpenAI's newer name for user."
    )
    logprobs: bool | None = Field(
        default=None, description="Report the log probability of every token."
    )
    top_logprobs: NumLogprobs | None = Field(
        default=None,
        description="With logprobs: true, report this many of the most probable tokens too.",
    )
    response_format: ResponseFormat | None = Field(
        default=None, description="The form that every choice has to have."
    )
    parallel_tool_calls: bool | None = Field(
        default=None,
        description='false: tool_choice "required" means one call. Not with "auto".',
    )
    modalities: Annotated[Any, Only('must be ["text"]', (["text"],))] = None
    store: Annotated[Any, Only("is not supported: nothing is stored", (False,))] = None
    metadata: Annotated[Any, Only("is not supported: nothing is stored", ({},))] = None
    service_tier: Annotated[
        Any, Only("is not supported; there is one tier", ("auto", "default"))
    ] = None
    functions: Annotated[Any, Only("is not supported; use tools")] = None
    function_call: Annotated[Any, Only("is not supported; use tool_choice")] = None
    reasoning_effort: Annotated[
        Any, not_yet("is not supported; use chat_template_kwargs where the model's template can")
    ] = None
    audio: Annotated[Any, not_yet()] = None
    moderation: Annotated[Any, not_yet()] = None
    prediction: Annotated[Any, not_yet()] = None
    prompt_cache_key: Annotated[Any, not_yet()] = None
    prompt_cache_options: Annotated[Any, not_yet()] = None
    prompt_cache_retention: Annotated[Any, not_yet()] = None
    verbosity: Annotated[Any, not_yet()] = None
    web_search_options: Annotated[Any, not_yet()] = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise rule("means the same as max_completion_tokens; leave it out", "max_tokens")
        return self

    @model_validator(mode="after")
    def _logprobs_that_are_wanted(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise rule("has a meaning only with logprobs: true; leave it out", "top_logprobs")
        return self

    @model_validator(mode="after")
    def _strict_where_calls_are_forced(self) -> Self:
        if self.tool_choice in (None, "auto"):
            for index, tool in enumerate(self.tools or ()):
                if tool["function"].get("strict"):
                    problem = 'needs tool_choice "required" or a function; leave it out'
                    raise rule(problem, "tools", str(index), "function", "strict")
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
            template_args=self.chat_template_kwargs,
            structured_output=structured_output(self.response_format),
        )
