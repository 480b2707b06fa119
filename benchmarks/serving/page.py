"""What was found as a table in Markdown, in the form that docs/performance.md has."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.harness.metrics import Summary
from benchmarks.harness.report import grouped
from benchmarks.serving.report import COMPARED, Report, Row, drafts_of, load_name


def page(report: Report, arguments: Sequence[str]) -> str:
    """The command and a table for each workload, with a row for each server.

    Args:
        report: medians over its rounds are shown.
        arguments: of the command.
    """
    about = report.about
    command = shlex.join(["python", "-m", "benchmarks.serving", *arguments])
    parts = [f"```shell\n{command}\n```"]
    for workload, rows in grouped(report.rows, lambda row: row.workload).items():
        turns = len({row.round for row in rows})
        parts.append(
            f"{about['date'][:10]}, {about['title']}, {workload}, {turns} round"
            f"{'s in turns' if turns > 1 else ''}, load of the machine before {_load(about)}:"
        )
        parts.append(_table(report, workload, rows))
    if report.rows:
        first = report.rows[0].peer
        parts.append(f"In brackets: how many times the value {first} has. Times are medians.")
    else:
        parts += [f"Equal answers, {s.workload}, {s.peer}: {s.equality}" for s in report.same]
    parts += [f"Skipped: {peer}: {why}" for peer, why in report.skipped.items()]
    return "\n\n".join(parts) + "\n"


def _load(about: dict[str, object]) -> str:
    return f"{about['load_before']:.1f}" if "load_before" in about else "unknown"


def _table(report: Report, workload: str, rows: Sequence[Row]) -> str:
    loads = sorted({row.load for row in rows})
    head = [""]
    for name in _SHOWN:
        head += [f"{load_name(load)}, {name}" for load in loads]
    head += ["drafts right", "equal answers"]
    lines = [head, ["---"] * len(head)]
    ratios = {name: report.ratios(COMPARED[name]) for name in COMPARED}
    same = {one.peer: one.equality for one in report.same if one.workload == workload}
    for peer, own in grouped(rows, lambda row: row.peer).items():
        line = [f"**{peer}**" if peer == report.rows[0].peer else peer]
        for key, show in _SHOWN.values():
            for load in loads:
                found = [COMPARED[key](row.summary) for row in own if row.load == load]
                known = [value for value in found if value is not None]
                more = ">" if _open_end(key, [r.summary for r in own if r.load == load]) else ""
                ratio = ratios[key].get(((workload, load), peer))
                beside = f" ({ratio:.2f}x)" if ratio is not None else ""
                line.append(f"{more}{show(median(known))}{beside}" if known else "")
        drafts = drafts_of(own)
        line += [str(drafts) if drafts.proposed else "", str(same.get(peer, ""))]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _open_end(key: str, summaries: Sequence[Summary]) -> bool:
    """Whether a median is only known to be longer, because answers were cut off."""
    spreads = {"first_token_p50": "first_token", "per_token_p50": "per_token"}
    if key not in spreads:
        return False
    return any("p50" in getattr(summary, spreads[key]).at_least for summary in summaries)


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms"


_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens/s": ("tokens_per_s", lambda value: f"{value:.1f}"),
    "first token": ("first_token_p50", _seconds),
    "each further": ("per_token_p50", _milliseconds),
}
