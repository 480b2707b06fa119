"""The compiled race chooses the tokens that transformers' processors and `torch.multinomial` do."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampling.draws.race import MAX_TOP_K, UNCERTAIN, RowToSample, Rule, race
from engine.sampling.draws.top_p import QuickTopP
from engine.sampling.sampler import Candidates, sample

SIZES = (5, 300, 1_500, 30_001)
NO_IDS = torch.empty(0, 0, dtype=torch.int64)


def some_processors(rng: random.Random) -> list[LogitsProcessor]:
    """Of those that a rule can have, in transformers' order."""
    chosen: list[LogitsProcessor] = []
    if rng.random() < 0.7:
        chosen.append(TemperatureLogitsWarper(rng.choice([0.1, 0.63, 0.7, 1.3, 2.0])))
    if rng.random() < 0.6:
        chosen.append(TopKLogitsWarper(rng.choice([1, 2, 20, 50, MAX_TOP_K])))
        if rng.random() < 0.6:
            chosen.append(TopPLogitsWarper(rng.choice([0.0, 0.1, 0.5, 0.8, 0.95, 0.999])))
    if rng.random() < 0.3:
        chosen.append(MinPLogitsWarper(rng.choice([0.01, 0.05, 0.3, 1.0])))
    return chosen


def some_scores(rng: random.Random, size: int, made: torch.Generator) -> torch.Tensor:
    """Flat and steep ones, with forbidden tokens, and with many equal ones as bfloat16 has them."""
    scores = torch.randn(size, generator=made) * rng.choice([0.01, 1, 3, 20])
    if rng.random() < 0.3:
        forbidden = torch.rand(size, generator=made) < rng.choice([0.3, 0.99])
        scores = scores.masked_fill(forbidden, -math.inf)
    return scores.bfloat16().float() if rng.random() < 0.4 else scores


def rule_of(processors: Sequence[LogitsProcessor]) -> Rule:
    rule = Rule.of(processors)
    assert rule is not None
    return rule


def expected(
    processors: Sequence[LogitsProcessor], scores: torch.Tensor, noise: torch.Tensor
) -> int:
    """As `torch.multinomial` does it with this noise."""
    left = scores[None]
    for each in processors:
        left = each(NO_IDS, left)
    return int((left.softmax(dim=-1) / noise).argmax())


def test_tokens_are_those_of_transformers() -> None:
    rng, made = random.Random(0), torch.Generator().manual_seed(0)
    num_open = 0
    for _ in range(1_500):
        size = rng.choice(SIZES)
        processors = some_processors(rng)
        scores = some_scores(rng, size, made)
        if not scores.isfinite().any():
            continue
        noise = torch.empty(size).exponential_(generator=made)
        wanted = expected(processors, scores, noise)
        rule = rule_of(processors)
        (token,) = race([RowToSample(scores, noise, rule)]).tolist()
        num_open += token == UNCERTAIN
        assert token in (wanted, UNCERTAIN), (rule, size)
        candidates = Candidates(scores[None], noise[None], tail=processors, rule=rule)
        assert sample([candidates]).tolist() == [wanted], (rule, size)
    assert num_open > 20, "no case was close"


@pytest.mark.parametrize(
    "processors",
    [
        [],
        [TemperatureLogitsWarper(0.7)],
        [TopKLogitsWarper(50)],
        [TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)],
        [TemperatureLogitsWarper(1.3), MinPLogitsWarper(0.05)],
    ],
    ids=["plain", "temperature", "top_k", "top_p", "min_p"],
)
def test_rows_of_models_are_decided(processors: list[LogitsProcessor]) -> None:
    """Almost all of them: else it would only add to what torch's operations take."""
    made = torch.Generator().manual_seed(1)
    rule = rule_of(processors)
    rows = [
        RowToSample(
            (2.5 * torch.randn(30_001, generator=made)).bfloat16().float(),
            torch.empty(30_001).exponential_(generator=made),
            rule,
        )
        for _ in range(200)
    ]
    assert race(rows).tolist().count(UNCERTAIN) <= 20


def test_a_row_does_not_depend_on_the_others() -> None:
    rng, made = random.Random(2), torch.Generator().manual_seed(2)
    rows = [
        RowToSample(
            some_scores(rng, 1_500, made),
            torch.empty(1_500).exponential_(generator=made),
            rule_of(some_processors(rng)),
        )
        for _ in range(40)
    ]
    together = race(rows).tolist()
    assert together == [int(race([row])) for row in rows]
    rng.shuffle(rows)
    assert sorted(together) == sorted(race(rows).tolist())


@pytest.mark.parametrize(
    "scores",
    [[math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [-math.inf] * 3],
    ids=["not a number", "overflow", "all forbidden"],
)
def test_what_is_no_score_is_left_open(scores: list[float]) -> None:
    row = torch.tensor(scores)
    for rule in (Rule(), Rule(top_k=2)):
        assert race([RowToSample(row, torch.ones(3), rule)]).tolist() == [UNCERTAIN]


@pytest.mark.parametrize(
    "processors",
    [
        [TopPLogitsWarper(0.9)],
        [TopKLogitsWarper(MAX_TOP_K + 1)],
        [TopKLogitsWarper(5, min_tokens_to_keep=2)],
        [TopKLogitsWarper(5, filter_value=-100.0)],
        [TopKLogitsWarper(5), TemperatureLogitsWarper(0.5)],
        [TemperatureLogitsWarper(0.5), TemperatureLogitsWarper(0.5)],
    ],
)
def test_what_is_no_rule(processors: list[LogitsProcessor]) -> None:
    assert Rule.of(processors) is None


def test_quick_top_p_leaves_what_transformers_does() -> None:
    rng, made = random.Random(3), torch.Generator().manual_seed(3)
    for _ in range(300):
        scores = torch.stack([some_scores(rng, rng.choice(SIZES[:1]), made) for _ in range(3)])
        if rng.random() < 0.5:
            scores = some_scores(rng, rng.choice(SIZES), made)[None]
        own = TopPLogitsWarper(rng.choice([0.0, 0.5, 0.9, 0.999]), min_tokens_to_keep=2)
        assert torch.equal(QuickTopP(own)(NO_IDS, scores), own(NO_IDS, scores))
