"""An answer of a model so far, and its comparison with a second answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

_SHOWN_AROUND = 20  # characters of both answers from where they differ
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass
class Answer:
    """One answer, which grows while it is streamed.

    Attributes:
        reasoning: from ``reasoning_content``.
        content: the answer itself.
        finish_reason: None until the answer is complete.
        prompt_tokens, completion_tokens: None until they come at the end of the stream.
    """

    reasoning: str = ""
    content: str = ""
    finish_reason: str | None = None
    seed: int | None = None
    fingerprint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def size(self) -> int:
        """Characters so far; it grows with everything that can be seen."""
        return len(self.reasoning) + len(self.content)

    @property
    def bytes(self) -> bytes:
        """The whole text, for the comparison."""
        return (self.reasoning + self.content).encode()


class Parts(NamedTuple):
    """An answer as it is shown: the thinking folded away from the text."""

    thinking: str
    text: str
    thinking_ended: bool


def parts(answer: Answer) -> Parts:
    """Thinking and text. A model whose server does not split them marks its thinking by tags."""
    if answer.reasoning:
        return Parts(answer.reasoning, answer.content, bool(answer.content))
    # The template may have written the opening tag, so that the answer has the closing one only.
    before, closed, after = answer.content.partition(_CLOSE)
    opened = before.lstrip().startswith(_OPEN)
    if not (opened or closed):
        return Parts("", answer.content, True)
    return Parts(before.strip().removeprefix(_OPEN).strip(), after.lstrip(), bool(closed))


def comparison(first: Answer, again: Answer) -> str:
    """Compares two answers to the same request, in one or two sentences of plain text."""
    one, two = first.bytes, again.bytes
    same_system = first.fingerprint == again.fingerprint
    if one == two and first.finish_reason == again.finish_reason:
        said = f"Run again with seed {again.seed}: the same {len(two)} bytes."
    elif one == two:
        said = (
            f"Run again with seed {again.seed}: the same {len(two)} bytes, but the answer ended by "
            f"{again.finish_reason!r} and not {first.finish_reason!r}."
        )
    else:
        at = next(
            (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b),
            min(len(one), len(two)),
        )
        said = (
            f"Run again with seed {again.seed}: DIFFERENT at byte {at} of {len(one)} and "
            f"{len(two)}: {_excerpt(one, at)} and then {_excerpt(two, at)}."
        )
    if not same_system:
        said += (
            f" The fingerprints differ ({first.fingerprint} and {again.fingerprint}): another "
            "system answered, which promises nothing about the bytes."
        )
    return said


def _excerpt(text: bytes, at: int) -> str:
    return repr(text[at:].decode(errors="replace")[:_SHOWN_AROUND])
