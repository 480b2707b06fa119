"""Pages are owned once, and their place does not change any value."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.execution.attention.interface import AttentionForm
from engine.execution.attention.paged import paged_batch
from engine.execution.kv_cache import KVCache, KVShape
from engine.requests.request import ScheduledTokens

PAGE = 4
few = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def cache(num_pages: int, *, page_size: int = PAGE) -> KVCache:
    shapes = {0: KVShape(2, 8, 8, torch.float32), 1: KVShape(1, 4, 6, torch.float32)}
    return KVCache(shapes, num_pages=num_pages, page_size=page_size, device=torch.device("cpu"))


def fill(made: KVCache, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in made.layers.values():
        layer.keys.copy_(torch.randn(layer.keys.shape, generator=generator))
        layer.values.copy_(torch.randn(layer.values.shape, generator=generator))


def slot_list(made: KVCache, pages: list[int], start: int, stop: int) -> list[int]:
    """Slots as the module's contract defines them, one by one."""
    return [pages[i // made.page_size] * made.page_size + i % made.page_size
            for i in range(start, stop)]  # fmt: skip


@few
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=40))
def test_every_page_is_free_or_owned_once(steps: list[tuple[bool, int]]) -> None:
    """Any order of allocation and release, compared with a plain set of pages."""
    made = cache(16)
    owned: list[list[int]] = []
    free = set(range(16))
    for take, size in steps:
        if take and size <= len(free):
            pages = made.allocate(size)
            assert len(set(pages)) == size
            assert set(pages) <= free
            free -= set(pages)
            owned.append(pages)
        elif take:
            with pytest.raises(RuntimeError, match="KV cache"):
                made.allocate(size)
        elif owned:
            pages = owned.pop(size % len(owned))
            made.release(pages)
            free |= set(pages)
        assert made.num_free_pages == len(free)
        made.check_integrity(owned)


def test_a_run_of_pages_is_preferred_to_scattered_ones() -> None:
    made = cache(8)
    singles = [made.allocate(1) for _ in range(8)]
    for i in (0, 2, 5, 6, 7):
        made.release(singles[i])
    assert made.allocate(3) == [5, 6, 7]


def test_integrity_names_leaks_and_double_owners() -> None:
    made = cache(4)
    pages = made.allocate(2)
    made.check_integrity([pages])
    for wrong in ([], [pages, pages], [[3]], [[*pages, 3]]):
        with pytest.raises(RuntimeError, match="leaked or owned twice"):
            made.check_integrity(wrong)
    made.release(pages)
    with pytest.raises(RuntimeError, match="released twice"):
        made.release(pages)


@few
@given(st.permutations(range(6)), st.integers(0, 23), st.integers(1, 24))
def test_slots_follow_the_contract(pages: list[int], start: int, length: int) -> None:
    made = cache(6)
    stop = min(start + length, 6 * PAGE)
    if start >= stop:
        return
    slots = made.slots(pages, start, stop)
    every = torch.arange(6 * PAGE)
    assert every[slots].tolist() == slot_list(made, pages, start, stop)


@few
@given(st.permutations(range(12)), st.integers(1, 6 * PAGE))
def test_copy_moves_all_tokens_and_nothing_else(order: list[int], num_tokens: int) -> None:
    made = cache(12)
    fill(made)
    source, target = order[:6], order[6:]
    written = slot_list(made, target, 0, num_tokens)
    untouched = [slot for slot in range(12 * PAGE) if slot not in written]
    before = [(layer.keys.clone(), layer.values.clone()) for layer in made.layers.values()]
    made.copy(source, target, 0, num_tokens)
    read = slot_list(made, source, 0, num_tokens)
    for layer, (keys, values) in zip(made.layers.values(), before, strict=True):
        for now, old in ((layer.keys, keys), (layer.values, values)):
            assert torch.equal(now[written], old[read])
            assert torch.equal(now[untouched], old[untouched])


@few
@given(st.integers(1, 5), st.integers(0, 18), st.sampled_from([None, 3]), st.integers(0, 1000))
def test_attention_has_the_same_bits_wherever_the_pages_lie(
    rows: int, start: int, window: int | None, seed: int
) -> None:
    """One sequence in pages in a row (read as a view) and scattered (read as a copy)."""
    generator = torch.Generator().manual_seed(seed)
    context = start + rows
    past = torch.randn(2, context, 2, 8, generator=generator)
    query = torch.randn(4, rows, 8, generator=generator)
    key = torch.randn(2, rows, 8, generator=generator)
    value = torch.randn(2, rows, 8, generator=generator)
    shuffled = list(range(12))
    random.Random(seed).shuffle(shuffled)
    outputs = []
    for pages in (list(range(3, 9)), shuffled[:6]):
        made = cache(12)
        fill(made, seed)  # left there by other requests
        slots = made.slots(pages, 0, context)
        made.layers[0].keys[slots] = past[0]
        made.layers[0].values[slots] = past[1]
        new = torch.tensor(slot_list(made, pages, start, context))
        batch = paged_batch(made, [ScheduledTokens(start, rows, pages)])
        outputs.append(batch.attend(0, query, key, value, AttentionForm(sliding_window=window)))
        assert torch.equal(made.layers[0].keys[new], key.transpose(0, 1))
    assert torch.equal(*outputs)

    # And it is attention: each row alone, by the definition.
    past[0, start:], past[1, start:] = key.transpose(0, 1), value.transpose(0, 1)
    for row in range(rows):
        last = start + row
        first = 0 if window is None else max(0, last - window + 1)
        for head in range(4):
            seen_keys = past[0, first : last + 1, head // 2]
            weights = torch.softmax(seen_keys @ query[head, row] / 8**0.5, dim=0)
            expected = weights @ past[1, first : last + 1, head // 2]
            assert torch.allclose(outputs[0][row, head], expected, atol=1e-5)
