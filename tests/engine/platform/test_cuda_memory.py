"""How the memory of a GPU is shared out, as far as a machine without one can tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from engine.execution.batch_sizes import agreeing
from engine.platform.cuda import CudaPlatform, kv_room_of

GIB = 1 << 30


@pytest.mark.parametrize("free", [0, GIB, 2 * GIB, 5 * GIB, 10 * GIB, 100 * GIB])
def test_what_a_kv_cache_leaves(free: int) -> None:
    left = free - kv_room_of(free)
    assert left >= min(free, 2 * GIB)
    assert left >= 0.15 * free - 1
    assert left <= max(0.15 * free, 2 * GIB)


def test_what_torch_keeps_is_given_back_before_the_room_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = 6 * GIB

    def empty() -> None:
        nonlocal kept
        kept = 0

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * GIB - kept, 24 * GIB))
    assert CudaPlatform().kv_room(torch.device("cuda", 0)) == kv_room_of(20 * GIB)


class Streams:
    """In the place of torch's streams and graphs: says on which stream a forward runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: object = "the usual one"
        for name in ("Stream", "CUDAGraph", "graph_pool_handle", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", self.Stream)

    class Stream:
        def wait_stream(self, other: object) -> None:
            """Both run on the host here."""

    class CUDAGraph:
        def replay(self) -> None:
            """Nothing was captured."""

    def graph_pool_handle(self) -> object:
        return object()

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: object, *, pool: object, stream: Any = None) -> Iterator[None]:
        with self.stream(stream or torch.cuda.Stream()):  # torch has one of its own for captures
            yield


def test_all_graphs_are_made_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    record = CudaPlatform().graph_recorder()
    used: list[object] = []

    def forward() -> torch.Tensor:
        used.append(streams.current)
        return torch.zeros(1)

    for _ in range(3):
        record(forward)
    assert len(used) > 3
    assert len(set(map(id, used))) == 1


def test_the_largest_size_is_run_first() -> None:
    """And the groups are as before: ascending, by what they gave."""
    seen: list[int] = []

    class Check:
        def bits(self, num_rows: int, *, seed: int) -> bytes:
            seen.append(num_rows)
            return b"odd" if num_rows % 2 else b"even"

    assert agreeing(Check(), [2, 3, 4, 5, 8]) == [[2, 4, 8], [3, 5]]
    assert seen == sorted(seen, reverse=True)
