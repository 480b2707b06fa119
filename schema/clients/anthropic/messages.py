"""The messages of the Messages API, and what they are in a task."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from schema.clients.anthropic.content import (
    AssistantContent,
    Base64Source,
    ImageBlock,
    System,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserContent,
)
from schema.clients.conversation import Block, Conversation
from schema.clients.fields import Strict
from schema.clients.images import image_block
from schema.task import MAX_MESSAGES

USER_TAG, ASSISTANT_TAG, SYSTEM_TAG = ("<user>", "<assistant>", "<system>")


class UserMessage(Strict):
    """What the user says; results of tools too."""

    role: Literal["user"]
    content: UserContent

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation: each result of a tool is a message of its own, in order."""
        if isinstance(self.content, str):
            told.say("user", path, self.content)
            return
        rest: list[Block] = []
        for index, block in enumerate(self.content):
            here = f"{path}.{index}"
            if isinstance(block, ToolResultBlock):
                if rest:
                    told.say("user", path, rest)
                    rest = []
                result = shown(block.content, f"{here}.content")
                told.say("tool", f"{here}.content", result, block.tool_use_id)
            elif (made := _block(block, here)) is not None:
                rest.append(made)
        if rest or not any(isinstance(block, ToolResultBlock) for block in self.content):
            told.say("user", path, rest or "")


class AssistantMessage(Strict):
    """What the model wrote in an earlier answer."""

    role: Literal["assistant"]
    content: AssistantContent

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation: its texts are one text, as chat completions get it back."""
        told.turn(path)
        blocks = [] if isinstance(self.content, str) else self.content
        text = self.content if isinstance(self.content, str) else self.text
        for index, block in enumerate(blocks):
            if isinstance(block, ThinkingBlock):
                told.reason(f"{path}.{index}", block.thinking)
        if text:
            told.answer(path, text)
        for index, block in enumerate(blocks):
            if isinstance(block, ToolUseBlock):
                arguments = json.dumps(block.input, ensure_ascii=False)
                told.call(f"{path}.{index}", block.id, block.name, arguments)

    @property
    def text(self) -> str:
        """Its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(block.text for block in self.content if isinstance(block, TextBlock))

    @property
    def calls(self) -> bool:
        """Whether it calls tools."""
        return any(isinstance(block, ToolUseBlock) for block in self.content)


class SystemMessage(Strict):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: System

    def tell(self, told: Conversation, path: str) -> None:
        """Add it to a conversation."""
        told.say("system", path, shown(self.content, path))


_ROLES = {"user": USER_TAG, "assistant": ASSISTANT_TAG, "system": SYSTEM_TAG}


def _role_tag(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, Mapping) else getattr(value, "role", None)
    return _ROLES.get(role) if isinstance(role, str) else None


AnyMessage = Annotated[
    Annotated[UserMessage, Tag(USER_TAG)]
    | Annotated[AssistantMessage, Tag(ASSISTANT_TAG)]
    | Annotated[SystemMessage, Tag(SYSTEM_TAG)],
    Discriminator(
        _role_tag,
        custom_error_type="message_role",
        custom_error_message='must be "user", "assistant" or "system"; results of tools are '
        "blocks of a user's message",
    ),
]
Messages = Annotated[list[AnyMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]

INNER: dict[str | int, type[BaseModel]] = {
    USER_TAG: UserMessage,
    ASSISTANT_TAG: AssistantMessage,
    SYSTEM_TAG: SystemMessage,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def shown(content: str | Sequence[Any] | None, path: str) -> str | list[Block]:
    """Texts and images as the content of a task's message; ``path`` leads to them.

    Empty texts say nothing and are left out.
    """
    if content is None or isinstance(content, str):
        return content or ""
    made = [_block(block, f"{path}.{index}") for index, block in enumerate(content)]
    return [block for block in made if block is not None] or ""


def _block(block: TextBlock | ImageBlock, path: str) -> Block | None:
    if isinstance(block, TextBlock):
        return Block({"type": "text", "text": block.text}, f"{path}.text") if block.text else None
    if isinstance(block.source, Base64Source):
        image = {"type": "image", "base64": block.source.data}
        return Block(image, f"{path}.source.data")
    return Block(image_block(block.source.url), f"{path}.source.url")
