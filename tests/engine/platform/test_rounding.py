"""At which sizes the place of an element does not change what a function makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, silu

from engine.platform.cpu import CpuPlatform

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": silu,
    "gelu": partial(gelu, approximate="tanh"),
    "tanh": torch.tanh,
    "exp": torch.exp,
    "cos": torch.cos,
}
WIDTHS = (8, 40, 64, 96, 1536, 4864)
ROWS = (1, 2, 3, 8, 17, 24, 64, 100, 192)


@pytest.fixture(params=[1, 2, 3, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def changed_by_place(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> bool:
    """Whether rows that stand elsewhere in the same tensor get other bits."""
    straight = function(rows)
    return any(
        not torch.equal(function(rows.roll(by, 0)).roll(-by, 0), straight)
        for by in range(1, len(rows), max(1, len(rows) // 5))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_it_says_so_the_place_does_not_matter(dtype: torch.dtype, threads: int) -> None:
    alike = CpuPlatform().rounds_alike
    generator = torch.Generator().manual_seed(0)
    found = {True: 0, False: 0}
    for width in WIDTHS:
        for count in ROWS:
            rows = 3 * torch.randn(count, width, generator=generator).to(dtype)
            for name, function in FUNCTIONS.items():
                changed = changed_by_place(function, rows)
                found[changed] += 1
                if alike(rows.numel()):
                    assert not changed, (name, width, count)
    assert found[False] > 100
    if dtype == torch.float32:
        assert found[True], "nothing depends on the place here: the test shows nothing"
