"""Two source trees of this project compared: ``python -m benchmarks.engine.trees --before TREE``.

Each tree's engine has its own process and loads the same model; only one works at a time, and they
take turns (A B, B A, A B...) with the same tasks. TREE is another checkout, such as

    git worktree add ../before COMMIT

``--set speculation=off`` sets an option of this tree's engine only. Prints a table of tokens a
second, this tree's over the other's; writes ``trees.json``. Exits with 1 if answers differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import command, report
from benchmarks.harness.report import say
from benchmarks.harness.server import REPOSITORY
from benchmarks.speculation.workloads import MODEL, tasks_of
from benchmarks.workloads.real_texts import HALVES

BEFORE, AFTER = "before", "after"
_WORKER = Path(__file__).with_name("tree_worker.py")


@dataclass(frozen=True)
class Row:
    """One run of one tree."""

    tree: str
    clients: int
    round: int
    tokens: int
    seconds: float

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class TreeWorker:
    """This side of a tree's process. Every call waits."""

    def __init__(self, process: subprocess.Popen[str], config: dict[str, Any]) -> None:
        self._process = process
        self.card: dict[str, Any] = self._ask(config)["card"]

    def run(self, tasks: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
        """Texts, tokens and seconds of tasks."""
        return self._ask({"tasks": list(tasks), "clients": clients})

    def _ask(self, value: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(value), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a tree's process has ended; what it said stands above")
        reply: dict[str, Any] = json.loads(line)
        return reply


@contextmanager
def tree_worker(tree: Path, config: dict[str, Any], threads: int) -> Iterator[TreeWorker]:
    """An engine of a tree, until the body ends."""
    with subprocess.Popen(
        # -P: the worker's own folder is not among those that modules are imported from.
        [sys.executable, "-P", str(_WORKER)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield TreeWorker(process, config)
        finally:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    load = report.warn_if_busy("trees")
    config = {
        "model": str(options.model_dir.resolve()),
        "model_id": MODEL,
        "dtype": options.dtype,
        "threads": options.threads,
        "kv_cache_tokens": 1024 * max(options.clients),
        "local_files_only": True,
    }
    with ExitStack() as stack:
        workers = {}
        for name, tree, more in ((BEFORE, options.before, {}), (AFTER, REPOSITORY, options.set)):
            say(f"loading the engine of {tree}")
            worker = tree_worker(tree, config | dict(more), options.threads)
            workers[name] = stack.enter_context(worker)
        rows = _measure(options, workers)
        cards = {name: worker.card for name, worker in workers.items()}
    print(text(rows))
    data = report.about("trees", options, "torch", "transformers") | {"load_before": load}
    runs = [asdict(row) | {"tokens_per_s": row.speed} for row in rows]
    report.write(options.out, "trees", data | {"cards": cards, "runs": runs})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.engine.trees", __doc__)
    add, counts = parser.add_argument, command.numbers(int)
    add("--before", type=Path, required=True, metavar="TREE", help="the other source tree")
    add("--model-dir", type=Path, required=True, metavar="DIR", help="as of demo.smollm2")
    setting = "an option of this tree's engine"
    add("--set", nargs="*", default=[], type=command.setting, metavar="NAME=VALUE", help=setting)
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    add("--clients", type=counts, default=[1, 16], help="1,16")
    add("--tasks", type=int, default=16, help="of a run; twice as many as clients at least")
    add("--rounds", type=int, default=8)
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace, workers: dict[str, TreeWorker]) -> list[Row]:
    rows = []
    for clients in options.clients:
        for number in range(-1, options.rounds):  # the first warms up
            tasks = _tasks(max(options.tasks, 2 * clients), f"trees {clients} {number}")
            found = {}
            names = (BEFORE, AFTER) if number % 2 == 0 else (AFTER, BEFORE)
            for name in names:
                found[name] = workers[name].run(tasks, clients)
                row = Row(name, clients, number, found[name]["tokens"], found[name]["seconds"])
                if number >= 0:
                    rows.append(row)
                    of = f"round {number + 1} of {options.rounds}"
                    say(f"{clients} clients, {of}, {name}: {row.speed:.1f} tokens/s")
            if found[BEFORE]["texts"] != found[AFTER]["texts"]:
                sys.exit(f"the answers of the trees differ: {json.dumps(found)}")
    return rows


def _tasks(count: int, turn: str) -> list[dict[str, Any]]:
    """Tasks of the workload *chat*, half of them sampled, with fields that older trees know."""
    tasks = [task for half in HALVES for task in tasks_of("chat", half, count // 2, turn)]
    kept = {"model", "messages", "generation_config", "seed"}
    return [task.model_dump(mode="json", include=kept, exclude_none=True) for task in tasks]


def ratios(rows: Sequence[Row]) -> dict[int, list[float]]:
    """Tokens a second of this tree over the other's, in each round, by number of clients."""
    found: dict[int, list[float]] = {}
    for (clients, _), pair in report.grouped(rows, lambda row: (row.clients, row.round)).items():
        speeds = {row.tree: row.speed for row in pair}
        found.setdefault(clients, []).append(speeds[AFTER] / speeds[BEFORE])
    return found


def text(rows: Sequence[Row]) -> str:
    """A table for people."""
    found = ratios(rows)
    by_clients = report.grouped(rows, lambda row: row.clients).values()

    def speed(own: list[Row], tree: str) -> str:
        return f"{report.middle([r for r in own if r.tree == tree], lambda r: r.speed):.1f}"

    columns: dict[str, Callable[[list[Row]], str]] = {
        "clients": lambda own: str(own[0].clients),
        BEFORE: lambda own: speed(own, BEFORE),
        AFTER: lambda own: speed(own, AFTER),
        "after over before": lambda own: f"{median(found[own[0].clients]):.3f}x",
        "rounds": lambda own: (
            f"{min(found[own[0].clients]):.3f} to {max(found[own[0].clients]):.3f}"
        ),
    }
    return "tokens a second, medians over the rounds\n" + report.table(by_clients, columns)


if __name__ == "__main__":
    main()
