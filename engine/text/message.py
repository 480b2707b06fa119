"""An answer's text as a message: content, reasoning, calls of tools.

It runs on the caller's side, choice by choice, on text that may come in any pieces. The joined
deltas are a function of the text alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Self

from engine.text.cursor import Reading, TextCursor
from engine.text.detect import MessageFormats
from engine.text.events import Out
from engine.text.reasoning import Stage
from engine.text.stop_strings import StopStringTrimmer, StopWatch, TextWatch
from schema.answers.response import Delta, FinishReason, ToolCallDelta
from schema.task import Task
from schema.tool_choice import Functions, functions_of

CALL_ID_CHARS = 9
"""Mistral's templates take ids of nine letters and digits and no others."""


class MessageParser:
    """Makes the message of one choice from its text."""

    def __init__(
        self,
        formats: MessageFormats | None,
        functions: Functions,
        stop_strings: Sequence[str],
        call_id: Callable[[int], str],
        *,
        is_open: bool = False,
        one_call: bool = False,
    ) -> None:
        """Begin a message.

        Args:
            formats: of the model; None if the answer is plain text.
            functions: those that may be called.
            stop_strings: the message ends before the first of them in its content.
            call_id: the id of a call, from its number.
            is_open: whether the prompt has begun the reasoning.
            one_call: whether calls after the first are left out.
        """
        self._cut = StopStringTrimmer(stop_strings)
        self._out = Out(most_calls=1 if one_call else None)
        self._call_id = call_id
        self._num_told = 0
        self._reading = _read(formats, functions, self._out, is_open)
        next(self._reading)

    def push(self, text: str, reason: FinishReason | None) -> tuple[Delta, FinishReason | None]:
        """Add text, and with the last piece the reason why the text ends.

        Returns what that adds to the message, and why the message ends.
        """
        if text:
            self._reading.send(text)
        if reason is not None:
            with suppress(StopIteration):
                self._reading.send(None)
        delta = self._delta()
        if reason is not None:
            delta["content"] += self._cut.flush()
            # Text whose meaning only the end has settled may hold a stop string.
            if self._cut.found is not None:
                reason = "stop"
            if reason == "stop" and self._num_told:
                reason = "tool_calls"
        return delta, reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended the message; None if none has."""
        return self._cut.found

    def _delta(self) -> Delta:
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCallDelta] = []
        arguments: list[list[str]] = []
        for kind, text in self._out.taken():
            if self._cut.found is not None:
                break  # the message has ended
            if kind == "content":
                content.append(self._cut.push(text))
            elif kind == "reasoning":
                reasoning.append(text)
            elif kind == "call":
                calls.append(self._call(text))
                arguments.append([])
            else:
                if not calls:
                    calls.append({"index": self._num_told - 1, "function": {"arguments": ""}})
                    arguments.append([])
                arguments[-1].append(text)
        for call, pieces in zip(calls, arguments, strict=True):
            call["function"]["arguments"] = "".join(pieces)
        delta: Delta = {"role": "assistant", "content": "".join(content)}
        if reasoning:
            delta["reasoning_content"] = "".join(reasoning)
        if calls:
            delta["tool_calls"] = calls
        return delta

    def _call(self, name: str) -> ToolCallDelta:
        index = self._num_told
        self._num_told += 1
        return {
            "index": index,
            "id": self._call_id(index),
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }


class ContentWatch:
    """Looks for stop strings in the content of a message, while its text arrives.

    It reads the text as `MessageParser` does, so the two agree on what is content. What is found is
    a function of the text alone. Where only later text tells whether some text is content, such as
    white space before what may be a call, a stop string in it is found with that later text.
    """

    def __init__(self, begin: Callable[[Out], Reading[None]], stop_strings: Sequence[str]) -> None:
        """``begin`` begins to read a text."""
        self._begin = begin
        self._stop_strings = stop_strings
        self._text = ""
        self._reading: Reading[None] | None = None  # None where the text is still to be read
        self._out, self._cut = Out(), StopStringTrimmer(stop_strings)
        self.found = False

    def push(self, text: str) -> None:
        """Add text."""
        self._text += text
        if self.found or not text:
            return
        if self._reading is None:
            self._out, self._cut = Out(), StopStringTrimmer(self._stop_strings)
            self._reading = self._begin(self._out)
            next(self._reading)
            text = self._text
        self._reading.send(text)
        for event in self._out.taken():
            if event.kind == "content":
                self._cut.push(event.text)
        self.found = self._cut.found is not None

    def peek(self, text: str) -> None:
        """Nothing: text that may still change is not read."""

    def fork(self) -> Self:
        """A copy that has seen the same text. It reads it anew, as coroutines cannot be copied."""
        twin = copy(self)
        twin._reading = None
        return twin


def stop_watch(
    formats: MessageFormats, task: Task, text_end: str, stop_strings: Sequence[str]
) -> StopWatch:
    """What ends a task's choices at stop strings: those in the text, or in a message's content.

    The arguments are those of `message_parsers`.
    """
    functions = functions_of(task.tools)
    has_parts = formats.reasoning or (formats.tools and functions)
    if (
        task.answer_format == "text"
        or not stop_strings
        or not task.use_chat_template
        or not has_parts
    ):
        return TextWatch(stop_strings)
    is_open = reasoning_stage(formats, task, text_end) == "open"
    return ContentWatch(lambda out: _read(formats, functions, out, is_open), stop_strings)


def message_parsers(
    formats: MessageFormats,
    task: Task,
    token_ids: tuple[int, ...],
    text_end: str,
    *,
    num_choices: int,
    stop_strings: Sequence[str],
) -> list[MessageParser]:
    """The parsers of a task's choices. Without the chat template answers are plain text.

    Args:
        formats: of the model.
        task: the task.
        token_ids: of its prompt.
        text_end: the last characters of its prompt, where a template may begin the reasoning.
        num_choices: how many parsers to make.
        stop_strings: each message ends before the first of them.
    """
    # Ids tell the calls of one conversation apart; each of its turns is a task with another prompt.
    digest = hashlib.sha256(repr((task.seed, token_ids)).encode()).hexdigest()

    def call_id(choice: int) -> Callable[[int], str]:
        return lambda call: hashlib.sha256(f"{digest} {choice} {call}".encode()).hexdigest()[
            :CALL_ID_CHARS
        ]

    return [
        MessageParser(
            formats if task.use_chat_template else None,
            functions_of(task.tools),
            stop_strings,
            call_id(choice),
            is_open=reasoning_stage(formats, task, text_end) == "open",
            one_call=not task.parallel_tool_calls,
        )
        for choice in range(num_choices)
    ]


def reasoning_stage(formats: MessageFormats, task: Task, text_end: str) -> Stage:
    """Where the answers to a task stand when they begin; "over" if the model marks no reasoning.

    ``text_end`` has the last characters of the prompt, where a template may begin the reasoning.
    """
    if not task.use_chat_template or formats.reasoning is None:
        return "over"
    continues = bool((task.template_args or {}).get("continue_final_message"))
    continued = task.messages[-1].text if continues else None
    return formats.reasoning.stage(text_end, continued)


def _read(
    formats: MessageFormats | None, functions: Functions, out: Out, is_open: bool
) -> Reading[None]:
    source = TextCursor()
    if formats and formats.reasoning:
        yield from formats.reasoning.read(source, out, is_open=is_open)
    if formats and formats.tools and functions:
        yield from formats.tools.read(source, out, functions)
    else:
        yield from source.rest(out.content)
