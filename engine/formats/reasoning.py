"""Reasoning that a model writes before its answer, between two markers.

``<think>...</think>`` of DeepSeek-R1, Qwen3 and many others, ``[THINK]...[/THINK]`` of Mistral's.
Some templates write the first marker themselves, at the end of the prompt.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.formats.events import Out
from engine.formats.source import WHITE, Reading, Source


class ReasoningFormat(NamedTuple):
    """A pair of markers; ``name`` is what the model's card calls it."""

    name: str
    begin: str
    end: str

    def is_open(self, prompt_end: str) -> bool:
        """Whether a prompt that ends like this has begun the reasoning."""
        return prompt_end.rstrip(WHITE).endswith(self.begin)

    def goes_on(self, message: str) -> bool:
        """Whether a message that is to be continued stands in its reasoning."""
        return message.rfind(self.begin) > message.rfind(self.end)

    def read(self, source: Source, out: Out, *, is_open: bool) -> Reading[None]:
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
