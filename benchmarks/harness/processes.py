"""What the processes of a server take, over time: memory and file descriptors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

_SERVE = "ray::ServeReplica:default:"


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


def sample(root: psutil.Process, at: float) -> list[Sample]:
    """The processes below ``root`` now, itself included."""
    found = []
    for process in [root, *root.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            name = name_of(process)
            found.append(Sample(at, process.pid, name, memory.rss, memory.uss, process.num_fds()))
        except psutil.Error:  # it has gone meanwhile
            continue
    return found


def name_of(process: psutil.Process) -> str:
    """What a process calls itself, without what all of Ray's replicas begin with."""
    title = process.cmdline()[:1]
    if not title:
        return process.name()
    if title[0].startswith("ray::"):
        return title[0].removeprefix(_SERVE).removeprefix("ray::")
    return Path(title[0]).name


def growth(samples: Sequence[Sample], warm_up: float, end: float) -> list[Growth]:
    """Of each process that lived from the end of the warm-up to the end: largest growth first.

    Compared are the medians of the first and the last quarter of that time.
    """
    quarter = (end - warm_up) / 4
    of_process: dict[int, list[Sample]] = defaultdict(list)
    for one in samples:
        of_process[one.pid].append(one)
    found = []
    for one_process in of_process.values():
        first = [s for s in one_process if warm_up <= s.at <= warm_up + quarter]
        last = [s for s in one_process if s.at >= end - quarter]
        if not first or not last:
            continue
        # A replica that is asked something adds the method to its title.
        name = min((s.name for s in one_process), key=len)
        uss, files = median(s.uss for s in last), median(s.files for s in last)
        found.append(
            Growth(
                name,
                uss=int(uss),
                uss_growth=int(uss - median(s.uss for s in first)),
                files=int(files),
                files_growth=int(files - median(s.files for s in first)),
            )
        )
    return sorted(found, key=lambda one: -one.uss_growth)
