"""Row counts at which a model's forwards give the same bits (docs/architecture.md, determinism)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RowCounts:
    """Row counts at which a forward may run, ascending. `batch_invariance` finds them.

    Within each tuple all counts give the same bits. Where ``one_class`` says so, they are the same
    in both: tokens that are decoded may then share a forward with chunks of prompts. ``faster``
    names, for a decode count, a larger one that takes less time; it decides nothing but speed.
    """

    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    one_class: bool = False
    faster: Mapping[int, int] = field(default_factory=dict, compare=False)

    def for_decode(self, rows: int) -> int:
        """The fastest decode count that holds ``rows``."""
        smallest = self.decode[bisect_left(self.decode, rows)]
        return self.faster.get(smallest, smallest)

    def for_prefill(self, rows: int) -> int:
        """The smallest prefill count that holds ``rows``."""
        return self.prefill[bisect_left(self.prefill, rows)]
