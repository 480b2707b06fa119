"""Our routing beside Ray's default one: ``python -m benchmarks.reliability.routing``.

Serves the demo model twice by a real ``serve run``, with several replicas each: once with our
router, which sends tasks that begin alike to the same replica, once with Ray's default one.
Conversations with long system messages of their own go turn by turn through the one and the other,
alternating, with other words in each round. All system messages together are more than the KV cache
of one replica holds. Prints which share of the prompts' tokens was known already, and how many
turns a second were answered; writes ``routing.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.engine.report import aligned, say
from benchmarks.harness.server import DEMO, serving
from benchmarks.reliability.tasks import loads

OURS, RAYS = "by-beginning", "by-load"
RAYS_DEFAULT = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
WORDS = ("red", "blue", "green", "square", "circle", "star", "count", "from", "what", "this")


@dataclass(frozen=True)
class Row:
    """All conversations once, through one router."""

    router: str
    round: int
    turns: int
    seconds: float
    prompt_tokens: int
    reused_tokens: int
    turn_p50_s: float

    @property
    def turns_per_s(self) -> float:
        """How many turns a second were answered."""
        return self.turns / self.seconds

    @property
    def reused(self) -> float:
        """Which share of the prompts' tokens was not computed again."""
        return self.reused_tokens / self.prompt_tokens


async def conversation(
    http: httpx.AsyncClient, model: str, system: str, turns: int
) -> list[tuple[int, float]]:
    """Prompt tokens and seconds of each turn."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    found = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Count from {turn} to 99."})
        config = {"max_new_tokens": 16}
        task = {"model": model, "messages": messages, "generation_config": config}
        began = time.monotonic()
        response = await http.post("/v1/tasks", json=task)
        response.raise_for_status()
        body = response.json()
        found.append((body["usage"]["prompt_tokens"], time.monotonic() - began))
        messages.append(body["choices"][0]["message"])
    return found


async def measure(address: str, model: str, number: int, options: argparse.Namespace) -> Row:
    """All conversations through one model's router, some of them at a time."""
    chance = random.Random(number)  # the same texts for both routers
    systems = [
        " ".join(chance.choices(WORDS, k=options.words)) for _ in range(options.conversations)
    ]
    places = asyncio.Semaphore(options.clients)
    async with httpx.AsyncClient(base_url=address, timeout=600) as http:

        async def placed(system: str) -> list[tuple[int, float]]:
            async with places:
                return await conversation(http, model, system, options.turns)

        before = sum(load["prefix_tokens_reused"] for load in await loads(http, model))
        began = time.monotonic()
        found = [turn for turns in await asyncio.gather(*map(placed, systems)) for turn in turns]
        seconds = time.monotonic() - began
        after = sum(load["prefix_tokens_reused"] for load in await loads(http, model))
    return Row(
        model,
        number,
        len(found),
        seconds,
        sum(tokens for tokens, _ in found),
        after - before,
        median(took for _, took in found),
    )


def table(rows: Sequence[Row]) -> str:
    """Medians over the rounds, for people."""
    lines = [["router", "known tokens", "turns/s", "a turn, p50"]]
    for router, name in ((OURS, "ours"), (RAYS, "Ray's default")):
        own = [row for row in rows if row.router == router]
        lines.append(
            [
                name,
                f"{median(row.reused for row in own):.0%}",
                f"{median(row.turns_per_s for row in own):.2f}",
                f"{median(row.turn_p50_s for row in own):.2f} s",
            ]
        )
    return aligned(lines, names=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.reliability.routing"
    )
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--words", type=int, default=600, help="of each system message")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-tokens", type=int, default=8192, help="of each replica")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    fields = {
        "min_replicas": options.replicas,
        "max_replicas": options.replicas,
        "engine": {"kv_cache_tokens": options.kv_cache_tokens, "threads": 1},
    }
    args = {"models": [DEMO | fields | {"id": router} for router in (OURS, RAYS)]}
    rays = {
        "name": f"Model:{RAYS}:float32",
        "request_router_config": {"request_router_class": RAYS_DEFAULT},
    }
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(args, Path(folder), deployments=[rays]) as server,
    ):
        for number in range(options.rounds):
            for router in (OURS, RAYS) if number % 2 == 0 else (RAYS, OURS):
                rows.append(asyncio.run(measure(server.address, router, number, options)))
                say(f"round {number}, {router}: {rows[-1].turns_per_s:.2f} turns/s")
    say(table(rows))
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    measured = [
        asdict(row) | {"turns_per_s": row.turns_per_s, "reused": row.reused} for row in rows
    ]
    data = {"settings": settings, "rows": measured}
    (options.output / "routing.json").write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
