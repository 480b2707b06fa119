"""The text of an answer, read by a coroutine while it arrives."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Reading = Generator[None, str | None, T]
"""A coroutine that is sent pieces of text, and None at the end. What it decides is a function of
the whole text alone, not of how the text was cut into pieces."""

Give = Callable[[str], None]
"""Takes text that is certain, as soon as it is."""

WHITE = " \t\r\n"
_WHITE = re.compile(rf"[{WHITE}]*")


class TextCursor:
    """Text that has arrived and is not read yet. Each character is read once."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._held: list[str] | None = None

    def more(self) -> Reading[bool]:
        """Wait for more text; False at its end."""
        if not self._ended:
            piece = yield
            self._ended = piece is None
            self._text, self._at = self._text[self._at :] + (piece or ""), 0
        return not self._ended

    def peek(self) -> Reading[str]:
        """The next character, which stays unread; empty at the end."""
        while self._at == len(self._text):
            if not (yield from self.more()):
                return ""
        return self._text[self._at]

    def take(self, count: int) -> str:
        """Read characters that have arrived."""
        taken = self._text[self._at : self._at + count]
        self._at += count
        if self._held is not None:
            self._held.append(taken)
        return taken

    def accept(self, word: str) -> Reading[bool]:
        """Read ``word`` if it is what comes next."""
        while not self._text.startswith(word, self._at):
            waiting = len(self._text) - self._at
            if waiting >= len(word) or not word.startswith(self._text[self._at :]):
                return False
            if not (yield from self.more()):
                return False
        self.take(len(word))
        return True

    def run(self, characters: re.Pattern[str], give: Give) -> Reading[bool]:
        """Read as many characters as match the pattern; returns whether there were any.

        The pattern is one class of characters with a ``*``.
        """
        found = False
        while True:
            match = characters.match(self._text, self._at)
            if match and match.end() > self._at:
                give(self.take(match.end() - self._at))
                found = True
            if self._at < len(self._text) or not (yield from self.more()):
                return found

    def space(self) -> Reading[str]:
        """Read white space, if there is any."""
        spaces: list[str] = []
        yield from self.run(_WHITE, spaces.append)
        return "".join(spaces)

    def rest(self, give: Give) -> Reading[None]:
        """Read everything that is left."""
        while True:
            give(self.take(len(self._text) - self._at))
            if not (yield from self.more()):
                return

    def until(
        self, marker: str, give: Give, *, loose: str = WHITE, before: str = ""
    ) -> Reading[str | None]:
        """Read up to and including ``marker``.

        Args:
            marker: where to stop.
            give: takes the text before it, without the ``loose`` characters at its very end.
            loose: characters whose meaning depends on whether the marker follows.
            before: such characters that have been read already.

        Returns:
            the loose characters before the marker. None where the text ends without the marker:
            then all of the text has been given out.
        """
        held = [before]
        while True:
            found = self._text.find(marker, self._at)
            stop = found if found >= 0 else len(self._text) - self._begun(marker)
            text = self.take(stop - self._at)
            if solid := text.rstrip(loose):
                give("".join(held) + solid)
                held = []
            held.append(text[len(solid) :])
            if found >= 0:
                self.take(len(marker))
                return "".join(held)
            if not (yield from self.more()):
                give("".join(held) + self.take(len(self._text) - self._at))
                return None

    def hold(self, text: str = "") -> None:
        """From now on keep ``text`` and what is read, in case it has to be given out later."""
        self._held = [text]

    def release(self) -> str:
        """End a `hold` and return what has been read since; empty if there was no `hold`."""
        held, self._held = self._held or [], None
        return "".join(held)

    def unread(self) -> None:
        """End a `hold` and put what has been read since back as unread text."""
        self._text, self._at = self.release() + self._text[self._at :], 0

    def _begun(self, marker: str) -> int:
        """How many characters of ``marker`` stand at the end, if not all."""
        longest = min(len(marker) - 1, len(self._text) - self._at)
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._text.endswith(marker[:n])), 0)
