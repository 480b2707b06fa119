"""The kernels against attention in float64; and a sequence alone and among others.

What a sequence must not see is NaN here: slots behind contexts, pages of nobody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from engine.execution.kernels.launch import Scoring

CAPABILITY = (8, 0)
SINKS = torch.linspace(-2, 2, 128)

# The largest difference, of results of about 1. The interpreter cuts bfloat16 off, unrounded.
BOUNDS = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """Heads and a form of attention."""

    key_dim: int
    value_dim: int
    page_size: int
    heads: int
    kv_heads: int
    dtype: torch.dtype
    form: dict[str, Any]

    @property
    def scoring(self) -> Scoring:
        from engine.execution.kernels.launch import Scoring

        sinks = SINKS[: self.heads].to(self.dtype) if self.form.get("sinks") else None
        return Scoring(self.key_dim**-0.5, **(self.form | {"sinks": sinks}))


@dataclass(frozen=True)
class One:
    """A sequence: its last ``num_rows`` tokens attend. ``stops``: what rows see until, if given."""

    query: torch.Tensor  # [H, num_rows, D]
    keys: torch.Tensor  # [context, K, D]
    values: torch.Tensor  # [context, K, E]
    stops: torch.Tensor | None = None  # [num_rows]

    @property
    def num_rows(self) -> int:
        return self.query.shape[1]

    @property
    def context(self) -> int:
        return len(self.keys)


def sequence(case: Case, context: int, num_rows: int, seed: int) -> One:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    return One(
        drawn(case.heads, num_rows, case.key_dim),
        drawn(context, case.kv_heads, case.key_dim),
        drawn(context, case.kv_heads, case.value_dim),
    )


def with_spans(one: One, *spans: tuple[int, int]) -> One:
    stops = torch.arange(one.context - one.num_rows, one.context) + 1
    first = one.context - one.num_rows
    for start, stop in spans:
        stops[start - first : stop - first] = stop
    return replace(one, stops=stops)


def exact(case: Case, one: One) -> torch.Tensor:  # [num_rows, H, E]
    """Softmax of all scores at once, in float64."""
    scoring = case.scoring
    group = case.heads // case.kv_heads
    keys, values = (
        each.double().repeat_interleave(group, dim=1) for each in (one.keys, one.values)
    )
    scores = torch.einsum("hqd,khd->hqk", one.query.double(), keys) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    looking = torch.arange(one.context - one.num_rows, one.context)[:, None]
    seen = torch.arange(one.context)[None, :]
    stops = looking + 1 if one.stops is None else one.stops[:, None]
    visible = seen < stops
    if scoring.window is not None:
        visible &= seen > looking - scoring.window
    if scoring.chunk is not None:
        visible &= seen >= looking - looking % scoring.chunk
    scores = scores.masked_fill(~visible, -torch.inf)
    if scoring.sinks is not None:
        sinks = scoring.sinks.double()[:, None, None].expand(-1, one.num_rows, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., : one.context]
    return torch.einsum("hqk,khd->qhd", weights, values)


def computed(
    case: Case, batch: Sequence[One], device: torch.device, *, seed: int = 0
) -> list[torch.Tensor]:
    """What the kernels give for each sequence [num_rows, H, E]; ``seed`` shuffles the pages."""
    from engine.execution.kernels import launch

    size = case.page_size
    needed = [-(-one.context // size) for one in batch]
    pages = random.Random(seed).sample(range(sum(needed) + 1), sum(needed))  # one is nobody's
    keys, values = (
        torch.full(((sum(needed) + 1) * size, case.kv_heads, dim), torch.nan, dtype=case.dtype)
        for dim in (case.key_dim, case.value_dim)
    )
    nobody = next(iter(set(range(sum(needed) + 1)) - set(pages)))
    table = torch.full((len(batch), max(needed)), nobody, dtype=torch.int32)
    for n, one in enumerate(batch):
        own, pages = pages[: needed[n]], pages[needed[n] :]
        table[n, : len(own)] = torch.tensor(own)
        place = torch.arange(one.context)
        slots = torch.tensor(own)[place // size] * size + place % size
        keys[slots], values[slots] = one.keys, one.values
    starts = torch.tensor([0, *(one.num_rows for one in batch)]).cumsum(0)
    contexts = torch.tensor([one.context for one in batch], dtype=torch.int32)
    cached = launch.PagedKeys(keys.to(device), values.to(device), table.to(device), size)
    query = torch.cat([one.query for one in batch], dim=1).to(device)
    contexts = contexts.to(device)
    scoring = case.scoring
    if scoring.sinks is not None:
        scoring = replace(scoring, sinks=scoring.sinks.to(device))
    if all(one.num_rows == 1 for one in batch):
        output = launch.attend_tokens(query, cached, scoring, contexts, CAPABILITY)
    else:
        stops = None
        if any(one.stops is not None for one in batch):
            every = (one if one.stops is not None else with_spans(one) for one in batch)
            stops = torch.cat([one.stops for one in every if one.stops is not None])
            stops = stops.to(device, torch.int32)
        output = launch.attend_prompts(
            query, cached, scoring, starts.to(device, torch.int32), contexts, stops, CAPABILITY
        )
    output = output.cpu()
    return [output[first:stop] for first, stop in pairwise(starts)]


def check_exact(case: Case, batch: Sequence[One], device: torch.device) -> None:
    for one, got in zip(batch, computed(case, batch, device), strict=True):
        difference = float((got.double() - exact(case, one)).abs().max())
        assert difference < BOUNDS[case.dtype], (one.context, difference)


f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
ALL = {"window": 300, "softcap": 3.0, "sinks": True}
HEADS = [
    Case(32, 32, 16, 4, 4, f32, {}),
    Case(80, 80, 32, 8, 2, f32, {"window": 24}),
    Case(96, 96, 256, 7, 1, f16, {"softcap": 2.0}),
    Case(112, 112, 16, 8, 1, bf16, {"sinks": True}),
    Case(192, 128, 32, 4, 2, f32, ALL),
    Case(64, 64, 16, 8, 2, f32, {"chunk": 128}),
    Case(256, 256, 256, 2, 1, bf16, {}),
    Case(128, 128, 16, 4, 1, f16, {"window": 1}),
    Case(40, 24, 16, 80, 1, f32, {"sinks": True, "window": 60}),  # more heads than a tile has rows
]
CONTEXTS = [
    [1, 15, 16, 17],
    [17, 255, 256],
    [257, 1000],
    [255, 256, 257],
    [1, 1000],
    [1, 15, 128, 129, 1000],
    [16, 257],
    [1, 255],
    [1, 100],
]


@pytest.mark.parametrize(("case", "contexts"), [*zip(HEADS, CONTEXTS, strict=True)])
def test_tokens(case: Case, contexts: list[int], device: torch.device) -> None:
    check_exact(case, [sequence(case, context, 1, seed=context) for context in contexts], device)


@pytest.mark.parametrize("context", [4097, 17_001])
def test_a_token_of_a_long_context(context: int, device: torch.device) -> None:
    """Of the longer one splits have two times 256 tokens: there would be more than 64."""
    case = Case(16, 16, 256, 2, 1, f32, {})
    check_exact(case, [sequence(case, context, 1, seed=0)], device)


@pytest.mark.parametrize("case", HEADS)
def test_prompts(case: Case, device: torch.device) -> None:
    """Whole prompts, chunks behind others, single tokens, and tokens that see later ones."""
    parts = [(1, 1), (17, 17), (70, 40), (33, 1)]
    batch = [sequence(case, context, rows, seed=context) for context, rows in parts]
    check_exact(case, batch, device)
    looking_ahead = [with_spans(batch[1], (2, 9)), with_spans(batch[2], (31, 40), (45, 70))]
    check_exact(case, [batch[0], *looking_ahead], device)


def test_a_chunk_behind_a_long_context(device: torch.device) -> None:
    case = Case(64, 64, 16, 4, 2, f32, {"window": 257})
    check_exact(case, [sequence(case, 1000, 40, seed=0), sequence(case, 257, 30, seed=1)], device)


def crowd(case: Case, seed: int, *, tokens: bool) -> list[One]:
    """2 to 64 sequences, most of them short and one not."""
    generator = random.Random(seed)
    number = (64, 17, 2, 5, 33, 9)[seed] if tokens else (9, 5, 2, 3, 7, 4)[seed]
    contexts = [generator.randint(1, 40) for _ in range(number - 1)] + [generator.randint(500, 700)]
    generator.shuffle(contexts)
    return [
        sequence(case, n, 1 if tokens else generator.randint(1, min(n, 40)), seed + place)
        for place, n in enumerate(contexts)
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "prompts"])
def test_a_sequence_has_the_same_bits_alone_and_among_others(
    seed: int, device: torch.device, *, tokens: bool
) -> None:
    case = replace(HEADS[seed % 3], form=(HEADS[seed].form))
    batch = crowd(case, seed, tokens=tokens)
    if not tokens and seed % 2:
        batch = [with_spans(one, (one.context - one.num_rows, one.context)) for one in batch]
    together = computed(case, batch, device, seed=seed)
    reordered = computed(case, batch[::-1], device, seed=seed + 1)[::-1]
    for one, got, again in zip(batch, together, reordered, strict=True):
        assert torch.equal(got, again)
        if one.context < 4 or one.context > 100:
            assert torch.equal(got, computed(case, [one], device, seed=2)[0])
