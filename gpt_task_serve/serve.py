"""``gpt-task-serve serve [serve_config.yaml]``: serves it until Ctrl-C, and ends in order.

It does what ``serve run serve_config.yaml`` does, and four things more. It checks the file and
the port first. It starts Ray in the tuned mode (`gpt_task_serve.tuned`). It says when the models
answer. And on the first Ctrl-C (or SIGTERM) it lets running requests end within
``limits.shutdown_timeout_s``, while new ones are refused; ``serve run`` cuts all connections. A
second Ctrl-C ends everything at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit

import psutil
import ray
import yaml
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.serve.scripts import cli as ray_serve

from gpt_task_serve import tuned
from gpt_task_serve.processes import (
    adopt_orphans,
    described,
    end,
    end_children,
    holders,
    is_alive,
    is_orphaned_haproxy,
    kill_children,
    ray_processes,
)
from serve_app.check import BUILDER, taken_port
from serve_app.check import main as check
from serve_app.config.app_args import AppArgs
from serve_app.config.limit_args import LimitArgs
from serve_app.http.shutdown import ENDING_S
from serve_app.ready import Watch, address_of

DEFAULT = Path(__file__).with_name("default.yaml")
HERE = Path("serve_config.yaml")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A replica that hangs gives its place back at once, and not when its tasks' time is over.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # What idle processes take. The controller looks at everything four times a second and not ten
    # times, metrics that Prometheus reads every few seconds are not passed on ten times a second,
    # and processes that wait for work which never comes (every replica has an environment of its
    # own, so none can be given to it) are ended.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_num_workers_soft_limit": "0",
}
"""For all processes of a Ray that is started here, where nothing else is set."""

INGRESS = "Ingress"
DELIVERY_S = 2.0
"""For Ray's proxies to send the ends of answers, after the ingresses are done with them."""
CALL_S = 10.0
"""For the call that drains an ingress, beside the time of the requests."""
ALIVE_S = 2.0
"""How often a server that answers is looked at: whether all of Ray's processes are there."""
SHUTDOWN_S = 10.0
"""For Serve to stop replicas that have nothing to do any more; what remains is killed."""
ONE_S = 1.0
"""Within this time two signals are one: `make` passes on what its process group has received."""
INTERRUPTED = 130
"""The exit status when all was ended at once; shells use it for what SIGINT has ended."""


def main(arguments: list[str] | None = None, prog: str = "python -m gpt_task_serve serve") -> int:
    """Serve the file named on the command line until a signal comes; returns the exit status."""
    options = _parser(prog).parse_args(arguments)
    config: Path = options.config or (HERE if HERE.exists() else DEFAULT)
    if config == DEFAULT:
        print(f"There is no {HERE} here: the demo model is served, as {DEFAULT} says.")
    if status := check([str(config)]):
        return status
    # On a cluster that runs, the port may be that of the Serve which is to be changed.
    if faults := [] if options.address else _free_port(config):
        print(*faults, sep="\n", file=sys.stderr)
        return 1
    adopt_orphans()
    # Not TMPDIR, which may be too long for sockets.
    with tempfile.TemporaryDirectory(
        prefix="serve-", dir="/tmp", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        signals = _Signals(folder)
        try:
            _set_environment(folder)
            return _serve(config, options, signals)
        except (KeyboardInterrupt, SystemExit):  # before Ray has started
            kill_children()
            return INTERRUPTED


class _Signals:
    """SIGINT and SIGTERM: the first one is kept for the main thread, the second ends all.

    Attributes:
        folder: which is removed when all is ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._came = threading.Event()
        self._at = 0.0

    def listen(self) -> None:
        """Take the signals over; once more after Ray has set handlers of its own."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the first one, not longer than that; whether it has come."""
        return self._came.wait(seconds)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._came.is_set():
            self._at = now
            self._came.set()
        elif now - self._at > ONE_S:
            _exit_at_once(INTERRUPTED, self.folder)


def _set_environment(folder: Path) -> None:
    """Choose the mode, and set the variables of all processes of a Ray that is started here."""
    chosen = dict(ENVIRONMENT)
    if tuned.is_wanted():
        if reason := tuned.why_not():
            print(f"HAProxy does not run here ({reason}): serving in the plain mode, more slowly")
            os.environ[tuned.SWITCH] = "0"
        else:
            chosen |= tuned.variables(folder)
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


def _serve(config: Path, options: argparse.Namespace, signals: _Signals) -> int:
    environment = {"working_dir": options.working_dir} if options.working_dir else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(
        address=options.address,
        namespace="serve",
        runtime_env=environment,
        include_dashboard=options.dashboard,
    )
    signals.listen()
    try:
        ray_serve.main(["run", "--non-blocking", str(config)], standalone_mode=False)
    except SystemExit:  # it has printed why
        return 1
    started = ray_processes()
    if not _wait(address_of(config), signals, started):
        print("a process of Ray has ended: the server cannot go on", file=sys.stderr, flush=True)
        kill_children()
        return 1
    applications = _applications(config)
    _end_later(
        longest_stop_s([_limits(application) for application in applications]), signals.folder
    )
    print("stopping: running requests may end; Ctrl-C again ends them at once", flush=True)
    asyncio.run(_stop(applications))
    ray.shutdown()
    end_children()
    print("stopped", flush=True)
    return 0


def _wait(address: str, signals: _Signals, started: Sequence[psutil.Process]) -> bool:
    """Wait for a signal; until the server is ready, say what it waits for.

    Returns:
        Whether a signal has come; if not, one of the processes that were started has ended.
    """
    watch, ready = Watch(address), False
    while not signals.wait(ALIVE_S if ready else watch.pause_s):
        if not all(map(is_alive, started)):
            return False
        ready = ready or watch.is_ready()
    return True


def _exit_at_once(status: int, folder: Path) -> NoReturn:
    """End this process and everything below it, from any thread."""
    kill_children()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(status)


def _end_later(seconds: float, folder: Path) -> None:
    """End everything after that time, if this process has not ended by then."""

    def end_now() -> None:
        print("not stopped in time: everything is ended now", file=sys.stderr, flush=True)
        _exit_at_once(1, folder)

    timer = threading.Timer(seconds, end_now)
    timer.daemon = True
    timer.start()


def longest_stop_s(limits: Sequence[LimitArgs]) -> float:
    """How long stopping may take before everything is killed."""
    return max(map(_longest_drain_s, limits)) + DELIVERY_S + SHUTDOWN_S + CALL_S


def _longest_drain_s(limits: LimitArgs) -> float:
    return limits.shutdown_timeout_s + ENDING_S + CALL_S


def _limits(application: dict[str, Any]) -> LimitArgs:
    return AppArgs.model_validate(application.get("args", {})).limits


def _applications(config: Path) -> list[dict[str, Any]]:
    """Those that have an ingress of ours."""
    applications = yaml.safe_load(config.read_text(encoding="utf-8"))["applications"]
    return [each for each in applications if each["import_path"] == BUILDER]


async def _stop(applications: list[dict[str, Any]]) -> None:
    """Let running requests end, and refuse new ones; then stop Serve."""
    await asyncio.gather(*map(_drain, applications))
    await asyncio.sleep(DELIVERY_S)
    with suppress(TimeoutError):
        # Ray waits longer for load balancers that are not there, and for machines that may come.
        async with asyncio.timeout(SHUTDOWN_S):
            await serve.shutdown_async()


async def _drain(application: dict[str, Any]) -> None:
    """Drain the ingresses of an application; what does not answer is left."""
    name = application.get("name", "default")
    try:
        status = serve.status().applications.get(name)
        ingress = status and status.deployments.get(INGRESS)
        if not ingress or not ingress.replica_states.get(ReplicaState.RUNNING):
            return  # it has not started yet
        answers = serve.get_deployment_handle(INGRESS, name).broadcast("drain")
        counts = await answers.results_async(
            timeout_s=_longest_drain_s(_limits(application)), return_exceptions=True
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the server has to end
        print(f"{name}: not drained: {type(error).__name__}: {error}", file=sys.stderr)
        return
    if cut := sum(count for count in counts if isinstance(count, int)):
        print(f"{name}: {cut} requests had not ended in time and got an error", flush=True)


def _free_port(config: Path) -> list[str]:
    """What is wrong with the port. A HAProxy that an earlier server has left there is ended."""
    faults = taken_port(config)
    if not faults:
        return []
    port = urlsplit(address_of(config)).port or 80
    found = holders(port)
    orphans = [process for process in found if is_orphaned_haproxy(process)]
    for process in orphans:
        print(f"ending {described(process)}, which an earlier server has left", flush=True)
    end(orphans)
    if orphans and not (faults := taken_port(config)):
        return []
    return faults + [
        f"port {port}: {described(process)}" for process in found if process.is_running()
    ]


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        help=f"by default ./{HERE} if there is one, else the demo model on port 8000",
    )
    parser.add_argument("--address", help="of a running Ray cluster (auto: this machine's)")
    parser.add_argument(
        "--dashboard", action="store_true", help="start Ray's dashboard too, on 127.0.0.1:8265"
    )
    parser.add_argument("--working-dir", help="a directory that Ray copies to all machines")
    return parser
