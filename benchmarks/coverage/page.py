"""The tables of docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.coverage.parts import PARTS
from benchmarks.coverage.rows import OUTCOMES, Row
from benchmarks.harness import report

_TOLD = {
    "batched": "In the batch",
    "alone": "One task at a time, through `generate`",
    "refused": "Refused",
    "different": "**Different from `generate`**",
    "crashed": "**Crashed**",
    "not made": "Not made",
}


def counts(by_part: Mapping[str, Sequence[Row]]) -> str:
    """How many architectures of each part have each outcome, as text."""
    lines = [["", *OUTCOMES, "all"]]
    for part, rows in by_part.items():
        found = [sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES]
        lines.append([part, *map(str, found), str(len(rows))])
    return report.aligned(lines, names=0)


def replace(page: Path, part: str, made: str) -> None:
    """Put a part of a page in the place of the old one, between the comments that mark it.

    Raises:
        ValueError: a mark is missing.
    """
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page} has no marks of the part {part!r}")
    page.write_text(f"{before}{begin}\n{made}\n{end}{after}")


def table(part: str, rows: Sequence[Row]) -> str:
    """A part's outcomes in Markdown."""
    day = datetime.now(UTC).date().isoformat()
    batched = sum(row.outcome == "batched" for row in rows)
    lines = [
        f"{PARTS[part].title}, {day}, transformers {version('transformers')}: {batched} of "
        f"{len(rows)} run in the batch.",
        "",
        "| | architectures |",
        "|---|---|",
    ]
    for outcome in OUTCOMES:
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if row.outcome == outcome:
                by_reason.setdefault(row.reason, []).append(f"`{row.architecture}`")
        for number, (reason, names) in enumerate(by_reason.items()):
            head = f"{_TOLD[outcome]} ({sum(map(len, by_reason.values()))})" if not number else ""
            told = f": {_plain(reason)}" if reason else ""
            lines.append(f"| {head} | {', '.join(names)}{told} |")
    return "\n".join(lines)


def _plain(reason: str) -> str:
    """A reason within a cell: no bars, nothing that Markdown would read."""
    return reason.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
