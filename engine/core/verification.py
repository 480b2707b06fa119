"""Judges claimed tokens: whether they are the ones that were drawn, or lost by how much.

The rows of a step are those of the claimed tokens (`engine.core.speculation`). Where a claimed
token is not the drawn one but within the tolerance, the answer goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from engine.core.in_flight import Row
from engine.platform.transfer import AsyncCopy, upload
from engine.sampling.sampler import Candidates, margins

_NONE = -1
"""In place of a claimed token: there is none, or it is not a token of the model."""


class Judgement(NamedTuple):
    """The tokens of some rows of a request that verifies claims.

    Attributes:
        tokens: int64 [rows], those with which the answers go on.
        report: float64 [rows, 2]: the drawn tokens, and by how much the claimed ones lost.
    """

    tokens: torch.Tensor
    report: AsyncCopy


def judge(rows: Sequence[Row], candidates: Candidates, drawn: torch.Tensor) -> Judgement:
    """Compare claimed tokens with those that were drawn, int64 [rows]. Waits for nothing."""
    vocab_size = candidates.scores.shape[1]
    claimed = upload([_claimed(row, vocab_size) for row in rows], drawn.device)
    lost_by = margins(candidates, drawn, claimed)
    lost_by = lost_by.masked_fill(claimed == _NONE, torch.inf)
    check = rows[0].sequence.check
    assert check is not None
    # A token that is not a number (`INVALID_LOGITS`) ends the task, whatever is claimed.
    kept = (lost_by <= check.tolerance) & (drawn >= 0) if check.tolerance else claimed == drawn
    tokens = torch.where(kept, claimed, drawn)
    return Judgement(tokens, AsyncCopy(torch.stack([drawn.double(), lost_by], dim=1)))


def _claimed(row: Row, vocab_size: int) -> int:
    sequence = row.sequence
    assert sequence.check is not None
    token = sequence.check.token(sequence.num_sampled + row.ahead)
    return _NONE if token is None or token >= vocab_size else token
