"""Which attention the ranks of a split model take: the same one, whatever a rank's device lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch

from engine.parallel.launcher import WorkerProcess
from engine.parallel.worker import follow
from tests.engine.conftest import TinyModel
from tests.engine.execution.varlen_stand_in import PAGE, VARLEN, small_varlen_attn, use_kernel
from tests.engine.parallel.two_ranks import ForkServer, hello, split


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    return ForkServer()


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("this build of torch refuses its arguments")


def lack(_: torch.device) -> str:
    return "it needs a GPU of compute capability 8.0 (Ampere) or newer"


def follow_with_kernel(address: str, rank: int) -> None:
    """A rank that has the kernel; in a process of its own, which ends with it."""
    use_kernel(pytest.MonkeyPatch())
    follow(address, rank)


def follow_refusing(address: str, rank: int) -> None:
    use_kernel(pytest.MonkeyPatch())
    pytest.MonkeyPatch().setattr(f"{VARLEN}.varlen_attn", refuse)
    follow(address, rank)


def follow_on_an_old_device(address: str, rank: int) -> None:
    use_kernel(pytest.MonkeyPatch())
    pytest.MonkeyPatch().setattr(f"{VARLEN}.gpu_problem", lack)
    follow(address, rank)


@pytest.mark.parametrize(
    ("kernel", "other", "attention"),
    [
        (small_varlen_attn, follow_with_kernel, "paged kernel"),
        (refuse, follow_refusing, "per sequence"),
        (small_varlen_attn, follow_on_an_old_device, "per sequence"),
    ],
    ids=["all have it", "all are refused", "one lacks it"],
)
def test_all_take_the_same(
    kernel: Callable[..., torch.Tensor],
    other: Callable[[str, int], None],
    attention: str,
    tiny_model: TinyModel,
    fork_server: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Launcher:
        def start(self, address: str, rank: int) -> WorkerProcess:
            return fork_server.start(address, rank, other)

    with split(tiny_model("qwen2"), fork_server, page_size=PAGE) as usual:
        expected = usual.run_blocking(hello())["choices"]
    use_kernel(monkeypatch)
    monkeypatch.setattr(f"{VARLEN}.varlen_attn", kernel)
    with split(tiny_model("qwen2"), Launcher(), page_size=PAGE, lookahead=True) as engine:
        assert engine.card()["attention"] == attention
        assert engine.run_blocking(hello())["choices"] == expected
