"""A peer in a process of its own, so that its memory is its own and nothing of it is shared."""

from __future__ import annotations

import os
import resource
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.engine.floor import copy_bandwidth
from benchmarks.engine.in_process import Peer, PeerSettings, TaskResult, load_peer
from benchmarks.harness.models import BenchTask

_CLOSE_TIMEOUT_S = 30


@dataclass(frozen=True)
class RunResult:
    """One run of one peer."""

    results: list[TaskResult]
    seconds: float
    peak_memory_bytes: int


class _Server:
    """The worker's side: the methods that `Worker.call` may name."""

    def __init__(self, name: str, settings: PeerSettings) -> None:
        self._name = name
        self._settings = settings
        self._peer: Peer | None = None
        self._on_cuda = settings.device != "cpu" and torch.cuda.is_available()

    @property
    def peer(self) -> Peer:
        """The peer; set by `load`."""
        assert self._peer is not None
        return self._peer

    def load(self, warm_up: Sequence[BenchTask]) -> dict[str, str]:
        """Load the model and run once; returns what it runs on."""
        self._peer = load_peer(self._name, self._settings)
        self.peer.run(warm_up)
        return {
            "device": torch.cuda.get_device_name() if self._on_cuda else "cpu",
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }

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
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(pipe: Connection, name: str, settings: PeerSettings) -> None:
    """The worker's main function: answer calls until told to close."""
    transformers_logging.disable_progress_bar()
    server = _Server(name, settings)
    method = ""
    while method != "close":
        try:
            method, arguments = pipe.recv()
        except EOFError:  # the other side is gone
            return
        try:
            pipe.send((getattr(server, method)(*arguments), None))
        except Exception:  # noqa: BLE001  (whatever a peer raises is reported on the other side)
            pipe.send((None, traceback.format_exc()))


class Worker:
    """The benchmark's side of a peer's process. Nothing is loaded before ``call("load", ...)``."""

    def __init__(self, name: str, settings: PeerSettings) -> None:
        self.name = name
        # Threads that a library starts by itself obey only this.
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, settings), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker and wait for its result.

        Raises:
            RuntimeError: it raised, or its process died.
        """
        try:
            self._pipe.send((method, arguments))
            result, problem = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(_CLOSE_TIMEOUT_S)
            raise RuntimeError(
                f"{self.name}: the process ended with code {self._process.exitcode}"
            ) from error
        if problem is not None:
            raise RuntimeError(f"{self.name}: {problem}")
        return result

    def close(self) -> None:
        """End the process."""
        with suppress(RuntimeError):
            self.call("close")
        self._process.join(_CLOSE_TIMEOUT_S)
        if self._process.is_alive():
            self._process.terminate()


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function where its memory is free again when it returns.

    Raises:
        SystemExit: it failed, and has told why.
    """
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
