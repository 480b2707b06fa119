"""Claimed tokens: those of one answer beside what is drawn, and which of them have lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Loss(NamedTuple):
    """A claimed token that was not drawn.

    Attributes:
        position: its place in the answer.
        claimed: None if the claim has ended before.
        expected: what was drawn instead; None if the answer has ended before.
        margin: by how much it lost; None if it could not be drawn, or if that is not known.
    """

    position: int
    claimed: int | None
    expected: int | None
    margin: float | None = None


def first_loss(claimed: Sequence[int], drawn: Sequence[int]) -> list[Loss]:
    """The first token in which a claim is not what was drawn without regard to it; none if equal.

    What follows it cannot be compared: it was drawn after another token.
    """
    common = min(len(claimed), len(drawn))
    for position in range(common):
        if claimed[position] != drawn[position]:
            return [Loss(position, claimed[position], drawn[position])]
    if len(claimed) > common:
        return [Loss(common, claimed[common], None)]
    if len(drawn) > common:
        return [Loss(common, None, drawn[common])]
    return []


class ClaimCheck:
    """The tokens that are claimed of one answer, beside those that are drawn.

    Belongs to the engine's thread until the answer has ended.

    Attributes:
        tolerance: by how much a claimed token may have lost; then the answer goes on with it.
        losses: the claimed tokens that were not drawn, in order.
        decided: whether one was not within the tolerance, so that the answer need not go on.
    """

    def __init__(self, claimed: Sequence[int], tolerance: float) -> None:
        self._claimed = claimed
        self.tolerance = tolerance
        self.losses: list[Loss] = []
        self.decided = False

    def token(self, position: int) -> int | None:
        """The claimed token in a place; None after the last one."""
        return self._claimed[position] if position < len(self._claimed) else None

    def judge(self, position: int, drawn: int, margin: float) -> None:
        """Take what was drawn in a place, and by how much a claimed token lost to it.

        A margin that is not finite means that it could not be drawn.
        """
        claimed = self.token(position)
        if claimed == drawn:
            return
        known = claimed is not None and math.isfinite(margin)
        loss = Loss(position, claimed, drawn, margin if known else None)
        self.losses.append(loss)
        self.decided = not within(loss, self.tolerance)

    def found(self, num_tokens: int) -> list[Loss]:
        """The losses once the answer has ended after so many tokens: the claim may go on."""
        claimed = None if self.decided else self.token(num_tokens)
        return [*self.losses, *([] if claimed is None else [Loss(num_tokens, claimed, None)])]


def within(loss: Loss, tolerance: float) -> bool:
    """Whether a loss is forgiven. Without a tolerance none is, not even between equal scores."""
    return tolerance > 0 and loss.margin is not None and loss.margin <= tolerance
