"""``POST /v1/messages``: the request.

The fields are those of Anthropic's API reference (https://docs.anthropic.com/en/api/messages) and
the settings that chat completions take beside OpenAI's. Each is honoured, a hint, or refused by
name.
"""

import re
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from schema.clients.anthropic import content, messages, tools
from schema.clients.anthropic.content import CACHE, System
from schema.clients.anthropic.messages import AssistantMessage, Messages, UserMessage, shown
from schema.clients.anthropic.tools import (
    AnyTool,
    NoChoice,
    OutputConfig,
    Tool,
    ToolChoice,
    one_call,
    task_choice,
)
from schema.clients.conversation import Conversation
from schema.clients.fields import Hint, Only, forced_calls, published
from schema.clients.offered import OfferedTool, in_request
from schema.clients.request import ClientRequest
from schema.clients.terms import SETTINGS, Renames, renamed
from schema.generation import MAX_STOP_STRINGS, MaxNewTokens, StopString
from schema.message import JsonObject
from schema.task import MAX_TOOLS, Task

_EXAMPLES: list[Any] = [
    {
        "model": "demo",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "Count from 3 to 9."}],
        "temperature": 0,
    },
    {
        "model": "Qwen/Qwen3-8B",
        "max_tokens": 200,
        "system": "Answer in one word.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is the capital of Peru?"}]}
        ],
        "stop_sequences": ["\n"],
        "metadata": {"user_id": "alice"},
        "seed": 42,
        "stream": True,
    },
]
_PATHS: Renames = (
    (re.compile(r"\bgeneration_config\.stop_strings\b"), "stop_sequences"),
    *SETTINGS,
    (re.compile(r"\bparallel_tool_calls\b"), "tool_choice.disable_parallel_tool_use"),
    (re.compile(r"^tool_choice\.function\b"), "tool_choice.name"),
    (re.compile(r"\b(tools\.\d+)\.parameters\b"), r"\1.input_schema"),
    (re.compile(r"\bstructured_output\.schema\b"), "output_config.format.schema"),
    (re.compile(r"\bstructured_output\b"), "output_config.format"),
)
_FORCED: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"enum": ["any", "tool"]}},
    "required": ["type"],
}


class MessagesRequest(
    ClientRequest, json_schema_extra=published(_EXAMPLES, [forced_calls(_FORCED)])
):
    """A conversation to continue, as clients of Anthropic's Messages API send it."""

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {
        **content.INNER,
        **messages.INNER,
        **tools.INNER,
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "max_new_tokens": "max_tokens",
        "max_completion_tokens": "max_tokens",
        "max_tokens_to_sample": "max_tokens",
        "stop": "stop_sequences",
        "stop_strings": "stop_sequences",
        "instructions": "system",
        "response_format": "output_config",
        "output_format": "output_config",
        "structured_output": "output_config",
        "parameters": "input_schema",
    }
    message: ClassVar[type[BaseModel]] = UserMessage
    free_form: ClassVar[tuple[str, ...]] = ("tools", "chat_template_kwargs", "output_config")

    max_tokens: MaxNewTokens
    messages: Messages
    system: System | None = Field(default=None, description="A system message before the others.")
    stop_sequences: (
        Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)] | None
    ) = Field(default=None, description="Texts that end the answer; they are not part of it.")
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        default=None,
        description="Functions that the model may call. Tools of other types are hints: the model "
        "does not get them.",
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="The arguments of forced calls are valid under input_schema."
    )
    output_config: OutputConfig | None = None
    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Further variables for the chat template."
    )
    thinking: Annotated[
        Any, Hint("chat_template_kwargs has the switches of a model's template.")
    ] = None
    cache_control: Annotated[Any, Hint(CACHE)] = None
    metadata: Annotated[Any, Hint("Nothing is stored.")] = None
    service_tier: Annotated[Any, Hint("There is one tier.")] = None
    speed: Annotated[Any, Hint("There is one speed.")] = None
    diagnostics: Annotated[Any, Hint("There are none here.")] = None
    context_management: Annotated[Any, Hint("The model gets all that is sent.")] = None
    user_profile_id: Annotated[Any, Hint("Nothing of it is kept.")] = None
    workspace_id: Annotated[Any, Hint("There are no workspaces here.")] = None
    thread: Annotated[Any, Only("is not supported: nothing is stored; send all messages")] = None
    compaction: Annotated[Any, Only("is not supported; ask for a summary in the messages")] = None
    fallbacks: Annotated[Any, Hint("No other model answers.")] = None
    fallback_credit_token: Annotated[Any, Hint("There are no credits here.")] = None
    billing_policy: Annotated[Any, Hint("There are no bills here.")] = None
    mcp_servers: Annotated[Any, Hint("Nothing calls them; the model gets no tools of them.")] = None
    container: Annotated[Any, Only("is not supported: there are no containers")] = None
    inference_geo: Annotated[Any, Only("is not supported: the server is where it is")] = None

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_tokens", self.max_tokens

    def renamed(self, text: str) -> str:
        """A message or a path of a task's error, with the names of this request's fields."""
        text = in_request(self._told.renamed(text), self.offered)
        return renamed(text, self.limit[0], _PATHS)

    def task(self, seed: int, number: int = 0) -> Task:
        """The task that this request means."""
        given = () if isinstance(self.tool_choice, NoChoice) else self.offered
        form = self.output_config.format if self.output_config is not None else None
        return self._task(
            seed,
            messages=self._told.messages(),
            tools=[tool.value for tool in given] or None,
            tool_choice=task_choice(self.tool_choice),
            parallel_tool_calls=not one_call(self.tool_choice),
            template_args=self._template_args(),
            reasoning_effort=self.output_config.effort if self.output_config is not None else None,
            structured_output=form and {"type": "json_schema", "schema": form.json_schema},
        )

    def _generation_config(self) -> dict[str, Any]:
        return super()._generation_config() | {"stop_strings": self.stop_sequences or None}

    def _template_args(self) -> dict[str, Any] | None:
        """As with Anthropic, the answer continues a last message of the assistant."""
        last = self.messages[-1]
        if isinstance(last, AssistantMessage) and last.text and not last.calls:
            return {"continue_final_message": True} | (self.chat_template_kwargs or {})
        return self.chat_template_kwargs

    @cached_property
    def offered(self) -> list[OfferedTool]:
        """The functions that the model may call."""
        return [
            tool.offered(f"tools.{number}")
            for number, tool in enumerate(self.tools or ())
            if isinstance(tool, Tool)
        ]

    @cached_property
    def _told(self) -> Conversation:
        told = Conversation("messages")
        if self.system:
            told.say("system", "system", shown(self.system, "system"))
        for index, message in enumerate(self.messages):
            message.tell(told, f"messages.{index}.content")
        return told
