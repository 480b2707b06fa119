"""The numbers of a step are those of a generator that draws step by step, whoever asks when."""

from __future__ import annotations

import random

import pytest
import torch

from engine.sampling.draws.noise import MAX_BYTES, Noise, Place, draw_noise, max_steps_ahead

VOCAB = 7


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_numbers_do_not_depend_on_the_order_in_which_they_are_asked_for(num_sequences: int) -> None:
    generator = torch.Generator().manual_seed(5)
    steps = [
        torch.empty(num_sequences, VOCAB).exponential_(1, generator=generator) for _ in range(40)
    ]
    rng = random.Random(num_sequences)
    noise = Noise(num_sequences, 5, torch.device("cpu"))
    done = [0] * num_sequences
    while min(done) < 30:
        ahead = {n: done[n] + rng.randrange(4) for n in range(num_sequences)}
        places = [Place(n, min(39, step)) for n, step in ahead.items() if rng.random() < 0.8]
        for place in (*places, *places):  # also those that were asked for before
            (row,) = noise.of([place], VOCAB)
            assert torch.equal(row, steps[place.step][place.sequence])
        if places:
            expected = torch.stack([steps[p.step][p.sequence] for p in places])
            assert torch.equal(noise.of(places, VOCAB), expected)
        done[rng.randrange(num_sequences)] += 1
        noise.forget(min(done))
        assert noise.num_kept <= max(done) + 4 - min(done)


def test_a_task_keeps_a_bounded_number() -> None:
    for num_sequences in (1, 8, 64):
        for vocab in (1_000, 50_000, 150_000):
            steps = max_steps_ahead(num_sequences, vocab)
            assert steps * num_sequences * vocab * 4 <= MAX_BYTES


@pytest.mark.parametrize("vocab", [1, 311, 312, 49_152])
def test_numbers_are_those_of_torch(vocab: int) -> None:
    """Drawn for several tasks at once, some of them several steps ahead of others."""
    rng = random.Random(vocab)
    seeds = [0, 1, 2**32 + 1, 2**63 + 11, 2**64 - 1]
    noises = [Noise(1 + n % 2, seed, torch.device("cpu")) for n, seed in enumerate(seeds)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps: list[list[torch.Tensor]] = [
        [torch.empty(1 + n % 2, vocab).exponential_(1, generator=generator) for _ in range(12)]
        for n, generator in enumerate(generators)
    ]
    for step in range(0, 9, 3):
        places = [[Place(0, step), Place(0, step + rng.randrange(3))] for _ in noises]
        draw_noise(list(zip(noises, places, strict=True)), vocab)
        for noise, wanted, own in zip(noises, places, steps, strict=True):
            for place in wanted:
                assert torch.equal(noise.of([place], vocab)[0], own[place.step][0])
