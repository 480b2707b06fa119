"""The processes of a server: what they are, what they take, where they run; and a process apart."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil

from benchmarks.harness.report import middle
from benchmarks.harness.server import Server

P = ParamSpec("P")
T = TypeVar("T")

CLIENT = "client"
_SERVE = "ray::ServeReplica:default:"
_PARTS = {
    "Model:": "replica",
    "ImagePreprocessor": "preprocessor",
    "Ingress": "ingress",
    "ServeController": "controller",
    "ProxyActor": "proxy",
    "HAProxyManager": "proxy",
    "haproxy": "proxy",
}
"""How the names of processes begin, and the part of the graph that they are. All else is Ray's."""
PARTS = (*dict.fromkeys(_PARTS.values()), "Ray", CLIENT)


def name_of(process: psutil.Process) -> str:
    """What a process calls itself, without the prefix of all replicas.

    A replica that is asked something adds the method to its name.
    """
    title = process.cmdline()[:1]
    if not title:
        return process.name()
    if title[0].startswith("ray::"):
        return title[0].removeprefix(_SERVE).removeprefix("ray::")
    return Path(title[0]).name


def part_of(name: str) -> str:
    """The part of the graph that a process of this name is."""
    return next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), "Ray")


def cpu_seconds(server: Server) -> dict[str, float]:
    """Processor seconds of all cores that each part has taken until now, and this process."""
    found = defaultdict(float, {CLIENT: time.process_time()})
    for process in server.processes():
        with suppress(psutil.Error):  # it has gone meanwhile
            taken = process.cpu_times()
            found[part_of(name_of(process))] += taken.user + taken.system
    return found


@contextmanager
def cpu_spent(server: Server) -> Iterator[dict[str, float]]:
    """A dict that has, after the body, what each part took during it; ``seconds`` is the clock."""
    found: dict[str, float] = {}
    start, before = time.perf_counter(), cpu_seconds(server)
    yield found
    after = cpu_seconds(server)
    found |= {part: after[part] - before.get(part, 0.0) for part in after}
    found["seconds"] = time.perf_counter() - start


# --- Memory and descriptors over time ------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One process at one moment.

    Attributes:
        at: seconds since the beginning.
        name: what it calls itself.
        rss: bytes of memory, shared ones included.
        uss: bytes that would be free without it.
        files: open file descriptors.
    """

    at: float
    pid: int
    name: str
    rss: int
    uss: int
    files: int


@dataclass(frozen=True)
class Growth:
    """How much a process has grown after it had warmed up; bytes and descriptors."""

    name: str
    uss: int
    uss_growth: int
    files: int
    files_growth: int


def sample(server: Server, at: float) -> list[Sample]:
    """All processes of a server now."""
    found = []
    for process in server.processes():
        with suppress(psutil.Error):  # it has gone meanwhile
            memory = process.memory_full_info()
            name = name_of(process)
            found.append(Sample(at, process.pid, name, memory.rss, memory.uss, process.num_fds()))
    return found


@asynccontextmanager
async def sampled(server: Server, every_s: float) -> AsyncIterator[list[Sample]]:
    """A list that grows by all processes every few seconds while the body runs."""
    samples: list[Sample] = []
    start = time.monotonic()

    async def watch() -> None:
        while True:
            samples.extend(await asyncio.to_thread(sample, server, time.monotonic() - start))
            await asyncio.sleep(every_s)

    watching = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        watching.cancel()


def by_process(samples: Iterable[Sample]) -> list[tuple[str, list[Sample]]]:
    """Each process's shortest name, and its samples."""
    found: dict[int, list[Sample]] = defaultdict(list)
    for one in samples:
        found[one.pid].append(one)
    return [(min((one.name for one in own), key=len), own) for own in found.values()]


def growth(samples: Sequence[Sample], warm_up: float, end: float) -> list[Growth]:
    """Of each process that lived from the end of the warm-up to the end: largest growth first.

    Compared are the medians of the first and the last quarter of that time.
    """
    quarter = (end - warm_up) / 4
    found = []
    for name, own in by_process(samples):
        first = [one for one in own if warm_up <= one.at <= warm_up + quarter]
        last = [one for one in own if one.at >= end - quarter]
        if first and last:
            uss, files = middle(last, lambda one: one.uss), middle(last, lambda one: one.files)
            uss_growth = uss - middle(first, lambda one: one.uss)
            files_growth = files - middle(first, lambda one: one.files)
            found.append(Growth(name, int(uss), int(uss_growth), int(files), int(files_growth)))
    return sorted(found, key=lambda one: -one.uss_growth)


# --- Where processes run -------------------------------------------------------------------------


def step_back(server: Server) -> None:
    """Give this process the niceness of the server's: Ray's are 15, and would starve beside it."""
    me = psutil.Process()
    for process in server.processes():
        with suppress(psutil.Error):  # it has gone meanwhile
            me.nice(max(me.nice(), process.nice()))


def pin(server: Server) -> None:
    """The replica on the first core that this process may use, everything else on the others.

    Raises:
        ValueError: there is only one core.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise ValueError("--pin needs two cores")
    for process in [psutil.Process(), *server.processes()]:
        with suppress(psutil.Error, ProcessLookupError):  # it has gone meanwhile
            cores = [first] if part_of(name_of(process)) == "replica" else others
            for thread in process.threads():  # each has its own; new ones inherit it
                os.sched_setaffinity(thread.id, cores)


def own_process() -> ProcessPoolExecutor:
    """One new process, in which what is submitted runs: nothing is shared with this one."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Let this process end when the one that started it has been killed, whatever it does."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_own_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function where its memory is free again when it returns. Raises what it raises."""
    with own_process() as process:
        return process.submit(function, *arguments, **named).result()


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of memory of a process, as the kernel names them (``VmHWM``, ``RssAnon``...)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields: dict[str, Any] = dict(line.split(":", 1) for line in lines)
    return {name: int(text.split()[0]) * 1024 for name, text in fields.items() if "kB" in text}
