"""Time of answering over time of verifying: ``python -m benchmarks.verification``.

Serves a model by a real ``serve run``, without speculation and then with it. One client lets it
answer a task with 256 tokens and then lets it verify that answer, in turns (A B A B), greedy and
sampled. Then one token of an answer is changed, at each position in turn, and the verdict has to
name that position. ``--model-dir`` is a directory that ``python -m demo.smollm2 DIRECTORY`` has
written, or another model's. Prints a table; writes ``verification.json``.

Exits with 1 if a true answer is not verified as exact, or a changed token is not found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.harness import command, report
from benchmarks.harness.report import say
from benchmarks.harness.server import serving
from benchmarks.speculation.workloads import MODEL, tasks_of
from benchmarks.workloads.real_texts import HALVES, Half

TARGETS = {"off": 12.0, "on": 8.0}
"""How many times as long answering has to take as verifying, by the engine's speculation."""
_TIMEOUT_S = 600.0
_OTHER_TOKENS = 1000  # ordinary tokens that take the place of drawn ones have ids up to this


class WrongVerdictError(Exception):
    """Verification has said something that is not so."""


@dataclass(frozen=True)
class Row:
    """One task: the medians over the rounds, in seconds."""

    speculation: str
    half: str
    tokens: int
    answer_s: float
    verify_s: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """How many times as long answering took."""
        return median(self.ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    command.end_with_servers()
    load = report.warn_if_busy("seconds")
    about = report.about("verification", options, "torch", "transformers")
    rows: list[Row] = []
    found: dict[str, int] = {}
    try:
        for speculation in options.speculation:
            with (
                serving(_args(options, speculation)) as server,
                httpx.Client(base_url=server.address, timeout=_TIMEOUT_S) as http,
            ):
                rows += _measure(http, options, speculation)
                if speculation == options.speculation[0]:
                    found = {half: _changed(http, options, half) for half in HALVES}
    except WrongVerdictError as error:
        sys.exit(str(error))
    print(text(rows, found))
    data = {"rows": [asdict(row) | {"ratio": row.ratio} for row in rows], "changed_found": found}
    report.write(options.out, "verification", about | {"load_before": load} | data)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.verification", __doc__)
    add = parser.add_argument
    add("--model-dir", required=True, metavar="DIR", help="of python -m demo.smollm2, for example")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    add("--tokens", type=int, default=256, help="of an answer")
    add("--tasks", type=int, default=4, help="of each half")
    add("--rounds", type=int, default=3)
    add("--speculation", nargs="+", default=["off", "on"], choices=["off", "on"])
    return parser.parse_args(arguments)


def _args(options: argparse.Namespace, speculation: str) -> dict[str, Any]:
    engine = {"threads": options.threads, "kv_cache_tokens": 16384, "speculation": speculation}
    model = {
        "id": MODEL,
        "source": str(Path(options.model_dir).resolve()),
        "dtype": options.dtype,
        "device": "cpu",
        "engine": engine | {"local_files_only": True},
    }
    return {"models": [model]}


def _long_answers(
    http: httpx.Client, options: argparse.Namespace, half: Half
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Tasks of the workload *chat* whose answers have all the tokens, with their answers."""
    for task in tasks_of("chat", half, 64, "verification"):
        fields = task.model_dump(mode="json", exclude_none=True)
        fields["messages"][0]["content"] += " Answer at great length, with many details."
        fields["generation_config"]["max_new_tokens"] = options.tokens
        answer = _post(http, "/v1/tasks", fields)
        if answer["usage"]["completion_tokens"] == options.tokens:
            yield fields, answer


def _measure(http: httpx.Client, options: argparse.Namespace, speculation: str) -> list[Row]:
    rows = []
    for half in HALVES:
        answered = _long_answers(http, options, half)
        for (fields, answer), number in zip(answered, range(options.tasks), strict=False):
            _verify(http, fields, answer)  # the first one may compile something
            rounds = []
            for _ in range(options.rounds):
                start = time.perf_counter()
                again = _post(http, "/v1/tasks", fields)
                middle = time.perf_counter()
                verdict = _verify(http, fields, answer)
                rounds.append((middle - start, time.perf_counter() - middle))
                if again["choices"] != answer["choices"] or verdict["verdict"] != "exact":
                    raise WrongVerdictError(f"a true answer: {verdict}")
            rows.append(
                Row(
                    speculation,
                    half,
                    answer["usage"]["completion_tokens"],
                    median(answering for answering, _ in rounds),
                    median(verifying for _, verifying in rounds),
                    [answering / verifying for answering, verifying in rounds],
                )
            )
            say(
                f"speculation {speculation}, {half}, task {number + 1} of {options.tasks}: "
                f"answered in {rows[-1].answer_s:.2f} s, verified in {rows[-1].verify_s:.3f} s"
            )
    return rows


def _changed(http: httpx.Client, options: argparse.Namespace, half: Half) -> int:
    """Change one token of an answer, at each position in turn; at how many that was found.

    Raises:
        WrongVerdictError: at one it was not.
    """
    fields, answer = next(_long_answers(http, options, half))
    tokens = answer["choices"][0]["token_ids"]
    for position, token in enumerate(tokens):
        claimed = (token + 1) % _OTHER_TOKENS
        wrong = deepcopy(answer)
        wrong["choices"][0]["token_ids"][position] = claimed
        verdict = _verify(http, fields, wrong)
        difference = verdict["first_difference"] or {}
        expected = {"choice": 0, "position": position, "claimed": claimed, "expected": token}
        if verdict["verdict"] != "different" or not expected.items() <= difference.items():
            raise WrongVerdictError(f"a token was changed, {expected}, and the verdict: {verdict}")
    say(f"{half}: a changed token was found at each of {len(tokens)} positions")
    return len(tokens)


def _verify(http: httpx.Client, task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    body = {"task": task, "response": response, "tolerance": 0.0}
    return _post(http, "/v1/verifications", body)


def _post(http: httpx.Client, route: str, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(route, json=body)
    if response.status_code != 200:
        raise RuntimeError(f"{route}: {response.status_code}: {response.text[:500]}")
    answer: dict[str, Any] = response.json()
    return answer


def text(rows: Sequence[Row], found: dict[str, int]) -> str:
    """A table for people."""
    cases = report.grouped(rows, lambda row: (row.speculation, row.half)).values()

    def ratio(own: list[Row]) -> float:
        return report.middle(own, lambda row: row.ratio)

    columns: dict[str, Callable[[list[Row]], str]] = {
        "speculation": lambda own: own[0].speculation,
        "tokens drawn": lambda own: own[0].half,
        "tasks": lambda own: str(len(own)),
        "answered": lambda own: f"{report.middle(own, lambda row: row.answer_s):.2f} s",
        "verified": lambda own: f"{report.middle(own, lambda row: row.verify_s):.3f} s",
        "ratio": lambda own: f"{ratio(own):.1f}x",
        "of all rounds": lambda own: (
            f"{min(min(row.ratios) for row in own):.1f} to "
            f"{max(max(row.ratios) for row in own):.1f}"
        ),
        "target": lambda own: f"{TARGETS[own[0].speculation]:.0f}x",
        "": lambda own: "reached" if ratio(own) >= TARGETS[own[0].speculation] else "missed",
    }
    lines = [report.table(cases, columns)]
    lines += [f"changed tokens found, {half}: {count} of {count}" for half, count in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
