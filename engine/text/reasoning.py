"""Reasoning that a model writes before its answer, between two markers.

``<think>...</think>`` of DeepSeek-R1, Qwen3 and many others, ``[THINK]...[/THINK]`` of Mistral's.
Some templates write the first marker themselves, at the end of the prompt.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from engine.text.cursor import WHITE, Reading, TextCursor
from engine.text.events import Out

Stage = Literal["ahead", "open", "over"]
"""Where an answer begins: may reasoning come, has the prompt begun it, or is it over?"""


class ReasoningFormat(NamedTuple):
    """A pair of markers; ``name`` is what the model's card calls it."""

    name: str
    begin: str
    end: str

    def stage(self, prompt_end: str, continued: str | None) -> Stage:
        """The stage of an answer whose prompt ends with ``prompt_end``.

        ``continued`` is the text of the message that the answer continues, if there is one.
        """
        prompt_end = prompt_end.rstrip(WHITE)
        if prompt_end.endswith(self.begin):
            return "open"
        if continued is not None:
            return "open" if continued.rfind(self.begin) > continued.rfind(self.end) else "over"
        # Templates write empty reasoning where it is switched off.
        return "over" if prompt_end.endswith(self.end) else "ahead"

    def read(self, source: TextCursor, out: Out, *, is_open: bool) -> Reading[None]:
        """Read the reasoning, if the answer begins with it; what follows is left.

        A marker anywhere else is text. White space around reasoning is part of its layout.
        """
        source.hold()
        yield from source.space()
        if not (yield from source.accept(self.begin)) and not is_open:
            source.unread()
            return
        yield from source.space()
        source.release()
        yield from source.until(self.end, out.reasoning)
        yield from source.space()


THINK = ReasoningFormat("think", "<think>", "</think>")
MISTRAL_THINK = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
