"""Batch sizes at which a model's forwards give the same bits (docs/architecture.md)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field


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
