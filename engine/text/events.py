"""What the readers of formats emit: pieces of content, of reasoning and of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from engine.text.cursor import Reading, TextCursor
from schema.tool_choice import Functions


class Event(NamedTuple):
    """A piece of a message. ``call`` begins a call of the function ``text``; the ``arguments``
    that follow, joined, are those of this call.
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str


class Out:
    """Collects events.

    Calls after the first ``most_calls`` are left out, whole: their text is no content either,
    because it is in the model's own form.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        self._events: list[Event] = []
        self._most_calls = most_calls
        self.num_calls = 0

    def content(self, text: str) -> None:
        """Text of the answer."""
        self._events.append(Event("content", text))

    def reasoning(self, text: str) -> None:
        """Text of the reasoning before the answer."""
        self._events.append(Event("reasoning", text))

    def call(self, name: str) -> None:
        """The beginning of a call."""
        self.num_calls += 1
        self._of_call(Event("call", name))

    def arguments(self, text: str) -> None:
        """A piece of the last call's arguments."""
        self._of_call(Event("arguments", text))

    def _of_call(self, event: Event) -> None:
        if self._most_calls is None or self.num_calls <= self._most_calls:
            self._events.append(event)

    def taken(self) -> Iterator[Event]:
        """The events since the last time; empty pieces are left out."""
        events, self._events = self._events, []
        return (event for event in events if event.text or event.kind == "call")


CallReader = Callable[[TextCursor, Out, Functions], Reading[None]]
"""Reads a whole answer that may have calls in it, and emits what it finds."""


class CallLayout(NamedTuple):
    """How a model writes calls. One call is ``before``, the name, ``between``, the arguments as a
    JSON object, ``after``. An answer with several calls is ``begin``, the calls with ``separator``
    between them, ``end``.
    """

    before: str
    between: str
    after: str
    separator: str
    begin: str = ""
    end: str = ""

    @property
    def quotes_name(self) -> bool:
        """Whether the name is written as a JSON string."""
        return self.before.endswith('"')


class ToolFormat(NamedTuple):
    """A way to write calls of tools.

    Attributes:
        name: what the model's card calls it.
        markers: texts that are special tokens in some vocabularies, and must not be hidden.
        read: its reader.
        layout: how it is written; None where the arguments are not JSON.
    """

    name: str
    markers: tuple[str, ...]
    read: CallReader
    layout: CallLayout | None
