"""Sampling for a whole batch gives the tokens that torch samples row by row."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.sampling.logprobs import Logprobs
from engine.sampling.sampler import INVALID_LOGITS, Candidates, sample

INF, NAN = math.inf, math.nan


class Asker:
    """A task that asks for tokens: greedy, or with a random state of its own."""

    def __init__(self, rows: int, vocab: int, seed: int, *, greedy: bool) -> None:
        self.shape = (rows, vocab)
        self.greedy = greedy
        self.scores_of = torch.Generator().manual_seed(seed)
        self.ours, self.torchs = (torch.Generator().manual_seed(seed + 1) for _ in range(2))

    def scores(self) -> torch.Tensor:
        """Scores of the next step, some of them forbidden."""
        scores = 4 * torch.randn(self.shape, generator=self.scores_of)
        forbidden = torch.rand(self.shape, generator=self.scores_of) < 0.3
        forbidden[:, 0] = False
        return scores.masked_fill(forbidden, -INF)

    def candidates(self, scores: torch.Tensor) -> Candidates:
        """The input of `sample`: a race with exponential noise."""
        if self.greedy:
            return Candidates(scores, None)
        return Candidates(scores, torch.empty(self.shape).exponential_(1, generator=self.ours))

    def expected(self, scores: torch.Tensor) -> list[int]:
        """What torch samples."""
        if self.greedy:
            return [int(row.argmax()) for row in scores]
        probabilities = scores.softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=self.torchs)[:, 0].tolist()


def askers(number: int, vocab: int, seed: int) -> list[Asker]:
    rng = random.Random(seed)
    return [
        Asker(rng.choice([1, 1, 2, 5]), vocab, 10 * seed + i, greedy=not rng.randrange(3))
        for i in range(number)
    ]


@pytest.mark.parametrize("vocab", [2, 261, 30_001])
@pytest.mark.parametrize("number", [1, 2, 9])
def test_picks_are_those_of_torch(number: int, vocab: int) -> None:
    """Over several steps, so that each task's random state has to stay its own."""
    for seed in range(5):
        batch = askers(number, vocab, seed)
        for _ in range(4):
            scores = [asker.scores() for asker in batch]
            sampled = sample(
                [asker.candidates(own) for asker, own in zip(batch, scores, strict=True)]
            )
            expected = [
                token
                for asker, own in zip(batch, scores, strict=True)
                for token in asker.expected(own)
            ]
            assert sampled.dtype == torch.int64
            assert sampled.tolist() == expected


def test_both_kinds_were_mixed() -> None:
    """Else the test above would not compare what it claims."""
    kinds = [{asker.greedy for asker in askers(9, 2, seed)} for seed in range(5)]
    assert {True, False} in kinds


BROKEN = {
    "a NaN": [1.0, NAN, 3.0, 2.0],
    "all NaN": [NAN] * 4,
    "infinite": [1.0, 2.0, INF, 0.0],
    "infinite and forbidden": [-INF, INF, -INF, -INF],
    "all forbidden": [-INF] * 4,
    "NaN and infinite": [NAN, INF, 0.0, 0.0],
}
SOUND = {
    "one is allowed": [-INF, -INF, 0.5, -INF],
    "some are forbidden": [1.0, -INF, 0.5, -INF],
    "huge": [3.0e38, -3.0e38, 0.0, 0.0],
    "all alike": [0.0] * 4,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("greedy", [True, False])
def test_what_is_not_a_number_is_not_sampled_and_leaves_others_alone(
    name: str, greedy: bool
) -> None:
    broken = torch.tensor([BROKEN[name]])
    sound = torch.tensor(list(SOUND.values()))
    batch = [Asker(1, 4, 1, greedy=False), Asker(1, 4, 2, greedy=True)]
    batch += [Asker(len(sound), 4, 3, greedy=greedy), Asker(1, 4, 4, greedy=greedy)]
    batch += [Asker(3, 4, 5, greedy=greedy)]
    # One of several sequences of a task may be broken, too.
    mixed = torch.cat([sound[:1], broken, sound[1:2]])
    scores = [sound[:1], sound[1:2], sound, broken, mixed]
    sampled = sample([asker.candidates(own) for asker, own in zip(batch, scores, strict=True)])
    first, second, *rest = sampled.tolist()
    assert [first] == batch[0].expected(sound[:1])
    assert [second] == batch[1].expected(sound[1:2])
    assert rest[:4] == batch[2].expected(sound)
    assert rest[4] == INVALID_LOGITS
    # torch.multinomial refuses a batch with such a row; the row's place in the race is drawn.
    expected = batch[4].expected(torch.cat([sound[:1], sound[:1], sound[1:2]]))
    assert rest[5:] == [expected[0], INVALID_LOGITS, expected[2]]


class AlignedRows(TorchDispatchMode):
    """Refuses sums over rows that begin at different alignments, which GPUs sum differently."""

    SUMS = (torch.ops.aten._softmax, torch.ops.aten._log_softmax)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_rows = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in self.SUMS:
            (rows, *_) = args
            assert rows.data_ptr() % 64 == 0  # torch's own memory is; a part of it may not be
            assert len(rows) == 1 or rows.stride(0) * rows.itemsize % 64 == 0
            self.num_rows += len(rows)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vocab", [50_257, 151_674, 151_936])
def test_no_row_is_summed_by_its_place(vocab: int) -> None:
    """Of GPT-2's, InternVL3's and Qwen's vocabulary; also of a task that is not the first one."""
    logits = torch.randn(7, vocab)
    tasks = [Candidates(part, torch.rand_like(part)) for part in logits[:4].split([1, 2, 1])]
    with AlignedRows() as watched:
        sample(tasks)
        Logprobs(logits[3:6], 1)
    assert watched.num_rows == 7
