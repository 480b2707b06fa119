"""Thousands of generated requests: ``python -m benchmarks.reliability.fuzz ADDRESS``.

schemathesis makes them from ``/openapi.json``, right ones and wrong ones. No answer may be a 5xx,
none may be undocumented, and nothing that the description forbids may be accepted. Exits with 1
otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

DEFAULT_EXAMPLES = 100
# A valid task may still be refused: for what JSON Schema cannot say (tests/schema/malformed.py), or
# because its model is not served.
UNCHECKED = ("positive_data_acceptance",)


@dataclass
class Report:
    """What was sent and what came back.

    Attributes:
        statuses: answers by operation and status.
        failures: one line for each answer that must not be, and each error of the run itself.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests were answered."""
        return self.statuses.total()


def configured(examples: int, seed: int, headers: dict[str, str] | None = None) -> Any:
    """Settings of a run: random examples of each operation beside the systematic ones."""
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": headers or {},
            "checks": {name: {"enabled": False} for name in UNCHECKED},
            "generation": {"max-examples": examples, "database": "none"},
            # Nothing is created here that another request could use.
            "phases": {"stateful": {"enabled": False}},
        }
    )


def fuzz(described: Any) -> Report:
    """Send what schemathesis makes of a loaded description."""
    report = Report()
    for event in from_schema(described).execute():
        if isinstance(event, events.ScenarioFinished):
            _count(event.recorder, report)
        elif isinstance(event, events.NonFatalError):
            report.failures.append(str(event.info))
        elif isinstance(event, events.FatalError):
            report.failures.append(repr(event.exception))
    return report


def _count(recorder: Any, report: Report) -> None:
    for interaction in recorder.interactions.values():
        if interaction.response is None:
            report.failures.append(f"{recorder.label}: no answer")
        else:
            report.statuses[recorder.label, interaction.response.status_code] += 1
    for case, checks in recorder.checks.items():
        for check in checks:
            if check.status is not Status.SUCCESS:
                curl = recorder.cases[case].value.as_curl_command()
                failure = check.failure_info and check.failure_info.failure
                report.failures.append(f"{check.name}: {failure}\n{curl}")


def main(arguments: list[str] | None = None) -> int:
    """Fuzz the server named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability.fuzz", description=__doc__
    )
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--examples", type=int, default=DEFAULT_EXAMPLES, help="of each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", help="of a server that asks for one")
    options = parser.parse_args(arguments)
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    begun = time.monotonic()
    described = schemathesis.openapi.from_url(
        f"{options.address}/openapi.json",
        config=configured(options.examples, options.seed, headers),
        headers=headers,
    )
    report = fuzz(described)
    for (operation, status), count in sorted(report.statuses.items()):
        print(f"{operation:<30}{status}{count:>8}")
    print(f"{report.requests} requests in {time.monotonic() - begun:.0f} s")
    print(f"{len(report.failures)} failures", *report.failures[:20], sep="\n\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
