"""Vocabulary that the training conversations draw from: the lists of `vocabulary/`, a word a line.

The order of a list matters: a seed chooses by position.
"""

import random
from pathlib import Path


def lines(name: str) -> list[str]:
    """The lines of one list."""
    path = Path(__file__).parent / "vocabulary" / f"{name}.txt"
    return path.read_text(encoding="utf-8").splitlines()


# To spell, to repeat, and to ask about.
WORDS = lines("words")
ANIMALS = lines("animals")
NAMES = lines("names")

# For questions that the model cannot answer.
PLACES = lines("places")
PEOPLE = lines("people")
TOPICS = lines("topics")
VERBS = lines("verbs")
ADJECTIVES = lines("adjectives")

# What invented words are made of.
_ONSETS = [*"bcdfghjklmnprstvwz", "br", "ch", "cl", "dr", "fl", "gr", "pl", "pr", "sh", "sk", "sl"]
_ONSETS += ["st", "th", "tr"]
_VOWELS = [*"aeiouaeio", "ai", "ea", "ee", "oo", "ou"]
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "ck", "nd", "st", "ng", "x", "p"]


def invented_word(rng: random.Random) -> str:
    """A word that is not in any list, so that the model cannot rely on knowing all words."""
    syllables = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.randint(1, 3))
    )
    return "".join(syllables)
