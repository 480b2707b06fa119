"""What a recurrence computes from: which rows follow each other, and what each row gives.

Shapes: T rows, H heads, G of them for queries and keys, K and V sizes of a key and of a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Runs:
    """Consecutive rows of a forward that belong to one sequence each, N runs.

    Attributes:
        first: int64 [N], the first row of each.
        count: int64 [N], how many rows.
        kept: int64 [N], after how many of them the state is kept; the others are drafts.
        read: int64 [N], the row of the states that a run begins with; -1 for none, which is zero.
        write: int64 [N], the row of the states that gets what is kept; -1 if nothing is.
    """

    first: Indices
    count: Indices
    kept: Indices
    read: Indices
    write: Indices

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class DecayByValue:
    """Decays of each of K and V, made where they are used: they are K times what they are made of.

    Attributes:
        rates: [H, K, V], of the layer.
        times: [T, H, V].
    """

    rates: torch.Tensor
    times: torch.Tensor

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Those of some rows: [n, H, K, V]."""
        return torch.exp(self.rates * self.times[rows][:, :, None])


@dataclass(frozen=True)
class Steps:
    """What a recurrence is given for each row, all in float32.

    Attributes:
        keys: [T, G, K].
        values: [T, H, V].
        decay: [T, H, K], which may be a view that repeats its elements; or one that depends on V.
        beta: [T, H] of a delta rule; None where nothing is read before it is written.
    """

    keys: torch.Tensor
    values: torch.Tensor
    decay: torch.Tensor | DecayByValue
    beta: torch.Tensor | None
