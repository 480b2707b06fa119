"""What the table says of one architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["batched", "alone", "refused", "different", "crashed", "not made"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
BAD: tuple[Outcome, ...] = ("different", "crashed")
"""What must not be."""


@dataclass(frozen=True)
class Row:
    """What became of an architecture.

    Attributes:
        architecture: the ``model_type`` of transformers.
        outcome: of a tiny model of it.

            * batched: it runs in the batch, and its answers are those of `generate`.
            * alone: its tasks run one at a time through `generate`.
            * refused: it is not loaded.
            * different: an answer is not the one that `generate` gives.
            * crashed: the process ended, or hung, or a task failed.
            * not made: there is no tiny model of it, or `generate` does not run it.

        reason: why it is not batched; "" if it is.
    """

    architecture: str
    outcome: Outcome
    reason: str
