"""Where the processes of a server spend their time, by py-spy."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.harness.report import aligned, say
from benchmarks.harness.server import Server

_SECONDS = 15.0
_RATE = 200
_SHOWN = 15


def profile_server(server: Server, name: str, out: Path, load: Callable[[float], None]) -> None:
    """Record the ingress and a replica of this project's server, see `profile`.

    Args:
        server: it serves one model.
        name: of the server, for the names of the files.
        out: their folder.
        load: keeps the server busy for a number of seconds. Blocking.
    """
    processes = {"ingress": server.replicas("Ingress"), "replica": server.replicas("Model:")}
    label = name.replace(", ", "-").replace(" ", "-")
    files = {
        out / f"profile-{label}-{part}.txt": found[0].pid
        for part, found in processes.items()
        if found
    }
    profile(files, load)


def profile(files: Mapping[Path, int], load: Callable[[float], None]) -> None:
    """Record processes while they work, print which functions take the most time.

    Args:
        files: where the stacks go, one a line with how often it was seen, and whose they are.
        load: keeps the processes busy for a number of seconds. Blocking.
    """
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        say("no profile: py-spy is not installed (pip install py-spy)")
        return
    recorders = []
    for file, pid in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [str(spy), "record", "--pid", str(pid), "--duration", str(int(_SECONDS))]
        command += ["--rate", str(_RATE), "--format", "raw", "--output", str(file), "--nonblocking"]
        recorders.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    load(_SECONDS)
    for recorder in recorders:
        recorder.wait()
    for file in files:
        if file.exists():
            print(f"{file.name}: samples in which a function ran itself, or what it called")
            print(top_functions(file.read_text(encoding="utf-8")))


def top_functions(stacks: str) -> str:
    """The functions that were seen most often, at the end of a stack and anywhere in it."""
    own, within, total = Counter[str](), Counter[str](), 0
    for line in stacks.splitlines():
        frames, _, seen = line.rpartition(" ")
        parts = [frame.rpartition(":")[0] or frame for frame in frames.split(";")]
        own[parts[-1]] += int(seen)
        for name in set(parts):
            within[name] += int(seen)
        total += int(seen)
    lines = [["itself", "with calls", "function"]]
    lines += [
        [f"{seen / total:.1%}", f"{within[name] / total:.1%}", name]
        for name, seen in own.most_common(_SHOWN)
    ]
    return aligned(lines, names=2)
