"""A peer in its own process, so that its memory is its own and nothing of it is shared."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.engine.floor import copy_bandwidth
from benchmarks.engine.in_process import Peer, PeerSettings, TaskResult, load_peer
from benchmarks.harness.processes import memory_of, own_process
from benchmarks.harness.tasks import BenchTask


@dataclass(frozen=True)
class RunResult:
    """One run of one peer."""

    results: list[TaskResult]
    seconds: float
    peak_memory_bytes: int


class _Side:
    """The other process's side: the methods that `Worker.call` may name."""

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._on_cuda = False

    @property
    def peer(self) -> Peer:
        """The peer; set by `load`."""
        assert self._peer is not None
        return self._peer

    def load(self, name: str, settings: PeerSettings, warm_up: Sequence[BenchTask]) -> str:
        """Load the model and run once; returns the name of what it runs on."""
        transformers_logging.disable_progress_bar()
        self._on_cuda = settings.device != "cpu" and torch.cuda.is_available()
        self._peer = load_peer(name, settings)
        self.peer.run(warm_up)
        return torch.cuda.get_device_name() if self._on_cuda else "cpu"

    def run(self, tasks: Sequence[BenchTask]) -> RunResult:
        """Run a batch and measure."""
        self._reset_peak()
        start = time.perf_counter()
        results = self.peer.run(tasks)
        seconds = max(result.last_s for result in results)
        assert seconds <= time.perf_counter() - start
        return RunResult(results, seconds, self._peak())

    def describe(self) -> dict[str, Any]:
        """The peer's settings."""
        return self.peer.description()

    def copy_bandwidth(self) -> float:
        """Bytes a second that a large copy on the device reads and writes."""
        return copy_bandwidth(torch.device("cuda" if self._on_cuda else "cpu"))

    def close(self) -> None:
        """Stop what the peer has started."""
        if self._peer is not None:
            self._peer.close()

    def _reset_peak(self) -> None:
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # 5: reset the high-water mark to what is resident now (proc_pid_clear_refs(5)).
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int:
        if self._on_cuda:
            return torch.cuda.max_memory_allocated()
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return memory_of(os.getpid()).get("VmHWM", usage)


_SIDE = _Side()


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_SIDE, method)(*arguments)


class Worker:
    """The benchmark's side of a peer's process. Nothing is loaded before `load`."""

    def __init__(self, name: str, settings: PeerSettings) -> None:
        self.name = name
        self._settings = settings
        # Threads that a library starts by itself obey only this.
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        self._process = own_process()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the other side and wait for its result; raises what it raises."""
        return self._process.submit(_call, method, *arguments).result()

    def load(self, warm_up: Sequence[BenchTask]) -> str:
        """Load the model, run once; returns the name of what it runs on."""
        device: str = self.call("load", self.name, self._settings, warm_up)
        return device

    def run(self, tasks: Sequence[BenchTask]) -> RunResult:
        """Run a batch."""
        result: RunResult = self.call("run", tasks)
        return result

    def close(self) -> None:
        """End the process."""
        with self._process:
            self._process.submit(_call, "close")
