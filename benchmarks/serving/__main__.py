"""Compares this project's server with others, as their clients see them.

    python -m benchmarks.serving --vllm-python PATH            # Qwen2.5-0.5B geometry, on a CPU
    python -m benchmarks.serving --geometry demo --workloads text images images-short
    python -m benchmarks.serving --geometry internvl3-1b --workloads images mixed
    python -m benchmarks.serving --model DIR --workloads real  # real texts, a trained model
    python -m benchmarks.serving --model org/name              # a real model, on a GPU
    python -m benchmarks.serving --model org/name --images --workloads images
    python -m benchmarks.serving --address http://host:port --model NAME   # a server that runs
    python -m benchmarks.serving --graph-cost                  # graph minus engine, demo model

Each server is started, measured and stopped, and they take turns (A B C, A B C), so that a machine
that becomes slower becomes so for all, and only one of them is ever there to use it. Clients that
wait for their answers (--clients) or requests that arrive at random (--rates) come in mixed
lengths, streamed, half of them sampled. Throughput counts the tokens of the measured seconds; what
is unfinished at their end is cut off. With --answers a measurement ends when so many are complete:
the same requests for every server, however fast it is. Then every server answers the same requests
alone and all at once, and the texts are compared. Prints a table; writes serving.json, serving.md
and serving.png into --out. On 2 cores the first of the commands takes about 30 minutes, and vLLM's
first start some more; docs/performance.md has others.

Exits with 1 if a server that promises equal answers gave others, or did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import command
from benchmarks.harness.client import Endpoint
from benchmarks.harness.load import Load
from benchmarks.harness.metrics import Target
from benchmarks.harness.peers import (
    DEFAULT_PEERS,
    PEERS,
    USAGE,
    VLLM_NGRAM_SETTINGS,
    Setup,
)
from benchmarks.harness.report import about, say, warn_if_busy
from benchmarks.harness.served_models import geometry_names, make_model, real_model
from benchmarks.serving.graph_cost import measure_cost
from benchmarks.serving.measure import Plan, measure_peers, measure_running
from benchmarks.serving.page import page
from benchmarks.serving.report import Report
from benchmarks.workloads.jobs import REAL_TEXTS, WITH_IMAGES, workload_names
from schema.model_variant import is_path

_RAMP_S = 4.0  # at least so long before a measurement
_ANSWERS_MOST_S = 600.0  # for those that end a measurement


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _refuse_idle(parser, options)
    command.end_with_servers()
    before = warn_if_busy("servers")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        if options.graph_cost:
            return measure_cost(Path(folder), options)
        report = _compare(parser, options, Path(folder))
    report.about["load_before"] = before
    print(report.table())
    report.save(options.out)
    file = options.out / "serving.md"
    file.write_text(page(report, sys.argv[1:] if arguments is None else arguments))
    print("written:", file)
    broken = [s.peer for s in report.same if s.promises and not s.equality.holds]
    absent = [peer for peer in report.skipped if PEERS[peer].promises]
    return 1 if broken or absent else 0


def _refuse_idle(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the run for options that would say nothing in it, or whose partner is missing."""
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}

    def refuse(names: set[str], why: str) -> None:
        if idle := sorted(names & given):
            parser.error(f"--{idle[0].replace('_', '-')} {why}")

    if options.graph_cost:
        used = {"graph_cost", "profile", "clients", "seconds", "rounds", "out"}
        refuse(given - used, "says nothing with --graph-cost: the demo model, one thread")
    if options.address:
        if not options.model:
            parser.error("--address needs --model: the name that the server knows it by")
        started = {"peers", "vllm_python", "vllm_ngram", "set", "threads", "context", "device"}
        started |= {"dtype", "every_round", "profile"}
        refuse(started, "says nothing with --address: that server runs already")
    else:
        refuse({"dialect", "promises"}, "needs --address")
    if options.answers and options.rates:
        parser.error("--answers says nothing with --rates: they go on whatever is answered")
    if options.model:
        refuse({"geometry", "model_dir"}, "says nothing with --model")
        is_local = is_path(options.model) and not options.address
        if is_local and not Path(options.model).is_dir():
            parser.error(f"--model: there is no directory {options.model}")
    else:
        refuse({"images"}, "needs --model")
        if REAL_TEXTS & set(options.workloads):
            parser.error("--workloads with real texts needs --model: a trained one")


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace, folder: Path) -> Report:
    if options.model:
        model = real_model(options.model, options.dtype, images=options.images)
    else:
        say(f"model of {options.geometry}'s geometry")
        model = make_model(options.geometry, options.dtype, options.model_dir or folder)
    if not model.images and WITH_IMAGES & set(options.workloads):
        parser.error("--workloads with images: this model sees no images")
    plan = Plan(
        loads=_loads(options),
        workloads=options.workloads,
        rounds=options.rounds,
        every_round=options.every_round,
        profile=options.out if options.profile and (options.clients or options.rates) else None,
        target=Target(options.target_first, options.target_token),
        equal=options.equal,
        equal_tokens=options.equal_tokens,
        orders=options.orders,
    )
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    about = _about(options, "GPU" if on_gpu else "CPU")
    if options.address:
        extra = USAGE if options.dialect == "chat" else {}
        endpoint = Endpoint(options.address, options.model, options.dialect, extra)
        try:
            return measure_running(plan, endpoint, model, about, promises=options.promises)
        except RuntimeError as error:
            parser.exit(1, f"{options.address}: {error}\n")
    setup = Setup(
        model=model,
        folder=folder,
        threads=options.threads,
        max_clients=max([*options.clients, options.equal, 64 if options.rates else 1]),
        context=options.context,
        vllm_python=options.vllm_python,
        on_gpu=on_gpu,
        engine=dict(options.set),
        vllm_ngram=options.vllm_ngram,
    )
    return measure_peers(plan, [PEERS[name] for name in options.peers], setup, about)


def _loads(options: argparse.Namespace) -> list[Load]:
    if options.answers:
        most = _ANSWERS_MOST_S
        return [Load(clients, None, 0.0, most, options.answers) for clients in options.clients]
    ramps = {clients: max(_RAMP_S, options.join * clients) for clients in options.clients}
    closed = [Load(clients, None, ramp, options.seconds) for clients, ramp in ramps.items()]
    return closed + [Load(None, rate, 2 * _RAMP_S, options.seconds) for rate in options.rates]


def _about(options: argparse.Namespace, device: str) -> dict[str, Any]:
    what = options.model or options.geometry
    if device == "GPU":
        device = torch.cuda.get_device_name()
    target = f"{options.target_first:g} s to the first token, {options.target_token:g} s for each"
    return {
        **about("serving", options, "torch", "transformers", "ray"),
        "title": f"{what}, {device}, {options.threads} threads",
        "target_text": target,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _parser() -> argparse.ArgumentParser:
    parser, numbers = command.parser("benchmarks.serving", __doc__), command.numbers
    add = parser.add_argument
    add("--geometry", default="qwen2.5-0.5b", choices=geometry_names())
    add("--model", help="a real checkpoint instead: a directory or a hub id")
    add("--images", action="store_true", help="--model sees images")
    add("--dtype", choices=["bfloat16", "float16", "float32"])
    add("--device", default="auto", choices=["auto", "cpu"])
    add("--model-dir", type=Path, metavar="DIR", help="keep the random model here")
    names = ", ".join(f"{name!r}" for name in PEERS)
    more = ", ".join(f"{name!r}" for name in PEERS if name not in DEFAULT_PEERS)
    usual = f"of {names}; those that are not compared unless they are named: {more}"
    add("--peers", nargs="+", default=DEFAULT_PEERS, choices=PEERS, metavar="PEER", help=usual)
    add("--address", help="measure this server instead, which runs already")
    add("--dialect", default="chat", choices=["chat", "tasks"], help="with --address")
    add("--promises", action="store_true", help="with --address: it promises equal answers")
    add("--vllm-python", type=Path, metavar="PATH", help="of an environment that has vLLM")
    option = "an option of this project's engines, such as speculation=off"
    add("--set", nargs="*", default=[], type=command.setting, metavar="NAME=VALUE", help=option)
    ngram = f"its --speculative-config for n-grams, if not {json.dumps(VLLM_NGRAM_SETTINGS)}"
    add("--vllm-ngram", type=json.loads, default=VLLM_NGRAM_SETTINGS, metavar="JSON", help=ngram)
    kinds = workload_names()
    add("--workloads", nargs="+", default=["text"], choices=kinds, metavar="KIND", help=str(kinds))
    add("--clients", type=numbers(int), default=[1, 16, 64], metavar="1,16,64")
    add("--rates", type=numbers(float), default=[], metavar="0.5,1", help="requests a second")
    add("--rounds", type=int, default=2, help="of each server (2)")
    slow = [peer.name for peer in PEERS.values() if peer.once]
    once = f"without it {', '.join(map(repr, slow))} have one"
    add("--every-round", action="store_true", help=once)
    joining = "between one client and the next; when all are there, the measurement begins"
    add("--join", type=float, default=0.3, metavar="S", help=joining)
    add("--seconds", type=float, default=20.0, metavar="S", help="of each measurement (20)")
    ending = "end each measurement after so many answers, not after --seconds"
    add("--answers", type=int, metavar="N", help=ending)
    add("--target-first", type=float, default=5.0, metavar="S", help="of a good answer")
    add("--target-token", type=float, default=0.25, metavar="S", help="of a good answer")
    add("--equal", type=int, default=16, metavar="N", help="requests to compare (16); 0: none")
    add("--equal-tokens", type=int, default=16, metavar="N", help="of each of them (16)")
    add("--orders", type=int, default=3, help="in which all are sent at once")
    add("--context", type=int, default=1024, help="tokens of the longest prompt and answer")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    add("--graph-cost", action="store_true", help="what the graph adds to the engine")
    add("--profile", action="store_true", help="py-spy on ingress and replica of ours")
    return parser


if __name__ == "__main__":
    sys.exit(main())
