"""Stop strings as OpenAI's clients expect them: not part of the answer that they end."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringTrimmer:
    """Cuts one choice's text before the stop string that is complete first.

    The engine ends a choice with the token that completes a stop string, which is part of its text,
    and by then has given out the string's beginning. So text in which a stop string may begin is
    held back here. What comes out, joined, is a function of the whole text alone, not of the pieces
    that it came in.

    Attributes:
        found: the stop string, once it is complete.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what is certain to be part of the answer, which may be empty."""
        if self.found is not None:
            return ""
        text = self._held + text
        starts = ((text.find(stop), stop) for stop in self._stop_strings)
        # If two are complete at the same place, the longer one counts.
        ends = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        sure = len(text) - max((_begun(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[sure:]
        return text[:sure]

    def flush(self) -> str:
        """What is still held back: call once, after the last text."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many characters of ``stop`` stand at the end of ``text``, if not all."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
