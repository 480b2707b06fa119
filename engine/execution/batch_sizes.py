"""Batch sizes at which a model's forwards give the same bits (docs/architecture.md)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class BatchInvarianceError(RuntimeError):
    """There is no usable batch size: in a batch the model cannot keep the promise."""


@dataclass(frozen=True)
class BatchSizes:
    """Batch sizes at which a forward may run, ascending. `batch_invariance` finds them.

    Within each tuple all batch sizes give the same bits. With ``can_mix_prefill_and_decode`` the
    bits are the same in both tuples: decoded tokens may then share a forward with chunks of
    prompts. ``faster`` names, for a decode size, a larger one that takes less time; it affects
    speed only. ``max_head`` is the most rows that the language model head may run on. ``seconds``
    is what a forward takes at each decode size, measured with short contexts, and
    ``attention_seconds`` what a row takes more for each token of its context.
    """

    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    max_head: int
    can_mix_prefill_and_decode: bool = False
    faster: Mapping[int, int] = field(default_factory=dict, compare=False)
    seconds: Mapping[int, float] = field(default_factory=dict, compare=False)
    attention_seconds: float = field(default=0.0, compare=False)

    def for_decode(self, rows: int) -> int:
        """The fastest decode size that holds ``rows``."""
        smallest = self.decode[bisect_left(self.decode, rows)]
        return self.faster.get(smallest, smallest)

    def for_prefill(self, rows: int) -> int:
        """The smallest prefill size that holds ``rows``."""
        return self.prefill[bisect_left(self.prefill, rows)]


class Check(Protocol):
    """Something whose results may depend on how many rows are computed at once."""

    def bits(self, num_rows: int, *, seed: int) -> bytes:
        """All bits of some rows among ``num_rows``; their places and the others are by ``seed``."""


def agreeing(check: Check, candidates: Sequence[int]) -> list[list[int]]:
    """The batch sizes in groups whose results agree, ascending in each group.

    Each size is checked with other places and neighbours, so sizes that agree show that these do
    not matter either. A size that does not agree with any other is checked with two sets of them.

    The largest size comes first: memory that it needed, such as that of a captured graph, is enough
    for the others, while memory of smaller ones would be too small for it, and kept beside its own.
    """
    results = {n: check.bits(n, seed=n) for n in sorted(candidates, reverse=True)}
    groups: dict[bytes, list[int]] = {}
    for num_rows in sorted(results):
        groups.setdefault(results[num_rows], []).append(num_rows)
    return [
        members
        for result, members in groups.items()
        if len(members) > 1 or check.bits(members[0], seed=0) == result
    ]


def largest_group(groups: Iterable[list[int]], *, needed: int) -> tuple[int, ...] | None:
    """Of the groups that reach ``needed`` rows, the one with most sizes."""
    reaching = [members for members in groups if members[-1] >= needed]
    best: list[int] = max(reaching, key=len, default=[])
    return tuple(best) or None
