"""The items of ``input``: messages, calls, their results, reasoning, further tools.

Answers come back as items of the next request, with their ids and states, so all that an answer
may hold is taken here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from schema.clients.conversation import Conversation
from schema.clients.fields import Hint, Strict
from schema.clients.responses.content import (
    INPUT_IMAGE_TAG,
    INPUT_TEXT_TAG,
    OUTPUT_TEXT_TAG,
    REFUSAL_TAG,
    Content,
    InputImage,
    InputText,
    OutputText,
    Refusal,
    Text,
    blocks,
    written,
)
from schema.clients.responses.tools import FlatTools, qualified
from schema.message import MAX_BLOCKS, MAX_NAME_CHARS, MAX_TOOL_CALL_ID_CHARS
from schema.task import MAX_MESSAGES
from schema.tool_choice import MAX_FUNCTION_NAME_CHARS

MESSAGE_TAG, CALL_TAG, OUTPUT_TAG, REASONING_TAG, TOOLS_TAG = (
    "<message>",
    "<function call>",
    "<function call output>",
    "<reasoning>",
    "<additional tools>",
)
CallId = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_CALL_ID_CHARS)]

_Name = Annotated[str, Field(max_length=MAX_FUNCTION_NAME_CHARS)]

_ID = "Of an item that an earlier answer had."


class _Item(Strict):
    """What every item may have."""

    id: Annotated[Any, Hint(_ID)] = None
    status: Annotated[Any, Hint(_ID)] = None
    internal_chat_message_metadata_passthrough: Annotated[Any, Hint("Codex sends it.")] = None


class MessageItem(_Item):
    """A message. What an assistant says is what the model wrote in an earlier answer."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"] = Field(
        description="developer is OpenAI's newer name for system, and the same here."
    )
    content: Content
    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = Field(
        default=None,
        description="Of who speaks, as in chat completions; for chat templates that read it.",
    )
    phase: Annotated[Any, Hint("Templates do not read it.")] = None

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation."""
        if self.role == "assistant":
            told.answer(f"{path}.content", written(self.content, f"{path}.content"))
        else:
            role = "system" if self.role == "developer" else self.role
            content = blocks(self.content, f"{path}.content")
            told.say(role, f"{path}.content", content, name=self.name)


class FunctionCallItem(_Item):
    """A call that the model made in an earlier answer."""

    type: Literal["function_call"]
    call_id: CallId
    name: Annotated[str, Field(min_length=1, max_length=MAX_FUNCTION_NAME_CHARS)]
    arguments: Text
    parsed_arguments: Annotated[Any, Hint("What OpenAI's client has read in the arguments.")] = None
    caller: Annotated[Any, Hint("The model called.")] = None
    namespace: _Name | None = Field(
        default=None, description="The namespace whose function it calls."
    )

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation."""
        name = qualified(self.name, self.namespace)
        told.call(path, self.call_id, name, self.arguments)


class FunctionCallOutputItem(_Item):
    """What a function that the model called has returned."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    name: Annotated[Any, Hint("The call has it.")] = None
    namespace: Annotated[Any, Hint("The call has it.")] = None
    caller: Annotated[Any, Hint("The model called.")] = None

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation."""
        output = blocks(self.output, f"{path}.output")
        told.say("tool", f"{path}.output", output, self.call_id)


class SummaryText(Strict):
    """A summary of reasoning, as other servers write it."""

    type: Literal["summary_text"]
    text: Text


class ReasoningText(Strict):
    """Reasoning, as the model wrote it."""

    type: Literal["reasoning_text"]
    text: Text


class ReasoningItem(_Item):
    """Reasoning of an earlier answer; for chat templates that read it."""

    type: Literal["reasoning"]
    summary: Annotated[list[SummaryText], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = (
        None
    )
    content: Annotated[list[ReasoningText], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = (
        Field(default=None, description="What the model reads; without it, the summary.")
    )
    encrypted_content: Annotated[Any, Hint("Only the server that wrote it can read it.")] = None

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation."""
        texts: list[ReasoningText] | list[SummaryText] = self.content or self.summary or []
        told.reason(path, "".join(part.text for part in texts))


class AdditionalToolsItem(_Item):
    """Tools beside those of the request, of which the model knows from the beginning."""

    type: Literal["additional_tools"]
    tools: FlatTools
    role: Annotated[Any, Hint("Tools are the developer's.")] = None

    def tell(self, told: Conversation, path: str) -> None:
        """It says nothing."""


_TAGS = {
    "message": MESSAGE_TAG,
    "function_call": CALL_TAG,
    "function_call_output": OUTPUT_TAG,
    "reasoning": REASONING_TAG,
    "additional_tools": TOOLS_TAG,
}


def _item_tag(value: Any) -> str | None:
    if isinstance(value, Mapping):
        kind = value.get("type")
        if kind is None and "role" in value:
            return MESSAGE_TAG
    else:
        kind = getattr(value, "type", "message")
    return _TAGS.get(kind) if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag(MESSAGE_TAG)]
    | Annotated[FunctionCallItem, Tag(CALL_TAG)]
    | Annotated[FunctionCallOutputItem, Tag(OUTPUT_TAG)]
    | Annotated[ReasoningItem, Tag(REASONING_TAG)]
    | Annotated[AdditionalToolsItem, Tag(TOOLS_TAG)],
    Discriminator(
        _item_tag,
        custom_error_type="block_type",
        custom_error_message='must be "message", "function_call", "function_call_output" or '
        '"reasoning": nothing is stored that an item_reference could name (clients send the items '
        "themselves with store: false), and there are no built-in tools",
    ),
]
Items = Annotated[list[Item], Field(fail_fast=True, max_length=MAX_MESSAGES)]

INNER: dict[str | int, type[BaseModel]] = {
    MESSAGE_TAG: MessageItem,
    CALL_TAG: FunctionCallItem,
    OUTPUT_TAG: FunctionCallOutputItem,
    REASONING_TAG: ReasoningItem,
    TOOLS_TAG: AdditionalToolsItem,
    "summary": SummaryText,
    "content": ReasoningText,
    INPUT_TEXT_TAG: InputText,
    INPUT_IMAGE_TAG: InputImage,
    OUTPUT_TEXT_TAG: OutputText,
    REFUSAL_TAG: Refusal,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""
