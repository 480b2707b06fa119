"""``python -m cluster.dashboard``: writes ``cluster/grafana/dashboard.json``, for Grafana."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.observability import metrics
from serve_app.observability.metrics import Metric

FILE = Path(__file__).parent / "grafana" / "dashboard.json"

SCHEMA_VERSION = 39
"""Of Grafana 10.3; newer versions read it too."""
COLUMNS = 24
HEIGHT = 8
WIDTH = 8

_WHERE = '{deployment=~"$deployment"}'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Line:
    """One query of a panel, and the names of its lines."""

    query: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A chart; ``unit`` is one of Grafana's."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    description: str


def _sum(metric: Metric, *by: str, where: str = _WHERE) -> str:
    return f"sum by ({', '.join(by)}) ({metric.exported}{where})"


def _rate(counter: Metric, *by: str, where: str = _WHERE) -> str:
    return f"sum by ({', '.join(by)}) (rate({counter.exported}{where}[$__rate_interval]))"


def _gauge(title: str, unit: str, metric: Metric, *by: str) -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Panel(title, unit, (Line(_sum(metric, *by), legend),), metric.description)


def _counter(title: str, unit: str, metric: Metric, *by: str) -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Panel(title, unit, (Line(_rate(metric, *by), legend),), metric.description)


def _quantiles(title: str, metric: Metric, *by: str) -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    lines = []
    for quantile in (0.5, 0.95, 0.99):
        buckets = f"rate({metric.exported}_bucket{_WHERE}[$__rate_interval])"
        query = f"histogram_quantile({quantile}, sum by (le, {', '.join(by)}) ({buckets}))"
        lines.append(Line(query, f"{legend} p{100 * quantile:g}"))
    return Panel(title, "s", tuple(lines), metric.description)


def _ratio(title: str, part: str, whole: str, legend: str, description: str) -> Panel:
    return Panel(title, "percentunit", (Line(f"{part} / {whole}", legend),), description)


_MODEL = ("deployment", "model", "variant")
_MODEL_LEGEND = "{{deployment}} {{model}} {{variant}}"
_BY_REPLICA = (*_MODEL, "replica")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        _counter("Requests by answer", "reqps", metrics.REQUESTS, "deployment", "code"),
        Panel(
            "Refusals and errors",
            "reqps",
            (
                Line(
                    _rate(
                        metrics.REQUESTS,
                        *("deployment", "code"),
                        where='{deployment=~"$deployment", code!="ok"}',
                    ),
                    "{{deployment}} {{code}}",
                ),
            ),
            "Requests that ended with an error, by its code",
        ),
        _counter("Replays", "reqps", metrics.REPLAYS, "deployment"),
        _counter("Known tokens of replays", "none", metrics.REPLAYED_TOKENS, "deployment"),
        _quantiles("Time to first token", metrics.REQUEST_FIRST_TOKEN, "deployment"),
        _quantiles("Time per token", metrics.REQUEST_TOKEN, "deployment"),
        _quantiles("Time of a request", metrics.REQUEST, "deployment"),
        _counter(
            "Verifications by verdict", "reqps", metrics.VERIFICATIONS, "deployment", "verdict"
        ),
        _quantiles("Time of a verification", metrics.VERIFICATION, "deployment"),
    ),
    "Engines": (
        _gauge("Waiting tasks", "none", metrics.WAITING, *_MODEL),
        _gauge("Running tasks", "none", metrics.RUNNING, *_MODEL),
        _gauge("Running sequences", "none", metrics.SEQUENCES, *_MODEL),
        _counter("Generated tokens a second", "none", metrics.GENERATED_TOKENS, *_MODEL),
        _counter("Verified tokens a second", "none", metrics.VERIFIED_TOKENS, *_MODEL),
        _counter("Prompt tokens a second", "none", metrics.PROMPT_TOKENS, *_MODEL),
        _counter("Tasks by end", "reqps", metrics.TASKS, *_MODEL, "outcome"),
        _quantiles("Time to first token, at the replica", metrics.FIRST_TOKEN, *_MODEL),
        _quantiles("Time per token, at the replica", metrics.TOKEN, *_MODEL),
        _quantiles("Time of a task, at the replica", metrics.TASK, *_MODEL),
    ),
    "Caches and memory": (
        _ratio(
            "KV cache in use",
            f"1 - ({_sum(metrics.KV_FREE, *_BY_REPLICA)} + {_sum(metrics.KV_KEPT, *_BY_REPLICA)})",
            _sum(metrics.KV_PAGES, *_BY_REPLICA),
            f"{_MODEL_LEGEND} {{{{replica}}}}",
            "Share of the pages that running tasks own",
        ),
        _ratio(
            "KV cache kept for reuse",
            _sum(metrics.KV_KEPT, *_BY_REPLICA),
            _sum(metrics.KV_PAGES, *_BY_REPLICA),
            f"{_MODEL_LEGEND} {{{{replica}}}}",
            metrics.KV_KEPT.description,
        ),
        _ratio(
            "Prompt tokens found in the cache",
            _rate(metrics.PREFIX_TOKENS, *_MODEL),
            _rate(metrics.PROMPT_TOKENS, *_MODEL),
            _MODEL_LEGEND,
            metrics.PREFIX_TOKENS.description,
        ),
        _ratio(
            "Guesses of next tokens that were right",
            _rate(metrics.DRAFTS_ACCEPTED, *_MODEL),
            _rate(metrics.DRAFTS_PROPOSED, *_MODEL),
            _MODEL_LEGEND,
            metrics.DRAFTS_ACCEPTED.description,
        ),
        Panel(
            "Known tokens and decode steps",
            "none",
            (
                Line(_rate(metrics.KNOWN_TOKENS, *_MODEL), f"{_MODEL_LEGEND} known tokens read"),
                Line(_rate(metrics.DECODE_STEPS, *_MODEL), f"{_MODEL_LEGEND} decode steps"),
            ),
            "Tokens that were read because they were known, and forwards that generated tokens",
        ),
        Panel(
            "Images",
            "reqps",
            (
                Line(_rate(metrics.IMAGES_ENCODED, *_MODEL), f"{_MODEL_LEGEND} encoded"),
                Line(_rate(metrics.IMAGES_REUSED, *_MODEL), f"{_MODEL_LEGEND} reused"),
            ),
            "Images that were encoded, and those whose features were still there",
        ),
        Panel(
            "Adapters",
            "none",
            (
                Line(_sum(metrics.ADAPTERS_LOADED, *_MODEL), f"{_MODEL_LEGEND} in memory"),
                Line(_rate(metrics.ADAPTER_LOADS, *_MODEL), f"{_MODEL_LEGEND} loads a second"),
            ),
            "LoRA adapters in memory, and how often one is loaded",
        ),
        _gauge("Memory of adapters", "bytes", metrics.ADAPTER_BYTES, *_BY_REPLICA),
        _gauge("Loading of a model", "s", metrics.LOAD_SECONDS, *_BY_REPLICA),
        Panel(
            "Memory of models on demand",
            "bytes",
            (
                Line(_sum(metrics.POOL_USED, "replica"), "{{replica}} used"),
                Line(_sum(metrics.POOL_BYTES, "replica"), "{{replica}} at most"),
            ),
            "Memory of all models of each replica of the pool",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it; it asks for a Prometheus data source."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
            | {"gridPos": place}
        )
        top += 1
        for number, panel in enumerate(row):
            across, down = number % (COLUMNS // WIDTH), number // (COLUMNS // WIDTH)
            place = {"h": HEIGHT, "w": WIDTH, "x": across * WIDTH, "y": top + down * HEIGHT}
            panels.append(_panel(panel, len(panels) + 1) | {"gridPos": place})
        top += -(-len(row) * WIDTH // COLUMNS) * HEIGHT
    return {
        "uid": "gpt-task-serve",
        "title": "GPT Task Serve",
        "description": "Written by python -m cluster.dashboard",
        "tags": ["ray", "llm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), _deployment()]},
        "panels": panels,
    }


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": line.query,
                "legendFormat": line.legend,
                "range": True,
            }
            for index, line in enumerate(panel.lines)
        ],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource"} | {
        "query": "prometheus",
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "refresh": 1,
    }


def _deployment() -> dict[str, Any]:
    query = f"label_values({metrics.REQUESTS.exported}, deployment)"
    return {"name": "deployment", "label": "Deployment", "type": "query"} | {
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": "deployment"},
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "allValue": ".*",  # also requests without a deployment, which were refused before
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
    }


def written() -> str:
    """The text of the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
