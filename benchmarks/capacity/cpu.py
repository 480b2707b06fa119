"""CPU time of a server's processes, by the part of the graph that they are."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENGINE = "engine"
REPLICA = "replica"
_TITLES = {
    "ray::ServeReplica:default:Ingress": "ingress",
    "ray::ServeReplica:default:ImagePreprocessor": "preprocessor",
    "ray::ServeReplica:default:Model:": REPLICA,
    "ray::ServeReplica:default:Tiny": "tiny",
    "ray::ServeController": "controller",
    "ray::ProxyActor": "proxy",
    "ray::HAProxyManager": "proxy manager",
    "haproxy": "proxy",
    "raylet": "raylet",
    "gcs_server": "gcs",
}


@dataclass(frozen=True)
class Reading:
    """CPU seconds until a moment.

    Attributes:
        at: the moment, of `time.perf_counter`.
        cpu: by process; of replicas by thread.
        waited: seconds in which a thread could have run and another one had the core.
    """

    at: float
    cpu: dict[tuple[str, int, int], float] = field(default_factory=dict)
    waited: dict[tuple[str, int, int], float] = field(default_factory=dict)


def read(root: psutil.Process) -> Reading:
    """The processes below ``root`` now."""
    found = Reading(time.perf_counter())
    for process in root.children(recursive=True):
        try:
            part = _part(process)
            if part is None:
                continue
            for thread in process.threads():
                key = (part, process.pid, thread.id)
                found.cpu[key] = thread.user_time + thread.system_time
                found.waited[key] = _waited(process.pid, thread.id)
        except psutil.Error:  # it has gone meanwhile
            continue
    return found


def _part(process: psutil.Process) -> str | None:
    title = Path("".join(process.cmdline()[:1])).name if process.cmdline() else process.name()
    for beginning, part in _TITLES.items():
        if title.startswith(beginning.rpartition("/")[2]):
            return part
    return None


def _waited(pid: int, thread: int) -> float:
    try:
        _, waited, _ = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()
    except OSError:  # the thread has ended
        return 0.0
    return int(waited) / 1e9


@dataclass(frozen=True)
class Spent:
    """What was spent between two readings: seconds, and CPU seconds of each part.

    A replica's engine is the one of its threads that worked most; it is a part of its own.
    """

    seconds: float
    cpu: dict[str, float]
    waited: dict[str, float]

    @classmethod
    def between(cls, first: Reading, last: Reading) -> Spent:
        """From ``first`` to ``last``; a thread that has ended meanwhile is not counted."""
        cpu: dict[str, float] = defaultdict(float)
        waited: dict[str, float] = defaultdict(float)
        threads: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for key, now in last.cpu.items():
            part, pid, _ = key
            spent = now - first.cpu.get(key, 0.0)
            stood = last.waited[key] - first.waited.get(key, 0.0)
            if part == REPLICA:
                threads[pid].append((spent, stood))
            cpu[part] += spent
            waited[part] += stood
        for of_process in threads.values():
            spent, stood = max(of_process)
            cpu[ENGINE] += spent
            cpu[REPLICA] -= spent
            waited[ENGINE] += stood
            waited[REPLICA] -= stood
        return cls(last.at - first.at, dict(cpu), dict(waited))
