"""The processor time that a load takes, by process: steadier than times of the clock."""

from __future__ import annotations

import time
from collections import defaultdict

import psutil

from benchmarks.harness.processes import name_of

CLIENT = "client"


def cpu_seconds(root: psutil.Process) -> dict[str, float]:
    """Seconds of all cores that each kind of process below ``root`` has taken, and this process."""
    found = defaultdict(float, {CLIENT: time.process_time()})
    for process in [root, *root.children(recursive=True)]:
        try:
            taken = process.cpu_times()
            found[kind(name_of(process))] += taken.user + taken.system
        except psutil.Error:  # it has gone meanwhile
            continue
    return found


def kind(name: str) -> str:
    """What a process does; a replica that is asked something adds the method to its name."""
    if name.startswith("Model:"):
        return "replica"
    for part, meaning in _KINDS.items():
        if part in name.lower():
            return meaning
    return "Ray"


_KINDS = {"ingress": "ingress", "proxy": "proxy"}
