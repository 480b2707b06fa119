"""An answer's text as a message: content, reasoning, calls of tools.

It runs on the caller's side, choice by choice, on text that may come in any pieces. The joined
deltas are a function of the text alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress

from engine.text.cursor import Reading, TextCursor
from engine.text.detect import MessageFormats
from engine.text.events import Out
from engine.text.reasoning import Stage
from engine.text.stop_strings import StopStringTrimmer
from schema.response import Delta, FinishReason, ToolCallDelta
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
            stop_strings: the message ends before the first of them.
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
        text = self._cut.push(text)
        if reason is not None:
            text += self._cut.flush()
        if text:
            self._reading.send(text)
        if reason is not None:
            with suppress(StopIteration):
                self._reading.send(None)
            if reason == "stop" and self._out.num_calls:
                reason = "tool_calls"
        return self._delta(), reason

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
            if kind == "content":
                content.append(text)
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
