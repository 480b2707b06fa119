"""The compiled attention of single tokens: its results do not depend on other sequences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from engine.execution.attention.interface import AttentionForm
from engine.execution.attention.paged import SequenceRows, paged_batch, plainly_attended
from engine.execution.kv_cache import KVCache, KVShape
from engine.requests.request import ScheduledTokens

PAGE = 4
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@dataclass(frozen=True)
class Shape:
    """Of a layer's attention."""

    heads: int = 6
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16


class Layer:
    """A cache of one layer, filled by other requests, and rows to attend from."""

    def __init__(
        self, shape: Shape, contexts: Sequence[int], dtype: torch.dtype, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        kv = KVShape(shape.kv_heads, shape.key_dim, shape.value_dim, dtype)
        num_pages = sum(-(-context // PAGE) for context in contexts)
        self.cache = KVCache(
            {0: kv}, num_pages=num_pages, page_size=PAGE, device=torch.device("cpu")
        )
        self.cache.fill_randomly(range(num_pages), seed)
        free = random.Random(seed).sample(range(num_pages), num_pages)
        self.scheduled = [
            ScheduledTokens(context - 1, 1, [free.pop() for _ in range(-(-context // PAGE))])
            for context in contexts
        ]

        def rows(heads: int, dim: int) -> torch.Tensor:
            return torch.randn(heads, len(contexts), dim, generator=generator).to(dtype)

        self.query = 4 * rows(shape.heads, shape.key_dim)
        self.key = rows(shape.kv_heads, shape.key_dim)
        self.value = rows(shape.kv_heads, shape.value_dim)

    def attend(
        self, only: Sequence[int] | None = None, form: AttentionForm | None = None
    ) -> torch.Tensor:
        """[rows, H, E] of some rows, or of all."""
        rows = range(len(self.scheduled)) if only is None else only
        batch = paged_batch(self.cache, [self.scheduled[row] for row in rows])
        assert not batch.sequences, "the kernel was not asked"
        at = torch.tensor(list(rows))
        return batch.attend(
            0,
            self.query[:, at],
            self.key[:, at],
            self.value[:, at],
            form or AttentionForm(),
        )

    def in_plain_operations(self, row: int, form: AttentionForm) -> torch.Tensor:
        """[H, E] in the operations that compute prompts where torch's kernels do not."""
        token = self.scheduled[row]
        keys, values = self.cache.layers[0].read(self.cache.slots(token.pages, 0, token.stop))
        rows = SequenceRows(0, token, slice(0))
        mask = rows.mask(form, torch.float32, torch.device("cpu"))
        return plainly_attended(self.query[:, row : row + 1], keys[0], values[0], mask, form)[:, 0]

    def by_definition(self, row: int, form: AttentionForm) -> torch.Tensor:
        """[H, E] in float64, from what the cache holds."""
        token = self.scheduled[row]
        slots = self.cache.slots(token.pages, 0, token.stop)
        keys, values = (part[0].double() for part in self.cache.layers[0].read(slots))
        if (window := form.sliding_window) is not None:
            keys, values = keys[:, -window:], values[:, -window:]
        if form.chunk is not None:
            first = (token.stop - 1) // form.chunk * form.chunk
            keys, values = keys[:, first:], values[:, first:]
        group = len(self.query) // len(keys)
        query = self.query[:, row].double().unflatten(0, (-1, group))
        scores = query @ keys.transpose(1, 2) / keys.shape[2] ** 0.5
        if form.softcap is not None:
            scores = form.softcap * (scores / form.softcap).tanh()
        if form.sinks is not None:
            sinks = form.sinks.double().unflatten(0, (-1, group))[..., None]
            scores = torch.cat([scores, sinks], dim=2)
        weights = scores.softmax(dim=2)[..., : keys.shape[1]]
        attended: torch.Tensor = weights @ values
        return attended.flatten(0, 1)


@DTYPES
@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(4, 4, 7, 7), Shape(14, 2, 64, 64), Shape(3, 1, 24, 10)],
    ids=["grouped", "odd sizes", "qwen", "values of another size"],
)
@pytest.mark.parametrize("seen", [{}, {"sliding_window": 5}, {"chunk": 4}], ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_it_is_attention(
    dtype: torch.dtype, shape: Shape, seen: dict[str, int], softcap: float | None, sinks: bool
) -> None:
    layer = Layer(shape, [1, 2, 3, 4, 5, 9, 33, 150], dtype, seed=len(str(shape)))
    of_heads = torch.linspace(-2, 3, shape.heads).to(dtype) if sinks else None
    form = AttentionForm(None, softcap=softcap, sinks=of_heads, **seen)
    for row, ours in enumerate(layer.attend(form=form)):
        expected = layer.by_definition(row, form)
        bound = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
        assert (ours.double() - expected).abs().max() <= bound
        plain = layer.in_plain_operations(row, form)
        assert (plain.double() - expected).abs().max() <= bound


@DTYPES
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    layer = Layer(Shape(), [7, 64, 3, 40, 12, 31, 5], dtype, seed=1)
    together = layer.attend()
    for row in range(7):
        assert torch.equal(layer.attend([row])[0], together[row])
    backwards = layer.attend(range(6, -1, -1))
    assert torch.equal(backwards.flip(0), together)
    assert torch.equal(layer.attend([3, 3, 3]), together[[3, 3, 3]])


@DTYPES
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nan_stays_with_its_sequence(dtype: torch.dtype, broken: float) -> None:
    layer = Layer(Shape(), [9, 9, 9], dtype, seed=2)
    good = layer.attend()
    layer.query[:, 1] = broken
    attended = layer.attend()
    assert attended[1].isnan().all()
    assert torch.equal(attended[[0, 2]], good[[0, 2]])


def test_scores_far_apart_and_alike() -> None:
    """Weights of one token alone, and the mean of all: where exp underflows, and where it is 1."""
    layer = Layer(Shape(), [50, 50], torch.float32, seed=3)
    layer.query[:, 0] *= 1e4
    layer.query[:, 1] = 0
    attended = layer.attend()
    for row in range(2):
        assert torch.allclose(
            attended[row].double(), layer.by_definition(row, AttentionForm()), atol=1e-5
        )
