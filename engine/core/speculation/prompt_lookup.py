"""Guesses the next tokens by what followed the same tokens earlier, in the prompt or the answer.

Answers often repeat: a summary quotes its text, an edit copies the code. The method is known as
prompt lookup: https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 12
"""How many last tokens are looked at to find the place that is most like the end."""


class Match(NamedTuple):
    """What followed the last tokens of a sequence when they occurred before.

    Attributes:
        tokens: that followed; none if these last tokens are new.
        length: how many last tokens are those of the earlier place, at most `LONGEST`.
    """

    tokens: list[int]
    length: int


class PromptLookup:
    """The tokens of one sequence, its prompt first, in a form that is quick to search."""

    def __init__(self, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
        self._tokens = np.empty(len(prompt_ids) + max_new_tokens, dtype=np.int32)
        self._tokens[: len(prompt_ids)] = prompt_ids
        self._prompt_tokens = self._count = len(prompt_ids)

    def read(self, token_ids: Sequence[int]) -> None:
        """Take the tokens of the answer so far; those that were read before do not change."""
        known = self._count - self._prompt_tokens
        stop = self._prompt_tokens + len(token_ids)
        self._tokens[self._count : stop] = token_ids[known:]
        self._count = stop

    def match(self, after: Sequence[int], limit: int) -> Match:
        """What may follow the tokens that were read and ``after``; at most ``limit`` tokens."""
        tokens = np.append(self._tokens[: self._count], after) if after else self._tokens
        end = self._count + len(after)
        places = np.flatnonzero(tokens[: end - 1] == tokens[end - 1])
        if not len(places):
            return Match([], 0)
        length = 1
        while length < LONGEST:
            longer = places[places >= length]
            longer = longer[tokens[longer - length] == tokens[end - 1 - length]]
            if not len(longer):
                break
            places, length = longer, length + 1
        start = int(places[-1]) + 1
        return Match(tokens[start : min(start + limit, end)].tolist(), length)
