"""From the start of a server to its first token: ``python -m benchmarks.loading.startup``.

Starts a real ``serve run`` several times, sends a task as soon as the server is ready, and says
when what was there: seconds from the start of the command, from the logs of all processes; and the
processor time that each process had taken by the first token, which is steadier on a busy machine.
Then loads the model in processes of their own, its weights in the page cache and not, and says how
long that takes beside reading the file (`benchmarks.loading.load_time`).

Prints tables, writes ``startup.json`` and, with matplotlib, ``startup.png``.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from benchmarks.engine.report import aligned, pyplot, say
from benchmarks.harness.processes import name_of
from benchmarks.harness.server import DEMO, TUNED, Server, serving
from benchmarks.loading.load_time import READY, STAGES
from serve_app.config.app_args import REPOSITORY

_REPLICA = "replica_default_Model_*.log"
MARKS = {
    "Ray runs": ("server.log", "Started a local Ray instance"),
    "controller and proxy run": ("server.log", "Started Serve in namespace"),
    "builder begins to import": ("controller_build_*.log", "Importing application"),
    "graph built": ("controller_[0-9]*.log", "Imported and built app"),
    "ingress ready": ("replica_default_Ingress_*.log", "Finished initializing replica"),
    "preprocessor ready": ("replica_default_ImagePreproc*.log", "Finished initializing replica"),
    "replica begins": (_REPLICA, "Started initializing replica"),
    **{f"replica: {stage}": (_REPLICA, f"-- {text}") for stage, text in STAGES.items()},
    "replica ready": (_REPLICA, "Finished initializing replica"),
}
"""What is noted: in which file of logs, and what the line says. The stages of a replica are those
of `benchmarks.loading.load_time`; what they mean is the same in both."""
PROCESS = "replica's process begins"
HEALTHY = "GET /health says ready"
FIRST = "first token"

_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
_WHO = {
    "Model:": "replica",
    "ImagePreprocessor": "preprocessor",
    "Ingress": "ingress",
    "ServeController": "controller",
    "ProxyActor": "proxy",
    "haproxy": "proxy",
}


@dataclass(frozen=True)
class Start:
    """One start of a server.

    Attributes:
        seconds: from the start of the command, in the order of time.
        cpu_seconds: of each kind of process, by the first token.
    """

    seconds: dict[str, float]
    cpu_seconds: dict[str, float]


def marks(logs: Sequence[Path], begun: float) -> dict[str, float]:
    """When the logs say that something was there: seconds after ``begun``, a time of the clock."""
    found = {}
    for name, (pattern, text) in MARKS.items():
        lines = (
            line
            for log in logs
            if log.match(pattern)
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        )
        # Ray writes the time of the process that logs, in this machine's time zone.
        times = [_TIME.search(line) for line in lines if text in line]
        if times and (when := times[0]):
            found[name] = datetime.strptime(when[0], "%Y-%m-%d %H:%M:%S,%f").timestamp() - begun
    return found


def _logs(server: Server) -> list[Path]:
    """The files in which the server's processes log."""
    for process in server.process.children(recursive=True):
        for argument in process.cmdline():
            if argument.startswith("--log_dir="):
                folder = Path(argument.removeprefix("--log_dir="))
                return [server.log, *(folder / "serve").glob("*.log")]
    raise RuntimeError("the server has no process that says where it logs")


def _processes(server: Server) -> tuple[float | None, dict[str, float]]:
    """When the replica's process began, after the command; processor seconds of all processes."""
    taken: dict[str, float] = defaultdict(float)
    replica = None
    for process in [server.process, *server.process.children(recursive=True)]:
        try:
            name, times = name_of(process), process.cpu_times()
            who = next((who for part, who in _WHO.items() if name.startswith(part)), "Ray's others")
            taken[who] += times.user + times.system
            if who == "replica":
                replica = process.create_time() - server.process.create_time()
        except psutil.Error:  # it has gone meanwhile
            continue
    return replica, dict(taken)


def start(args: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> Start:
    """Start a server, ask for an answer, and end it."""
    begun = time.time()
    with serving(args, folder, environment) as server:
        healthy = time.time() - begun
        _first_token(server)
        first = time.time() - begun
        process, cpu_seconds = _processes(server)
        seconds = marks(_logs(server), begun) | {HEALTHY: healthy, FIRST: first}
    if process is not None:
        seconds[PROCESS] = process
    return Start(dict(sorted(seconds.items(), key=lambda item: item[1])), cpu_seconds)


def _first_token(server: Server) -> None:
    """Stream an answer until its first token."""
    task = {
        "model": "demo",
        "messages": [{"role": "user", "content": "How are you?"}],
        "generation_config": {"max_new_tokens": 8},
    }
    with httpx.stream(
        "POST", f"{server.address}/v1/tasks?stream=true", json=task, timeout=600
    ) as answer:
        if answer.status_code != 200:
            raise SystemExit(answer.read().decode())
        for line in answer.iter_lines():
            if line.startswith("data:"):
                return
    raise SystemExit("the server has answered without a token")


def load_once(model: Path, dtype: str, *, cold: bool) -> dict[str, Any]:
    """What `benchmarks.loading.load_time` finds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading.load_time", str(model), "--dtype", dtype]
    run = subprocess.run(
        [*command, *(["--cold"] if cold else [])],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


# --- The report ----------------------------------------------------------------------------------


def _middle(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The values of all runs by name, ordered by their median."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, value in run.items():
            values[name].append(value)
    return dict(sorted(values.items(), key=lambda item: median(item[1])))


def start_table(starts: Sequence[Start]) -> str:
    """Two tables for people: when what was there, and who took how much processor time."""
    lines = [["after", "from", "to", ""]]
    for name, values in _middle([one.seconds for one in starts]).items():
        lines.append([*(f"{v:.1f} s" for v in (median(values), min(values), max(values))), name])
    cpu = [["processor time", "from", "to", ""]]
    for name, values in reversed(_middle([one.cpu_seconds for one in starts]).items()):
        cpu.append([*(f"{v:.1f} s" for v in (median(values), min(values), max(values))), name])
    return aligned(lines, names=3) + "\n\n" + aligned(cpu, names=3)


def load_table(loads: Sequence[Mapping[str, Any]]) -> str:
    """A table for people: how long it takes to load the model, and to read its file."""
    stages = [*STAGES, READY]
    lines = [["page cache", "read the file", *stages, "processor time"]]
    for one in loads:
        cells = [f"{one['seconds'][stage]:.1f} s" for stage in stages]
        cpu = f"{one['cpu_seconds'][READY]:.1f} s"
        lines.append(["no" if one["cold"] else "yes", f"{one['read_seconds']:.2f} s", *cells, cpu])
    return aligned(lines)


def plot(starts: Sequence[Start], file: Path) -> bool:
    """Each start as a line of time; False without matplotlib."""
    if (plt := pyplot()) is None:
        return False
    moments = _middle([one.seconds for one in starts])
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for row, values in enumerate(moments.values()):
        axes.barh(row, median(values), height=0.5, color="tab:blue", alpha=0.3)
        axes.plot(values, [row] * len(values), "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(moments)), labels=list(moments))
    axes.invert_yaxis()
    axes.set(xlabel="seconds after the start of the command", xlim=0)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading.startup", description=__doc__
    )
    parser.add_argument("--runs", type=int, default=3, help="starts of a server")
    parser.add_argument("--loads", type=int, default=1, help="loads without a server, of each kind")
    parser.add_argument("--model", type=Path, default=REPOSITORY / DEMO["source"])
    parser.add_argument("--dtype", default=DEMO["dtype"])
    parser.add_argument("--tuned", action="store_true", help="Ray Serve's tuned mode")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    options = parser.parse_args(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    model = options.model.resolve()
    args = {"models": [DEMO | {"source": str(model), "dtype": options.dtype}]}
    # In the tuned mode Ray's processes would tell their own files only.
    environment = TUNED | {"RAY_SERVE_LOG_TO_STDERR": "1"} if options.tuned else {}
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs):
            starts.append(start(args, Path(folder), environment))
            say(f"start {number + 1}: first token after {starts[-1].seconds[FIRST]:.1f} s")
    loads = [
        load_once(model, options.dtype, cold=cold)
        for _ in range(options.loads)
        for cold in (True, False)
    ]
    if starts:
        print(start_table(starts))
    if loads:
        print("\n" + load_table(loads))
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"model": str(model), "tuned": options.tuned, "loads": loads}
    content = data | {"starts": [asdict(one) for one in starts]}
    (options.out / "startup.json").write_text(json.dumps(content, indent=1) + "\n")
    if starts and not plot(starts, options.out / "startup.png"):
        say("no picture: matplotlib is not installed (the extra `bench`)")


if __name__ == "__main__":
    main()
