"""Compares the engine with other ways to run the same tasks: ``python -m benchmarks.engine``.

Every peer has a process of its own and loads the model once; only one works at a time, and they
take turns (A B C, A B C) for every number of tasks, so that a machine that becomes slower becomes
so for all. Prints a table, writes ``engine.json`` and ``engine.png``. On CUDA the decode step is
compared with the memory-bandwidth floor as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from benchmarks.engine import floor
from benchmarks.engine.in_process import ONE_AT_A_TIME, PeerSettings, peer_names
from benchmarks.engine.report import FloorRow, Report, Row, SameAnswers, say
from benchmarks.engine.worker import RunResult, Worker, in_own_process
from benchmarks.harness.models import (
    ANSWER_TOKENS,
    GEOMETRIES,
    PROMPT_TOKENS,
    BenchTask,
    mixed_tasks,
    save_model,
    uniform_tasks,
    weight_bytes_per_step,
)

_WARM_UP_ROUND = -1
_QUIET_LOAD = 0.5  # running processes, averaged over a minute


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers inherit it
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD:
        # OpenMP threads that wait for one another burn their time when others have their cores,
        # and by far more in some peers than in others.
        say(f"the machine is busy (load {load:.1f}): peers on CPU cannot be compared")
    with ExitStack() as stack:
        model_dir = options.model_dir
        if model_dir is None:
            model_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        say(f"model of {options.geometry}'s geometry in {options.dtype}, random weights")
        in_own_process(save_model, options.geometry, options.dtype, model_dir)
        workers = [Worker(name, _peer_settings(options, model_dir)) for name in options.peers]
        for worker in workers:
            stack.callback(worker.close)
        report = _measure(options, workers, model_dir)
        report.about["load_before"] = load
    print(report.table())
    files = report.save(options.out)
    print("written:", *files)
    if len(files) == 1:
        print("no plot: matplotlib is not installed (pip install 'gpt-task-serve[bench]')")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = peer_names()
    parser.add_argument("--tasks", type=_counts, default=[1, 4, 16, 64], help="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--geometry", default="qwen2.5-0.5b", choices=list(GEOMETRIES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--peers", nargs="+", default=names, choices=names, metavar="PEER")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    parser.add_argument("--model-dir", metavar="DIR", help="keep the model here for the next run")
    parser.add_argument(
        "--alone",
        type=int,
        default=16,
        metavar="N",
        help="compare the crowd's answers with those alone for N tasks; 0: do not",
    )
    parser.add_argument(
        "--floor",
        action=argparse.BooleanOptionalAction,
        help="measure the memory-bandwidth floor; without it: on CUDA only",
    )
    parser.add_argument("--floor-rows", type=_counts, default=[1, 32])
    parser.add_argument(
        "--cb-batch-tokens",
        type=int,
        metavar="N",
        help="tokens of a step of transformers' continuous batching",
    )
    options = parser.parse_args(arguments)
    on_cuda = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not on_cuda:
        parser.error("--device cuda, but torch sees no CUDA device")
    if options.floor is None:
        options.floor = on_cuda
    if not options.floor:
        options.floor_rows = []
    return options


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(text)
    return counts


def _peer_settings(options: argparse.Namespace, model_dir: str) -> PeerSettings:
    return PeerSettings(
        model_dir=model_dir,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        max_tasks=max([*options.tasks, *options.floor_rows]),
        max_prompt=max(PROMPT_TOKENS[1], floor.FLOOR_PROMPT_TOKENS),
        max_answer=max(ANSWER_TOKENS[1], floor.FLOOR_ANSWER_TOKENS),
        cb_batch_tokens=options.cb_batch_tokens,
    )


def _measure(options: argparse.Namespace, workers: Sequence[Worker], model_dir: str) -> Report:
    machine: dict[str, str] = {}
    for worker in workers:
        start = time.perf_counter()
        machine = worker.call("load", mixed_tasks(min(options.tasks), _WARM_UP_ROUND))
        say(f"{worker.name}: loaded and warmed up in {time.perf_counter() - start:.1f} s")
    rows: list[Row] = []
    same: list[SameAnswers] = []
    alone_count = options.alone and _alone_count(options.tasks, options.alone)
    for count in options.tasks:
        for round_index in range(options.rounds):
            tasks = mixed_tasks(count, round_index)
            for worker in workers:
                run: RunResult = worker.call("run", tasks)
                rows.append(_row(worker.name, tasks, round_index, run))
                say(
                    f"{count} tasks, round {round_index + 1} of {options.rounds}, {worker.name}: "
                    f"{rows[-1].tokens_per_s:.1f} tokens/s"
                )
                if count == alone_count and round_index == 0:
                    same.append(_compare_alone(worker, tasks, run))
                    say(f"  the same answers as alone: {same[-1].same} of {count}")
    bandwidth = workers[0].call("copy_bandwidth") if options.floor else None
    return Report(
        about={
            "benchmark": "engine",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "geometry": options.geometry,
            "dtype": options.dtype,
            "threads": options.threads,
            "machine": platform.machine(),
            **machine,
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "model": asdict(GEOMETRIES[options.geometry]),
            "lengths": [
                [len(task.prompt), task.answer_tokens]
                for task in mixed_tasks(max(options.tasks), 0)
            ],
            "peers": {worker.name: worker.call("describe") for worker in workers},
        },
        rows=rows,
        same_answers=same,
        copy_bandwidth=bandwidth,
        floor=_floor(options, workers, model_dir, bandwidth) if bandwidth else [],
    )


def _alone_count(counts: Sequence[int], wanted: int) -> int:
    """The largest number of tasks that is not above the wanted one, or else the smallest."""
    return max((count for count in counts if count <= wanted), default=min(counts))


def _row(peer: str, tasks: Sequence[BenchTask], round_index: int, run: RunResult) -> Row:
    for task, result in zip(tasks, run.results, strict=True):
        if result.tokens != task.answer_tokens:
            raise RuntimeError(f"{peer}: {result.tokens} tokens instead of {task.answer_tokens}")
    tokens = sum(result.tokens for result in run.results)
    first = [result.first_s for result in run.results]
    texts = json.dumps([result.text for result in run.results])
    return Row(
        peer=peer,
        tasks=len(tasks),
        round=round_index,
        asked_tokens=sum(task.answer_tokens for task in tasks),
        tokens=tokens,
        seconds=run.seconds,
        tokens_per_s=tokens / run.seconds,
        first_token_p50_s=median(first),
        first_token_max_s=max(first),
        peak_memory_bytes=run.peak_memory_bytes,
        answers=hashlib.sha256(texts.encode()).hexdigest()[:16],
    )


def _compare_alone(worker: Worker, tasks: Sequence[BenchTask], crowd: RunResult) -> SameAnswers:
    alone = [worker.call("run", [task]).results[0].text for task in tasks]
    same = sum(a == c.text for a, c in zip(alone, crowd.results, strict=True))
    return SameAnswers(worker.name, len(tasks), same)


def _floor(
    options: argparse.Namespace, workers: Sequence[Worker], model_dir: str, bandwidth: float
) -> list[FloorRow]:
    geometry = GEOMETRIES[options.geometry]
    itemsize = getattr(torch, options.dtype).itemsize
    weights = weight_bytes_per_step(model_dir, geometry, itemsize)
    found = []
    for rows in options.floor_rows:
        cost = floor.step_cost(
            rows,
            weight_bytes=weights,
            kv_bytes_per_token=geometry.kv_elements_per_token * itemsize,
            bandwidth=bandwidth,
        )
        tasks = uniform_tasks(
            rows,
            prompt_tokens=floor.FLOOR_PROMPT_TOKENS,
            answer_tokens=floor.FLOOR_ANSWER_TOKENS,
        )
        for worker in workers:
            if rows > 1 and worker.name == ONE_AT_A_TIME:
                continue  # never has a step of several rows
            times = []
            for _ in range(options.rounds):
                run: RunResult = worker.call("run", tasks)
                times.append(floor.step_seconds(tasks, run.results))
            found.append(
                FloorRow(worker.name, rows, median(times), cost.floor_s, weights, cost.kv_bytes)
            )
            say(f"floor, {rows} rows, {worker.name}: {found[-1].fraction:.0%}")
    return found


if __name__ == "__main__":
    main()
