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
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from benchmarks.harness import command
from benchmarks.harness.client import Client, Endpoint
from benchmarks.harness.load import at_once
from benchmarks.harness.report import about, grouped, middle, say, table, write
from benchmarks.harness.server import DEMO, serving

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
    client: Client, model: str, system: str, turns: int
) -> list[tuple[int, float]]:
    """Prompt tokens and seconds of each turn."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    found = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Count from {turn} to 99."})
        config = {"max_new_tokens": 16}
        task = {"model": model, "messages": messages, "generation_config": config}
        answer = await client.ask(task, stream=False)
        if not answer.complete:
            raise RuntimeError(answer.error)
        (_, body), *_ = answer.events
        found.append((body["usage"]["prompt_tokens"], answer.seconds))
        messages.append(body["choices"][0]["message"])
    return found


async def measure(address: str, model: str, number: int, options: argparse.Namespace) -> Row:
    """All conversations through one model's router, some of them at a time."""
    chance = random.Random(number)  # the same texts for both routers
    systems = [
        " ".join(chance.choices(WORDS, k=options.words)) for _ in range(options.conversations)
    ]
    async with Client(Endpoint(address, model)) as client:
        talk = partial(conversation, client, model, turns=options.turns)
        before = sum(load["prefix_tokens_reused"] for load in await client.loads())
        began = time.monotonic()
        talks = await at_once(systems, options.clients, talk, "conversations")
        seconds = time.monotonic() - began
        after = sum(load["prefix_tokens_reused"] for load in await client.loads())
    found = [turn for turns in talks for turn in turns]
    return Row(
        model,
        number,
        len(found),
        seconds,
        sum(tokens for tokens, _ in found),
        after - before,
        median(took for _, took in found),
    )


_COLUMNS: dict[str, Callable[[list[Row]], str]] = {
    "router": lambda rows: {OURS: "ours", RAYS: "Ray's default"}[rows[0].router],
    "known tokens": lambda rows: f"{middle(rows, lambda row: row.reused):.0%}",
    "turns/s": lambda rows: f"{middle(rows, lambda row: row.turns_per_s):.2f}",
    "a turn, p50": lambda rows: f"{middle(rows, lambda row: row.turn_p50_s):.2f} s",
}
"""Medians over the rounds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
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
    with serving(args, deployments=[rays]) as server:
        for number in range(options.rounds):
            for router in (OURS, RAYS) if number % 2 == 0 else (RAYS, OURS):
                rows.append(asyncio.run(measure(server.address, router, number, options)))
                say(f"round {number}, {router}: {rows[-1].turns_per_s:.2f} turns/s")
    print(table(grouped(rows, lambda row: row.router).values(), _COLUMNS, names=0))
    data = about("routing", options)
    data["rows"] = [
        asdict(row) | {"turns_per_s": row.turns_per_s, "reused": row.reused} for row in rows
    ]
    write(options.out, "routing", data)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.reliability.routing", __doc__)
    add = parser.add_argument
    add("--replicas", type=int, default=3)
    add("--conversations", type=int, default=24)
    add("--turns", type=int, default=4)
    add("--words", type=int, default=600, help="of each system message")
    add("--clients", type=int, default=6)
    add("--rounds", type=int, default=3)
    add("--kv-cache-tokens", type=int, default=8192, help="of each replica")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
