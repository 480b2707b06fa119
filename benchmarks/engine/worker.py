"""A peer in its own process, so that its memory is its own and nothing of it is shared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.engine.in_process import load_peer
from benchmarks.engine.peer import Peer, PeerSettings, TaskResult
from benchmarks.harness.client import Job
from benchmarks.harness.processes import memory_of, own_process
from cluster.hardware.bandwidth import copy_bandwidth

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class RunResult:
    """One run of one peer."""

    results: list[TaskResult]
    seconds: float
    peak_memory_bytes: int


class Worker:
    """The benchmark's side of a peer's process. Every call waits, and raises what it raises."""

    def __init__(self, name: str, settings: PeerSettings) -> None:
        self.name = name
        self._settings = settings
        # Threads that a library starts by itself obey only this.
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        self._process = own_process()

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._process.submit(function, *args, **kwargs).result()

    def load(self, warm_up: Sequence[Job]) -> None:
        """Load the model and run once."""
        self._call(_load, self.name, self._settings, warm_up)

    def run(self, tasks: Sequence[Job]) -> RunResult:
        """Run tasks that are all submitted at once, and measure."""
        return self._call(_run, tasks, on_cuda=self._settings.on_cuda)

    def describe(self) -> dict[str, Any]:
        """The peer's settings."""
        return self._call(_describe)

    def copy_bandwidth(self) -> float:
        """Bytes a second that a large copy on the device reads and writes."""
        return self._call(copy_bandwidth, self._settings.torch_device)

    def close(self) -> None:
        """End the process."""
        with self._process:
            self._process.submit(_close)


# --- In the peer's process -----------------------------------------------------------------------

_PEERS: list[Peer] = []  # the one of this process, once it is loaded


def _load(name: str, settings: PeerSettings, warm_up: Sequence[Job]) -> None:
    transformers_logging.disable_progress_bar()
    _PEERS.append(load_peer(name, settings))
    _PEERS[0].run(warm_up)


def _run(tasks: Sequence[Job], *, on_cuda: bool) -> RunResult:
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        # 5: reset the high-water mark to what is resident now (proc_pid_clear_refs(5)).
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    results = _PEERS[0].run(tasks)
    seconds = max(result.last_s for result in results)
    assert seconds <= time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_cuda else memory_of(os.getpid())["VmHWM"]
    return RunResult(results, seconds, peak)


def _describe() -> dict[str, Any]:
    return _PEERS[0].description()


def _close() -> None:
    for peer in _PEERS:
        peer.close()
