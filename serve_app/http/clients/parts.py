"""An answer's message as a row of parts, for APIs whose answers are lists of blocks or items.

A message grows in fields (`schema.answers.response.Delta`). In those APIs it is a row of parts,
each of which begins, grows and ends before the next: reasoning, text, and one for each call of a
function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from schema.answers.response import (
    Choice,
    Delta,
    StreamChoice,
    TokenLogprob,
    ToolCallDelta,
)


@dataclass
class Part:
    """One part of an answer.

    Attributes:
        index: its place.
        kind: what it is.
        pieces: its text so far; of a call, the arguments.
        logprobs: of a text: those of the answer's tokens.
        call_id: of a call.
        name: of a call: the function.
        is_whole: whether it has ended.
    """

    index: int
    kind: Literal["reasoning", "text", "call"]
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    call_id: str = ""
    name: str = ""
    is_whole: bool = False

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self.pieces)


class Change(NamedTuple):
    """What happens to a part; ``text`` and ``logprobs`` are what it grew by."""

    kind: Literal["begun", "grown", "ended"]
    part: Part
    text: str = ""
    logprobs: Sequence[TokenLogprob] = ()


class Parts:
    """Takes the deltas of one choice and tells how the parts change.

    The order is reasoning, text, calls, whatever the model writes first: a message does not say how
    text and calls were mixed, and chunks do not either, as their cuts depend on the load. Text may
    still follow a call, so calls are told when the answer ends.

    An answer that says nothing has one part, an empty text. Log probabilities are those of all
    tokens and belong to the text: those of reasoning come with the text that follows, those of
    calls are added to the text when the answer ends.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._calls: list[Part] = []
        self._logprobs: list[TokenLogprob] = []

    def push(self, choice: StreamChoice) -> Iterator[Change]:
        """The changes that a delta makes."""
        delta = choice["delta"]
        self._logprobs += choice.get("logprobs", ())
        if reasoning := delta.get("reasoning_content"):
            yield from self._grow("reasoning", reasoning)
        if delta["content"]:
            yield from self._grow("text", delta["content"])
        for call in delta.get("tool_calls", ()):
            self._keep(call)

    def end(self) -> Iterator[Change]:
        """The changes at the end of the answer."""
        if not self.parts and not self._calls:
            yield from self._begin(Part(0, "text"))
        for call in self._calls:
            begun = Part(len(self.parts), "call", call_id=call.call_id, name=call.name)
            yield from self._begin(begun)
            if call.text:
                yield self._grown(begun, call.text)
        yield from self._close()
        texts = [part for part in self.parts if part.kind == "text"]
        if texts:
            texts[-1].logprobs += self._logprobs

    def _grow(self, kind: Literal["reasoning", "text"], text: str) -> Iterator[Change]:
        if not self.parts or self.parts[-1].kind != kind:
            yield from self._begin(Part(len(self.parts), kind))
        yield self._grown(self.parts[-1], text)

    def _keep(self, call: ToolCallDelta) -> None:
        function = call["function"]
        if "id" in call:
            self._calls.append(Part(0, "call", call_id=call["id"], name=function["name"]))
        self._calls[-1].pieces.append(function["arguments"])

    def _grown(self, part: Part, text: str) -> Change:
        logprobs: list[TokenLogprob] = []
        if part.kind == "text":
            logprobs, self._logprobs = self._logprobs, []
        part.pieces.append(text)
        part.logprobs += logprobs
        return Change("grown", part, text, logprobs)

    def _begin(self, part: Part) -> Iterator[Change]:
        yield from self._close()
        self.parts.append(part)
        yield Change("begun", part)

    def _close(self) -> Iterator[Change]:
        if self.parts and not self.parts[-1].is_whole:
            self.parts[-1].is_whole = True
            yield Change("ended", self.parts[-1])


def parts_of(choice: Choice) -> list[Part]:
    """The parts of an answer that is whole."""
    message = choice["message"]
    delta: Delta = {"role": "assistant", "content": message["content"]}
    if "reasoning_content" in message:
        delta["reasoning_content"] = message["reasoning_content"]
    if "tool_calls" in message:
        delta["tool_calls"] = [
            {
                "index": index,
                "id": call["id"],
                "type": call["type"],
                "function": {**call["function"]},
            }
            for index, call in enumerate(message["tool_calls"])
        ]
    grown: StreamChoice = {"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}
    if "logprobs" in choice:
        grown["logprobs"] = choice["logprobs"]
    made = Parts()
    list(made.push(grown))
    list(made.end())
    return made.parts
