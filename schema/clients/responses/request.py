"""``POST /v1/responses``: the request.

The fields are those of OpenAI's API reference
(https://platform.openai.com/docs/api-reference/responses) and the settings that chat completions
take beside them. Each is honoured, a hint, or refused by name.
"""

import re
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from schema.clients.conversation import Conversation
from schema.clients.fields import Hint, Only, Strict, not_yet, published
from schema.clients.offered import OfferedTool, in_request
from schema.clients.request import ClientRequest
from schema.clients.responses import items, tools
from schema.clients.responses import text as forms
from schema.clients.responses.items import AdditionalToolsItem, Items, MessageItem
from schema.clients.responses.text import TextConfig, structured_output
from schema.clients.responses.tools import FlatTools, ToolChoice, offered, task_choice
from schema.clients.terms import SETTINGS, Renames, renamed
from schema.generation import MaxNewTokens, NumLogprobs
from schema.message import BLOCKS_TAG, MAX_TEXT_CHARS, TEXT_TAG, JsonObject
from schema.task import MAX_EFFORT_CHARS, Task

MAX_METADATA = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_CHARS = 512
"""Of each value; these three are OpenAI's."""
LOGPROBS = "message.output_text.logprobs"
Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]

_EXAMPLES: list[Any] = [
    {
        "model": "demo",
        "input": "Count from 3 to 9.",
        "temperature": 0,
        "max_output_tokens": 64,
    },
    {
        "model": "Qwen/Qwen3-8B",
        "instructions": "Answer in one word.",
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "What is the capital of Peru?"}],
            }
        ],
        "text": {"format": {"type": "text"}},
        "seed": 42,
        "stream": True,
        "store": False,
    },
]
_PATHS: Renames = (
    *SETTINGS,
    (re.compile(r"^tool_choice\.function\b"), "tool_choice.name"),
    (re.compile(r"\bstructured_output\.schema\b"), "text.format.schema"),
    (re.compile(r"\bstructured_output\b"), "text.format"),
)
_CACHE = "Beginnings of prompts are kept for all, and a kept one does not change the answer."
_STATE = "is not supported: nothing is stored; send the earlier items in input"


def _input_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return BLOCKS_TAG if isinstance(value, list) else None


class ResponsesStreamOptions(Strict):
    """What a stream has beside its events."""

    include_obfuscation: Annotated[
        Any, Hint("Events are not padded; their sizes show those of the texts.")
    ] = None
    reasoning_summary_delivery: Annotated[Any, Hint("The answer has the reasoning itself.")] = None


class Reasoning(Strict):
    """How the model should reason."""

    effort: Annotated[str, Field(max_length=MAX_EFFORT_CHARS)] | None = Field(
        default=None, description="As reasoning_effort of chat completions."
    )
    summary: Annotated[Any, Hint("The answer has the reasoning itself.")] = None
    generate_summary: Annotated[Any, Hint("An older name for summary.")] = None
    context: Annotated[Any, Hint("The model's template decides it.")] = None
    mode: Annotated[Any, Hint("There is one mode.")] = None


class ResponsesRequest(ClientRequest, json_schema_extra=published(_EXAMPLES)):
    """A conversation to continue, as clients of OpenAI's Responses API send it."""

    inner: ClassVar[dict[str | int, type[BaseModel]]] = {
        **items.INNER,
        **forms.INNER,
        **tools.INNER,
        "reasoning": Reasoning,
        "stream_options": ResponsesStreamOptions,
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "max_new_tokens": "max_output_tokens",
        "max_length": "max_output_tokens",
        "messages": "input",
        "system": "instructions",
        "response_format": "text",
        "structured_output": "text",
        "reasoning_effort": "reasoning",
        "logprobs": "include",
    }
    message: ClassVar[type[BaseModel]] = MessageItem
    free_form: ClassVar[tuple[str, ...]] = ("tools", "chat_template_kwargs", "text")
    messages_field: ClassVar[str] = "input"

    input: Annotated[
        Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT_TAG)]
        | Annotated[Items, Tag(BLOCKS_TAG)],
        Discriminator(
            _input_tag,
            custom_error_type="content_type",
            custom_error_message="must be a string or an array of items",
        ),
    ] = Field(
        description="What the user says, or the items of the conversation so far. An empty array "
        "is the same as an empty string."
    )
    instructions: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | None = Field(
        default=None, description="A system message before the input."
    )
    max_output_tokens: MaxNewTokens | None = Field(
        default=None, description="The most tokens of the answer, reasoning included."
    )
    tools: FlatTools | None = Field(
        default=None,
        description="Functions that the model may call. Tools of other types are hints: the model "
        "does not get them.",
    )
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="none: the model does not get the tools. required, or a function: the answer "
        "is calls, or one call of it, and the arguments are valid under its parameters.",
    )
    parallel_tool_calls: bool | None = Field(
        default=None, description="false: the answer makes one call at most."
    )
    text: TextConfig | None = None
    include: Annotated[list[Included], Field(max_length=MAX_METADATA, fail_fast=True)] | None = (
        Field(
            default=None,
            description=f"{LOGPROBS}: report the log probability of every token. The others ask "
            "for what no answer has here, and are hints.",
        )
    )
    top_logprobs: NumLogprobs | None = Field(
        default=None,
        description=f"With {LOGPROBS}, report this many of the most probable tokens too.",
    )
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS)],
                Annotated[str, Field(max_length=MAX_METADATA_CHARS)],
            ],
            Field(max_length=MAX_METADATA),
        ]
        | None
    ) = Field(default=None, description="The answer has it too; it is not stored.")
    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Further variables for the chat template."
    )
    stream_options: ResponsesStreamOptions | None = None
    reasoning: Reasoning | None = None
    previous_response_id: Annotated[Any, Only(_STATE)] = None
    conversation: Annotated[Any, Only(_STATE)] = None
    background: Annotated[Any, Only("is not supported: nothing is stored", (False,))] = None
    prompt: Annotated[Any, Only("is not supported: no templates are stored; use input")] = None
    context_management: Annotated[Any, Hint("The model gets all that is sent.")] = None
    moderation: Annotated[Any, not_yet()] = None
    client_metadata: Annotated[Any, Hint("Nothing of it is kept.")] = None
    background_options: Annotated[Any, Hint("Nothing runs in the background.")] = None
    access_programs: Annotated[Any, Hint("There are none here.")] = None
    image: Annotated[Any, Hint("Images are prepared as their model does it.")] = None
    max_tool_calls: Annotated[Any, Hint("It counts built-in tools, which are not here.")] = None
    truncation: Annotated[Any, Hint("No item is dropped; too many are refused.")] = None
    store: Annotated[Any, Hint("Nothing is stored.")] = None
    service_tier: Annotated[Any, Hint("There is one tier.")] = None
    user: Annotated[Any, Hint("An end user; nothing of it is kept.")] = None
    safety_identifier: Annotated[Any, Hint("OpenAI's newer name for user.")] = None
    prompt_cache_key: Annotated[Any, Hint(_CACHE)] = None
    prompt_cache_options: Annotated[Any, Hint(_CACHE)] = None
    prompt_cache_retention: Annotated[Any, Hint(_CACHE)] = None

    @property
    def limit(self) -> tuple[str, int | None]:
        """The name of the field that limits the tokens to generate, and its value."""
        return "max_output_tokens", self.max_output_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each token; None to report no log probabilities."""
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    def renamed(self, text: str) -> str:
        """A message or a path of a task's error, with the names of this request's fields."""
        text = in_request(self._told.renamed(text), self.offered)
        return renamed(text, self.limit[0], _PATHS)

    def task(self, seed: int, number: int = 0) -> Task:
        """The task that this request means."""
        given = () if self.tool_choice == "none" else self.offered
        return self._task(
            seed,
            messages=self._told.messages(),
            tools=[tool.value for tool in given] or None,
            tool_choice=task_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            template_args=self.chat_template_kwargs,
            reasoning_effort=self.reasoning.effort if self.reasoning is not None else None,
            structured_output=structured_output(self.text),
        )

    @cached_property
    def offered(self) -> list[OfferedTool]:
        """The functions that the model may call, those of the request first."""
        found = [*offered(self.tools or (), "tools")]
        for index, item in enumerate(self._items):
            if isinstance(item, AdditionalToolsItem):
                found += offered(item.tools, f"input.{index}.tools")
        return found

    @property
    def _items(self) -> Items:
        return [] if isinstance(self.input, str) else self.input

    @cached_property
    def _told(self) -> Conversation:
        told = Conversation("input")
        if self.instructions:
            told.say("system", "instructions", self.instructions)
        for index, item in enumerate(self._items):
            item.tell(told, f"input.{index}")
        if all(isinstance(item, AdditionalToolsItem) for item in self._items):
            told.say("user", "input", self.input if isinstance(self.input, str) else "")
        return told
