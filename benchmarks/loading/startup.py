"""From the start of a server to its first token: ``python -m benchmarks.loading.startup``.

Starts a real ``serve run`` several times, sends a task as soon as the server is ready, and says
when what was there: seconds from the start of the command, from the logs of all processes; and the
processor time that each process had taken by the first token, which is steadier on a busy machine.
Then loads the model in processes apart, its weights in the page cache and not, and says how
long that takes beside reading the file (`benchmarks.loading.load_time`).

Prints tables, writes ``startup.json`` and, with matplotlib, ``startup.png``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import command
from benchmarks.harness.client import Client, Endpoint
from benchmarks.harness.processes import CLIENT, cpu_seconds
from benchmarks.harness.report import about, aligned, say, table, write
from benchmarks.harness.server import (
    DEMO,
    DEMO_DEPLOYMENT,
    REPOSITORY,
    TUNED,
    Server,
    serving,
)
from benchmarks.harness.tasks import demo_task
from benchmarks.loading.load_time import READY, STAGES

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


def start(args: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> Start:
    """Start a server, ask for an answer, and end it."""
    begun = time.time()
    with serving(args, folder, environment) as server:
        healthy = time.time() - begun
        first = asyncio.run(_first_token(server)) - begun
        taken = cpu_seconds(server)
        seconds = marks(_logs(server), begun) | {HEALTHY: healthy, FIRST: first}
        for replica in server.replicas(DEMO_DEPLOYMENT):
            seconds[PROCESS] = replica.create_time() - server.process.create_time()
    taken.pop(CLIENT)
    return Start(dict(sorted(seconds.items(), key=lambda item: item[1])), dict(taken))


async def _first_token(server: Server) -> float:
    """When the first token of an answer came, as a time of the clock."""
    task = demo_task(0, "How are you?", {"max_new_tokens": 8})
    async with Client(Endpoint(server.address, "demo")) as client:
        answer = await client.ask(task, stream=True)
    if not answer.lines:
        raise SystemExit(f"the server has answered without a token: {answer.error}")
    return time.time() - (time.perf_counter() - answer.lines[0][0])


def load_once(model: Path, dtype: str, *, cold: bool) -> dict[str, Any]:
    """What `benchmarks.loading.load_time` finds, in its own process."""
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
    """Two tables for people: when what was there, and which part took how much processor time."""

    def lines(head: str, values: Mapping[str, list[float]]) -> list[list[str]]:
        found = [
            [*(f"{of(times):.1f} s" for of in (median, min, max)), name]
            for name, times in values.items()
        ]
        return [[head, "from", "to", ""], *found]

    cpu = dict(reversed(_middle([one.cpu_seconds for one in starts]).items()))
    moments = lines("after", _middle([one.seconds for one in starts]))
    return aligned(moments, names=3) + "\n\n" + aligned(lines("processor time", cpu), names=3)


def load_table(loads: Sequence[Mapping[str, Any]]) -> str:
    """A table for people: how long it takes to load the model, and to read its file."""
    columns: dict[str, Any] = {
        "page cache": lambda one: "no" if one["cold"] else "yes",
        "read the file": lambda one: f"{one['read_seconds']:.2f} s",
    }
    for stage in (*STAGES, READY):
        columns[stage] = lambda one, stage=stage: f"{one['seconds'][stage]:.1f} s"
    columns["processor time"] = lambda one: f"{one['cpu_seconds'][READY]:.1f} s"
    return table(loads, columns)


def _panel(starts: Sequence[Start], axes: Any) -> None:
    """Each moment as a line of time."""
    moments = _middle([one.seconds for one in starts])
    for row, values in enumerate(moments.values()):
        axes.barh(row, median(values), height=0.5, color="tab:blue", alpha=0.3)
        axes.plot(values, [row] * len(values), "o", color="tab:blue", markersize=4)
    axes.set_yticks(range(len(moments)), labels=list(moments))
    axes.invert_yaxis()
    axes.set(xlabel="seconds after the start of the command", xlim=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
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
    data = about("startup", options) | {"loads": loads, "starts": [asdict(one) for one in starts]}
    write(options.out, "startup", data, [partial(_panel, starts)] if starts else [])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.loading.startup", __doc__)
    add = parser.add_argument
    add("--runs", type=int, default=3, help="starts of a server")
    add("--loads", type=int, default=1, help="loads without a server, of each kind")
    add("--model", type=Path, default=REPOSITORY / DEMO["source"])
    add("--dtype", default=DEMO["dtype"])
    add("--tuned", action="store_true", help="Ray Serve's tuned mode")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
