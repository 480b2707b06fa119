"""Prompt lookup finds the place that is most like the end, as a search of all places does."""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.core.speculation.prompt_lookup import LONGEST, PromptLookup


def _searched(tokens: Sequence[int], limit: int) -> tuple[list[int], int]:
    """The same, by comparing every earlier place with the end."""
    best, after = 0, 0
    for place in range(1, len(tokens)):
        length = 0
        while length < min(LONGEST, place) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length and length >= best:
            best, after = length, place
    return list(tokens[after : after + limit]) if best else [], best


def test_it_finds_what_a_search_of_all_places_finds() -> None:
    rng = random.Random(1)
    for _ in range(300):
        alphabet = rng.choice([2, 4, 30])
        prompt = [rng.randrange(alphabet) for _ in range(rng.randrange(1, 40))]
        lookup, answer = PromptLookup(prompt, 40), list[int]()
        while len(answer) < 30:
            after = [rng.randrange(alphabet) for _ in range(rng.choice([0, 0, 2]))]
            limit = rng.randrange(1, 9)
            found = lookup.match(after, limit)
            assert (found.tokens, found.length) == _searched([*prompt, *answer, *after], limit)
            answer += [rng.randrange(alphabet) for _ in range(rng.randrange(1, 5))]
            lookup.read(answer)
