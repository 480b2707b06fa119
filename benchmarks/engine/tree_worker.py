"""One engine of one source tree, in its own process: `benchmarks.engine.trees` starts it.

It imports nothing of the benchmarks, so that the tree may be older than they are. It reads lines of
JSON: first the engine's configuration, then tasks to run, with the number of clients; and answers
each with a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from typing import Any

from engine import Engine, EngineConfig
from schema.task import Task


async def _answer_all(engine: Engine, tasks: list[Task], clients: int) -> list[str]:
    waiting = deque(enumerate(tasks))
    texts: dict[int, str] = {}

    async def client() -> None:
        while waiting:
            number, task = waiting.popleft()
            response = await engine.run(task)
            texts[number] = response["choices"][0]["message"]["content"]

    await asyncio.gather(*(client() for _ in range(clients)))
    return [texts[number] for number in range(len(tasks))]


def _main() -> None:
    replies = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is not a reply

    def reply(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=replies, flush=True)

    engine = Engine(EngineConfig(**json.loads(sys.stdin.readline())))
    reply({"card": engine.card()})
    for line in sys.stdin:
        asked = json.loads(line)
        tasks = [Task.from_fields(**fields) for fields in asked["tasks"]]
        before = engine.stats()["generated_tokens"]
        start = time.perf_counter()
        texts = asyncio.run(_answer_all(engine, tasks, asked["clients"]))
        seconds = time.perf_counter() - start
        tokens = engine.stats()["generated_tokens"] - before
        reply({"texts": texts, "seconds": seconds, "tokens": tokens})
    engine.close()


if __name__ == "__main__":
    _main()
