"""Compares the engine with other ways to run the same tasks: ``python -m benchmarks.engine``.

Every peer has its own process and loads the model once; only one works at a time, and they
take turns (A B C, A B C) for every number of tasks, so that a machine that becomes slower becomes
so for all. Prints a table, writes ``engine.json`` and ``engine.png``. On CUDA the decode step is
compared with the memory-bandwidth floor as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median

import torch

from benchmarks.engine import floor
from benchmarks.engine.in_process import ONE_AT_A_TIME, further_names, peer_names
from benchmarks.engine.peer import PeerSettings
from benchmarks.engine.report import FloorRow, Report, Row, SameAnswers
from benchmarks.engine.worker import RunResult, Worker
from benchmarks.harness import command, report
from benchmarks.harness.client import Job
from benchmarks.harness.processes import in_own_process
from benchmarks.harness.report import say
from benchmarks.harness.tasks import ANSWER_TOKENS, PROMPT_TOKENS, mixed_jobs, uniform_jobs
from demo.random_model import GEOMETRIES, save_model, weight_bytes_per_step

_WARM_UP_ROUND = -1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers inherit it
    # OpenMP threads that wait for one another burn their time when others have their cores, and by
    # far more in some peers than in others.
    load = report.warn_if_busy("peers on CPU")
    with ExitStack() as stack:
        model_dir = options.model_dir
        if model_dir is None:
            model_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        say(f"model of {options.geometry}'s geometry in {options.dtype}, random weights")
        in_own_process(save_model, options.geometry, options.dtype, model_dir)
        workers = [Worker(name, _peer_settings(options, model_dir)) for name in options.peers]
        for worker in workers:
            stack.callback(worker.close)
        found = _measure(options, workers, model_dir)
        found.about["load_before"] = load
    print(found.table())
    names = ("geometry", "dtype", "device", "threads")
    title = ", ".join(f"{name} {found.about[name]}" for name in names)
    panels = found.panels()
    report.write(
        options.out, "engine", found.to_json(), panels, columns=3, size=(15, 4.5), title=title
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.engine", __doc__)
    names, add, counts = peer_names(), parser.add_argument, command.numbers(int)
    add("--tasks", type=counts, default=[1, 4, 16, 64], help="1,4,16,64")
    add("--rounds", type=int, default=2)
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--geometry", default="qwen2.5-0.5b", choices=list(GEOMETRIES))
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    choices = [*names, *further_names()]
    add("--peers", nargs="+", default=names, choices=choices, metavar="PEER", help=str(choices))
    same = "tokens of each prompt and of each answer; without it lengths are mixed"
    add("--uniform", type=counts, metavar="PROMPT,ANSWER", help=same)
    option = "an option of the engines, such as speculation=off"
    add("--set", nargs="*", default=[], type=command.setting, metavar="NAME=VALUE", help=option)
    add("--model-dir", metavar="DIR", help="keep the model here for the next run")
    compared = "compare the answers to N tasks at once with those alone; 0: do not"
    add("--alone", type=int, default=16, metavar="N", help=compared)
    measured = "measure the memory-bandwidth floor; without it: on CUDA only"
    add("--floor", action=argparse.BooleanOptionalAction, help=measured)
    add("--floor-rows", type=counts, default=[1, 32])
    step = "tokens of a step of transformers' continuous batching"
    add("--cb-batch-tokens", type=int, metavar="N", help=step)
    options = parser.parse_args(arguments)
    on_cuda = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not on_cuda:
        parser.error("--device cuda, but torch sees no CUDA device")
    if options.uniform is not None and len(options.uniform) != 2:
        parser.error("--uniform takes two numbers, such as 512,1")
    if options.floor is None:
        options.floor = on_cuda
    if not options.floor:
        options.floor_rows = []
    return options


def _peer_settings(options: argparse.Namespace, model_dir: str) -> PeerSettings:
    return PeerSettings(
        model_dir=model_dir,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        max_tasks=max([*options.tasks, *options.floor_rows]),
        max_prompt=max(PROMPT_TOKENS[1], floor.PROMPT_TOKENS, (options.uniform or [0])[0]),
        max_answer=max(ANSWER_TOKENS[1], floor.ANSWER_TOKENS, (options.uniform or [0])[-1]),
        cb_batch_tokens=options.cb_batch_tokens,
        engine_options=dict(options.set),
    )


def _measure(options: argparse.Namespace, workers: Sequence[Worker], model_dir: str) -> Report:
    for worker in workers:
        start = time.perf_counter()
        worker.load(_jobs(options, min(options.tasks), _WARM_UP_ROUND))
        say(f"{worker.name}: loaded and warmed up in {time.perf_counter() - start:.1f} s")
    rows: list[Row] = []
    same: list[SameAnswers] = []
    alone_count = options.alone and _alone_count(options.tasks, options.alone)
    for count in options.tasks:
        for round_index in range(options.rounds):
            tasks = _jobs(options, count, round_index)
            for worker in workers:
                run = worker.run(tasks)
                rows.append(_row(worker.name, tasks, round_index, run))
                say(
                    f"{count} tasks, round {round_index + 1} of {options.rounds}, {worker.name}: "
                    f"{rows[-1].tokens_per_s:.1f} tokens/s"
                )
                if count == alone_count and round_index == 0:
                    same.append(_compare_alone(worker, tasks, run))
                    say(f"  the same answers as alone: {same[-1].same} of {count}")
    bandwidth = workers[0].copy_bandwidth() if options.floor else None
    return Report(
        about={
            **report.about("engine", options, "torch", "transformers"),
            "geometry": options.geometry,
            "dtype": options.dtype,
            "threads": options.threads,
            "device": _device_name(options),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "model": asdict(GEOMETRIES[options.geometry]),
            "lengths": [
                [len(task.text), task.max_tokens] for task in _jobs(options, max(options.tasks), 0)
            ],
            "peers": {worker.name: worker.describe() for worker in workers},
        },
        rows=rows,
        same_answers=same,
        copy_bandwidth=bandwidth,
        floor=_floor(options, workers, model_dir, bandwidth) if bandwidth else [],
    )


def _jobs(options: argparse.Namespace, count: int, round_index: int) -> list[Job]:
    if options.uniform is None:
        return mixed_jobs(count, round_index)
    prompt, answer = options.uniform
    return uniform_jobs(count, prompt, answer, round_index)


def _device_name(options: argparse.Namespace) -> str:
    on_cuda = options.device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_cuda else "cpu"


def _alone_count(counts: Sequence[int], wanted: int) -> int:
    """The largest number of tasks that is not above the wanted one, or else the smallest."""
    return max((count for count in counts if count <= wanted), default=min(counts))


def _row(peer: str, tasks: Sequence[Job], round_index: int, run: RunResult) -> Row:
    for task, result in zip(tasks, run.results, strict=True):
        if result.tokens != task.max_tokens:
            raise RuntimeError(f"{peer}: {result.tokens} tokens instead of {task.max_tokens}")
    tokens = sum(result.tokens for result in run.results)
    first = [result.first_s for result in run.results]
    texts = json.dumps([result.text for result in run.results])
    return Row(
        peer=peer,
        tasks=len(tasks),
        round=round_index,
        asked_tokens=sum(task.max_tokens for task in tasks),
        tokens=tokens,
        seconds=run.seconds,
        tokens_per_s=tokens / run.seconds,
        first_token_p50_s=median(first),
        first_token_max_s=max(first),
        peak_memory_bytes=run.peak_memory_bytes,
        answers=hashlib.sha256(texts.encode()).hexdigest()[:16],
    )


def _compare_alone(worker: Worker, tasks: Sequence[Job], run: RunResult) -> SameAnswers:
    alone = [worker.run([task]).results[0].text for task in tasks]
    same = sum(a == c.text for a, c in zip(alone, run.results, strict=True))
    return SameAnswers(worker.name, len(tasks), same)


def _floor(
    options: argparse.Namespace, workers: Sequence[Worker], model_dir: str, bandwidth: float
) -> list[FloorRow]:
    geometry = GEOMETRIES[options.geometry]
    itemsize = getattr(torch, options.dtype).itemsize
    weights = weight_bytes_per_step(model_dir, geometry, itemsize)
    found = []
    for rows in options.floor_rows:
        kv_bytes = floor.kv_bytes(rows, geometry.kv_elements_per_token * itemsize)
        tasks = uniform_jobs(rows, floor.PROMPT_TOKENS, floor.ANSWER_TOKENS)
        for worker in workers:
            if rows > 1 and worker.name == ONE_AT_A_TIME:
                continue  # never has a step of several rows
            step_s = median(
                floor.step_seconds(tasks, worker.run(tasks).results) for _ in range(options.rounds)
            )
            least_s = (weights + kv_bytes) / bandwidth
            found.append(FloorRow(worker.name, rows, step_s, least_s, weights, kv_bytes))
            say(f"floor, {rows} rows, {worker.name}: {found[-1].fraction:.0%}")
    return found


if __name__ == "__main__":
    main()
