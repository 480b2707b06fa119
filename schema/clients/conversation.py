"""A task's messages, built from the parts of a request that has another form of conversation.

Each message keeps where it stands in the request, so that an error of the task can name the
request's own fields.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from schema.message import ImageBlock

_IN_MESSAGE = re.compile(r"\bmessages\.([0-9]{1,6})((?:\.\w+)*)")
_MESSAGES = re.compile(r"\bmessages\b(?!\.\d)")
_BLOCK = 2
"""How many names a path has that leads from a message to one of its blocks or calls."""


@dataclass(frozen=True)
class Block:
    """A text or an image, as a task has it, and the path to its field in the request."""

    value: dict[str, str] | ImageBlock
    path: str

    @property
    def text(self) -> str | None:
        """The text; None of an image."""
        return self.value.get("text") if isinstance(self.value, dict) else None


@dataclass
class _Said:
    """A message and the paths of its parts in the request."""

    role: str
    path: str
    content: str | list[Block] | None = None
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    call_paths: list[str] = field(default_factory=list)
    call_id: str | None = None
    name: str | None = None

    def fields(self) -> dict[str, Any]:
        content: Any = self.content
        if isinstance(content, list):
            content = [block.value for block in content]
        if content is None and not self.calls:
            content = ""  # an answer that was all reasoning, or cut before it said anything
        made = {
            "role": self.role,
            "name": self.name,
            "content": content,
            "tool_call_id": self.call_id,
            "tool_calls": self.calls or None,
            "reasoning_content": "".join(self.reasoning) or None,
        }
        return {name: value for name, value in made.items() if value is not None}

    def renamed(self, names: list[str]) -> str:
        kind, index = names[0] if names else "", names[1] if len(names) >= _BLOCK else ""
        parts: Sequence[str] = ()
        if kind == "content" and isinstance(self.content, list):
            parts = [block.path for block in self.content]
        elif kind == "tool_calls":
            parts = self.call_paths
        if index.isdecimal() and int(index) < len(parts):
            return parts[int(index)]
        return self.path


class Conversation:
    """The messages of a task, in order."""

    def __init__(self, name: str) -> None:
        """Begin a conversation; ``name`` is the field of the request that has it."""
        self._name = name
        self._said: list[_Said] = []
        self._answer: _Said | None = None

    def say(
        self,
        role: str,
        path: str,
        content: str | list[Block],
        call_id: str | None = None,
        name: str | None = None,
    ) -> None:
        """Add a message that is not the model's: of the system, the user or a tool."""
        self._answer = None
        self._said.append(_Said(role, path, content, call_id=call_id, name=name))

    def answer(self, path: str, content: str | list[Block]) -> None:
        """Add what the model wrote. It continues the model's message if that has only reasoning."""
        said = self._answer
        if said is None or said.content is not None or said.calls:
            said = self._begun(path)
        said.path, said.content = path, content

    def reason(self, path: str, text: str) -> None:
        """Add reasoning of the model, with which a message of it begins."""
        said = self._answer
        if said is None or said.content is not None or said.calls:
            said = self._begun(path)
        said.reasoning.append(text)

    def call(self, path: str, call_id: str, name: str, arguments: str) -> None:
        """Add a call to the model's message, as chat completions write it."""
        said = self._answer or self._begun(path)
        said.calls.append(
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        )
        said.call_paths.append(path)

    def turn(self, path: str) -> None:
        """Begin a message of the model; what it says next belongs to it."""
        self._begun(path)

    def messages(self) -> list[dict[str, Any]]:
        """The messages, as fields of a task."""
        return [said.fields() for said in self._said]

    def renamed(self, text: str) -> str:
        """A text in which paths lead to the request's fields instead of a task's messages."""
        return _MESSAGES.sub(self._name, _IN_MESSAGE.sub(self._place, text))

    def _begun(self, path: str) -> _Said:
        said = self._answer = _Said("assistant", path)
        self._said.append(said)
        return said

    def _place(self, found: re.Match[str]) -> str:
        index, names = int(found[1]), found[2].split(".")[1:]
        return self._said[index].renamed(names) if index < len(self._said) else self._name
