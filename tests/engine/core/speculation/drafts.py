"""Drafts of all kinds, made from the answers that are known: right, wrong, and made to mislead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.engine.core.speculation.random_tasks import Vocabulary

MOST = 64
"""Tokens of the longest draft that is made here."""


@dataclass(frozen=True)
class Place:
    """Where a draft is asked for.

    Attributes:
        following: the tokens that will follow, as far as the answer goes.
        rng: for this draft.
        vocabulary: of the model.
    """

    following: Sequence[int]
    rng: Random
    vocabulary: Vocabulary

    def other(self, token: int) -> int:
        """Another token than this one."""
        return (token + 1 + self.rng.randrange(self.vocabulary.size - 1)) % self.vocabulary.size

    def any(self, count: int) -> list[int]:
        """Random tokens, special ones among them."""
        return [self.rng.randrange(self.vocabulary.size) for _ in range(count)]


def _right(place: Place) -> list[int]:
    return list(place.following)


def _wrong(place: Place) -> list[int]:
    return [place.other(token) for token in place.following] or place.any(3)


def _all_but_one(place: Place) -> list[int]:
    draft = list(place.following)
    if draft:
        wrong = place.rng.randrange(min(len(draft), 8))
        draft[wrong] = place.other(draft[wrong])
    return draft


def _right_then_garbage(place: Place) -> list[int]:
    right = place.following[: place.rng.randrange(8)]
    return [*right, *place.any(MOST)]


def _too_long(place: Place) -> list[int]:
    """On and on behind the answer's end."""
    return [*place.following, *([place.vocabulary.end] * 2), *place.any(8), *place.following]


def _ends(place: Place) -> list[int]:
    """The answer is said to end here, or after some right tokens."""
    right = place.following[: place.rng.choice([0, 0, 3])]
    return [*right, *([place.vocabulary.end] * 5)]


def _images(place: Place) -> list[int]:
    right = place.following[: place.rng.choice([0, 2])]
    image = place.vocabulary.end if place.vocabulary.image is None else place.vocabulary.image
    return [*right, *([image] * 5), *place.following[len(right) + 5 :]]


def _again(place: Place) -> list[int]:
    """One token again and again, as loops of a model are guessed."""
    return (place.any(1) if place.rng.random() < 0.5 else list(place.following[:1])) * 9


def _now_and_then(place: Place) -> list[int]:
    """Nothing mostly: speculation stops and begins again."""
    kind = place.rng.random()
    if kind < 0.5:
        return []
    return _right(place)[: place.rng.randrange(1, 9)] if kind < 0.8 else place.any(3)


def _anything(place: Place) -> list[int]:
    """Another kind each time."""
    return place.rng.choice(list(DRAFTS.values())[:-1])(place)


DRAFTS: dict[str, Callable[[Place], list[int]]] = {
    "right": _right,
    "wrong": _wrong,
    "all but one": _all_but_one,
    "right then garbage": _right_then_garbage,
    "too long": _too_long,
    "ends": _ends,
    "images": _images,
    "again": _again,
    "now and then": _now_and_then,
    "anything": _anything,
}


# --- What an answer is said to begin with --------------------------------------------------------

Answers = list[list[int]]


def _changed(answers: Answers, rng: Random, vocabulary: Vocabulary) -> Answers:
    """One token of each answer is another one."""
    return [_all_but_one(Place(answer, rng, vocabulary)) for answer in answers]


def _dropped(answers: Answers, rng: Random, _: Vocabulary) -> Answers:
    made = [list(answer) for answer in answers]
    for answer in made:
        if answer:
            del answer[rng.randrange(len(answer))]
    return made


def _longer(answers: Answers, rng: Random, vocabulary: Vocabulary) -> Answers:
    return [_too_long(Place(answer, rng, vocabulary)) for answer in answers]


def _no_tokens(answers: Answers, rng: Random, vocabulary: Vocabulary) -> Answers:
    """Numbers that are the ids of no token, behind right ones."""
    strange = [-1, vocabulary.size, vocabulary.size + 10**6, 2**31, 2**40, -(2**63)]
    return [[*answer[: rng.randrange(4)], *rng.sample(strange, 3)] for answer in answers]


KNOWN: dict[str, Callable[[Answers, Random, Vocabulary], Answers]] = {
    "right": lambda answers, *_: answers,
    "truncated": lambda answers, rng, _: [a[: rng.randrange(len(a) + 1)] for a in answers],
    "changed": _changed,
    "dropped": _dropped,
    "too long": _longer,
    "garbage": lambda answers, rng, vocabulary: [
        Place((), rng, vocabulary).any(len(answer) + 3) for answer in answers
    ],
    "no tokens": _no_tokens,
    "of others": lambda answers, *_: answers[::-1],
    "too many": lambda answers, *_: [*answers, *answers, [1, 2, 3]],
    "the last only": lambda answers, *_: [*([] for _ in answers[:-1]), *answers[-1:]],
    "nothing": lambda *_: [],
}
