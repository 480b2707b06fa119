"""What every skill produces: one question with its answer."""

import re
from dataclasses import dataclass

from demo.data.shapes import Drawing


@dataclass(frozen=True)
class Turn:
    """A question, the images that come with it, and the answer to learn."""

    question: str
    answer: str
    drawings: tuple[Drawing, ...] = ()
    accepted: str | None = None
    """A regular expression of all right answers, if there are others than the one to learn."""

    def accepts(self, answer: str) -> bool:
        """Whether `answer` is right, to the letter."""
        if self.accepted is None:
            return answer == self.answer
        return re.fullmatch(self.accepted, answer) is not None
