"""Puts the loads of a plan on servers, one server at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.client import Client, Endpoint
from benchmarks.harness.load import Load, run
from benchmarks.harness.metrics import Summary, Target, summary
from benchmarks.harness.models import ServedModel
from benchmarks.harness.peers import ECHO, Peer, Setup
from benchmarks.harness.report import say
from benchmarks.harness.server import NotReadyError, Server, log_tail
from benchmarks.serving.equality import Equality, compare, equality_jobs
from benchmarks.serving.profile import profile_server
from benchmarks.serving.report import Report, Row, Same
from benchmarks.workloads.jobs import REAL_TEXTS, WITH_IMAGES, jobs

_SETTLE_S = 300.0
_WARM_UP_TOKENS = 8
_WARM_UP_REAL = 10  # each kind of text, greedy and sampled


@dataclass(frozen=True)
class Plan:
    """What is measured of every server.

    Attributes:
        profile: where profiles of this project's servers go; None: there are none.
        every_round: whether slow servers have all rounds too, and not one.
        equal: how many requests are compared alone and all at once; 0: none.
        equal_tokens: the most tokens of each.
        orders: in which they are sent at once.
    """

    loads: Sequence[Load]
    workloads: Sequence[str]
    rounds: int
    target: Target
    equal: int
    equal_tokens: int
    orders: int
    every_round: bool = False
    profile: Path | None = None


async def measure_load(
    endpoint: Endpoint, plan: Plan, load: Load, model: ServedModel, workload: str, stream: str
) -> Summary:
    """Put one load on a server that runs."""
    async with Client(endpoint) as client:
        await client.settle(_SETTLE_S)
        found = await run(client, load, jobs(workload, model, stream))
    return summary(found, plan.target)


async def measure_equality(
    endpoint: Endpoint, plan: Plan, model: ServedModel, workload: str, *, seeds: bool
) -> Equality:
    """Compare a server's answers alone and all at once."""
    asked = equality_jobs(model, workload, plan.equal, plan.equal_tokens, seeds=seeds)
    async with Client(endpoint) as client:
        await client.settle(_SETTLE_S)
        return await compare(client, asked, plan.orders)


async def _warm_up(endpoint: Endpoint, model: ServedModel, workload: str) -> None:
    """A few requests of each kind: kernels are chosen and caches made before the clock runs."""
    count = _WARM_UP_REAL if workload in REAL_TEXTS else 1
    first, *others = equality_jobs(model, workload, count, _WARM_UP_TOKENS, seeds=True)
    async with Client(endpoint) as client:
        # It is greedy: transformers' continuous batching samples all requests as the first one.
        await client.send(first)
        await asyncio.gather(*(client.send(job) for job in (first, first, *others)))


def measure_peers(plan: Plan, peers: Sequence[Peer], setup: Setup, about: dict[str, Any]) -> Report:
    """Start each server in turn, once a round, and measure it. What cannot run is skipped."""
    report = Report(about, [], [], {}, {})
    for peer in peers:  # before minutes are spent on the others
        if (why := peer.missing(setup)) is not None:
            report.skipped[peer.name] = why
            say(f"skipped: {peer.name}: {why}")
    for round_index in range(plan.rounds):
        for peer in peers:
            if peer.name in report.skipped or (
                peer.once and round_index > 0 and not plan.every_round
            ):
                continue
            try:
                _measure_peer(plan, peer, setup, round_index, report)
            except RuntimeError as error:  # the others can still be measured
                report.skipped[peer.name] = str(error).strip().splitlines()[-1]
                log = "" if isinstance(error, NotReadyError) else log_tail(setup.folder)
                say(f"given up: {peer.name}: {error}\n{log}")
    return report


def _measure_peer(plan: Plan, peer: Peer, setup: Setup, round_index: int, report: Report) -> None:
    begin = time.perf_counter()
    with peer.start(setup) as server:
        report.started_s.setdefault(peer.name, []).append(time.perf_counter() - begin)
        say(f"{peer.name}: started in {report.started_s[peer.name][-1]:.1f} s")
        endpoint = peer.endpoint(setup, server)
        for workload in plan.workloads:
            if peer.name == ECHO and workload in WITH_IMAGES:
                continue
            asyncio.run(_warm_up(endpoint, setup.model, workload))
            _measure_loads(plan, peer, endpoint, setup.model, workload, round_index, report)
            if plan.profile and peer.promises and round_index == 0:
                _profile(plan, peer.name, server, endpoint, setup.model, workload)
            if plan.equal and round_index == 0 and peer.name != ECHO:
                seeds = endpoint.seeds
                found = asyncio.run(
                    measure_equality(endpoint, plan, setup.model, workload, seeds=seeds)
                )
                report.same.append(Same(peer.name, workload, peer.promises, found))
                say(f"  {workload}, equal answers: {found}")


def _profile(
    plan: Plan, name: str, server: Server, endpoint: Endpoint, model: ServedModel, workload: str
) -> None:
    """Where the server's processes spend their time while the largest load is on it."""
    load = max(plan.loads, key=lambda load: load.clients or load.rate or 0.0)

    async def loaded(seconds: float) -> None:
        async with Client(endpoint) as client:
            longer = replace(load, ramp_s=0.0, seconds=seconds, answers=None)
            await run(client, longer, jobs(workload, model, "profile"))

    assert plan.profile is not None
    out = plan.profile
    profile_server(server, f"{name}-{workload}", out, lambda seconds: asyncio.run(loaded(seconds)))


def _measure_loads(
    plan: Plan,
    peer: Peer | str,
    endpoint: Endpoint,
    model: ServedModel,
    workload: str,
    round_index: int,
    report: Report,
) -> None:
    """All loads of a workload on a server that runs; of one that is no peer, only its name."""
    name, count = (peer, None) if isinstance(peer, str) else (peer.name, peer.drafts)
    for load in plan.loads:
        stream = f"{round_index}/{load}"
        before = count(endpoint) if count else None
        found = asyncio.run(measure_load(endpoint, plan, load, model, workload, stream))
        drafts = count(endpoint) - before if count and before is not None else None
        row = Row(name, workload, load.clients, load.rate, round_index, found, drafts)
        report.rows.append(row)
        guessed = f", drafts {drafts}" if drafts and drafts.proposed else ""
        say(
            f"  round {round_index + 1} of {plan.rounds}, {workload}, {load}: "
            f"{found.tokens_per_s:.1f} tokens/s{guessed}"
        )
        for error, times in found.errors.items():
            say(f"    {times} x {error}")


def measure_running(
    plan: Plan, endpoint: Endpoint, model: ServedModel, about: dict[str, Any], *, promises: bool
) -> Report:
    """Measure a server that runs already."""
    name = endpoint.address
    report = Report(about, [], [], {}, {})
    for workload in plan.workloads:
        for round_index in range(plan.rounds):
            _measure_loads(plan, name, endpoint, model, workload, round_index, report)
        if plan.equal:
            found = asyncio.run(measure_equality(endpoint, plan, model, workload, seeds=True))
            report.same.append(Same(name, workload, promises, found))
    return report
