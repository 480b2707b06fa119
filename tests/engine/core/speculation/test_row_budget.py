"""The number of drafts is, up to the margin, the one with most tokens a second of all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

from engine.core.speculation.row_budget import Candidate, drafts_that_pay
from engine.execution.batch_sizes import BatchSizes

SIZES = (2, 4, 8, 12, 16)


def _pace(counts: Sequence[int], candidates: Sequence[Candidate], sizes: BatchSizes) -> float:
    tokens = sum(1 + sum(c.chances[:n]) for c, n in zip(candidates, counts, strict=True))
    size = sizes.for_decode(len(counts) + sum(counts))
    attended = sum(c.context * (1 + n) for c, n in zip(candidates, counts, strict=True))
    return tokens / (sizes.seconds[size] + sizes.attention_seconds * attended)


def _chances(rng: random.Random) -> list[float]:
    return sorted((rng.random() for _ in range(rng.randrange(6))), reverse=True)


def test_no_other_number_of_drafts_is_clearly_faster() -> None:
    rng = random.Random(2)
    for _ in range(100):
        seconds = dict(zip(SIZES, sorted(rng.uniform(1, 3) for _ in SIZES), strict=True))
        sizes = BatchSizes(SIZES, SIZES, SIZES[-1], seconds=seconds, attention_seconds=1e-3)
        # Contexts that differ little: which draft is best then depends on its chance.
        candidates = [
            Candidate(_chances(rng), rng.randrange(90, 100)) for _ in range(rng.randrange(1, 4))
        ]
        room = rng.randrange(SIZES[-1] - len(candidates))
        taken = drafts_that_pay(candidates, room, sizes)
        assert sum(taken) <= room
        every = product(*(range(len(c.chances) + 1) for c in candidates))
        best = max(_pace(n, candidates, sizes) for n in every if sum(n) <= room)
        assert _pace(taken, candidates, sizes) > 0.93 * best


def test_drafts_that_cost_more_than_they_give_are_not_made() -> None:
    steep = BatchSizes((1, 2, 4), (), 4, seconds={1: 1.0, 2: 2.0, 4: 4.0})
    flat = BatchSizes((1, 2, 4), (), 4, seconds={1: 1.0, 2: 1.01, 4: 1.02})
    likely = [Candidate([0.8, 0.7, 0.6], 100)]
    assert drafts_that_pay(likely, 3, steep) == [0]
    assert drafts_that_pay(likely, 3, flat) == [3]
    assert drafts_that_pay(likely, 2, flat) == [2]
    assert drafts_that_pay([Candidate([], 100)], 3, flat) == [0]
