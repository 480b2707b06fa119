"""Which tokens may come next in an answer, and how likely that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from engine.core.speculation.prompt_lookup import PromptLookup
from engine.requests.request import Request, SequenceState

FORCED = 0
"""The kind of guess that a grammar makes; the others are the lengths of `_LENGTHS`."""

_LENGTHS = (1, 2, 3, 5, 8)  # of matches that are alike
# How often a guess of each kind is right, before a task has shown how it is there. As recorded
# answers of SmolLM2-135M to the workloads of `benchmarks.speculation` have it, a little lower.
_FIRST_CHANCE = {FORCED: 0.9, 1: 0.3, 2: 0.5, 3: 0.65, 5: 0.8, 8: 0.9}
_FIRST_WEIGHT = 6.0  # guesses that this counts for
_FORGETTING = 0.97  # of what was seen, with each guess
_LOWEST_CHANCE = 0.05
"""A guess that is less likely is not made: its row costs a little even where it is padding."""
_PAUSE = 24  # tokens after which a kind of guess that failed is tried once more


class Guess(NamedTuple):
    """Tokens that may come next.

    Attributes:
        tokens: in order.
        chances: of each, that it and all before it are right; they never grow.
    """

    tokens: Sequence[int]
    chances: Sequence[float]


@dataclass
class _Kind:
    """How often one kind of guess was right in a task lately."""

    right: float
    made: float
    skipped: int = 0

    @property
    def chance(self) -> float:
        """That the next token of such a guess is right."""
        return self.right / self.made

    def learn(self, num_right: int, num_wrong: int) -> None:
        """Take the outcome of a guess."""
        self.right = self.right * _FORGETTING + num_right
        self.made = self.made * _FORGETTING + num_right + num_wrong

    def pause(self) -> bool:
        """Whether not to guess now; counts the guesses that were not made."""
        if self.chance >= _LOWEST_CHANCE:
            return False
        self.skipped += 1
        if self.skipped % _PAUSE:
            return True
        self.right, self.made = _LOWEST_CHANCE, 1.0  # one try; if it fails, the next pause begins
        return False


@dataclass
class _State:
    """What is kept of one sequence."""

    lookup: PromptLookup
    kinds: dict[int, _Kind]
    made: list[int] = field(default_factory=list)  # the kind of each token of the last guess


class Guesser:
    """Guesses the next tokens of sequences, and learns from what came.

    Sequences of a task learn together, because they answer the same prompt.
    """

    def __init__(self) -> None:
        self._states: WeakKeyDictionary[SequenceState, _State] = WeakKeyDictionary()
        self._kinds: WeakKeyDictionary[Request, dict[int, _Kind]] = WeakKeyDictionary()

    def guess(self, request: Request, sequence: SequenceState, limit: int) -> Guess:
        """At most ``limit`` tokens that may follow those of a sequence; all of them are read."""
        state = self._state(request, sequence)
        state.lookup.read(sequence.token_ids)
        tokens: list[int] = []
        kinds: list[int] = []
        if sequence.matcher is not None:
            tokens = sequence.matcher.forced()[:limit]
            kinds = [FORCED] * len(tokens)
        found, length = state.lookup.match(tokens, limit - len(tokens))
        if found:
            kind = max(k for k in _LENGTHS if k <= length)
            if not state.kinds[kind].pause():
                tokens += found
                kinds += [kind] * len(found)
        chances: list[float] = []
        chance = 1.0
        for kind in kinds:
            chance *= state.kinds[kind].chance
            if chance < _LOWEST_CHANCE:
                break
            chances.append(chance)
        state.made = kinds[: len(chances)]
        return Guess(tokens[: len(chances)], chances)

    def learn(self, sequence: SequenceState, num_drafts: int, num_right: int) -> None:
        """Take how many of the first ``num_drafts`` tokens of the last guess were right."""
        state = self._states.get(sequence)
        if state is None:
            return
        for kind in dict.fromkeys(state.made[:num_drafts]):
            tried = [n for n, made in enumerate(state.made[:num_drafts]) if made == kind]
            right = sum(n < num_right for n in tried)
            wrong = int(num_right in tried)
            if right or wrong:
                state.kinds[kind].learn(right, wrong)

    def _state(self, request: Request, sequence: SequenceState) -> _State:
        state = self._states.get(sequence)
        if state is None:
            kinds = self._kinds.get(request)
            if kinds is None:
                kinds = self._kinds[request] = {
                    kind: _Kind(chance * _FIRST_WEIGHT, _FIRST_WEIGHT)
                    for kind, chance in _FIRST_CHANCE.items()
                }
            lookup = PromptLookup(request.prompt.token_ids, request.settings.max_new_tokens)
            state = self._states[sequence] = _State(lookup, kinds)
        return state
