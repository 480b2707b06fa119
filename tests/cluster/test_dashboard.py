"""Grafana's dashboard: it shows every metric, and no others."""

import json
import re
from itertools import combinations
from typing import Any

from jsonschema import Draft202012Validator

from cluster.dashboard import COLUMNS, FILE, written
from serve_app.observability.metrics import METRICS, Metric

DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
CHARTS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in CHARTS for target in panel["targets"]]

# Of Grafana's dashboard model, version 39: what a panel, a target and a variable must have.
_TEXT = {"type": "string", "minLength": 1}
_DATASOURCE = {
    "type": "object",
    "required": ["type", "uid"],
    "properties": {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}},
}
_GRID = {
    "type": "object",
    "required": ["h", "w", "x", "y"],
    "properties": {
        "h": {"type": "integer", "minimum": 1},
        "w": {"type": "integer", "minimum": 1, "maximum": 24},
        "x": {"type": "integer", "minimum": 0, "maximum": 23},
        "y": {"type": "integer", "minimum": 0},
    },
}
_UNITS = ["none", "reqps", "s", "bytes", "percentunit"]
_ROW = {
    "required": ["collapsed", "panels"],
    "properties": {"type": {"const": "row"}, "collapsed": {"const": False}},
}
_CHART = {
    "required": ["datasource", "fieldConfig", "options", "targets"],
    "properties": {
        "type": {"const": "timeseries"},
        "datasource": _DATASOURCE,
        "fieldConfig": {
            "type": "object",
            "required": ["defaults", "overrides"],
            "properties": {
                "defaults": {
                    "type": "object",
                    "properties": {"unit": {"enum": _UNITS}},
                }
            },
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["refId", "datasource", "expr"],
                "properties": {
                    "refId": {"pattern": "^[A-Z]$"},
                    "datasource": _DATASOURCE,
                    "expr": _TEXT,
                    "legendFormat": _TEXT,
                },
            },
        },
    },
}
_SCHEMA = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "templating", "panels", "time"],
    "properties": {
        "uid": {"pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": _TEXT,
        "schemaVersion": {"const": 39},
        "templating": {
            "type": "object",
            "properties": {
                "list": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type", "query"],
                        "properties": {"type": {"enum": ["datasource", "query"]}},
                    },
                }
            },
        },
        "panels": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "type", "title", "gridPos"],
                "properties": {"title": _TEXT, "gridPos": _GRID},
                "oneOf": [_ROW, _CHART],
            },
        },
    },
}


def test_the_file_is_what_the_script_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == written()


def test_it_has_the_form_that_grafana_reads() -> None:
    Draft202012Validator(_SCHEMA).validate(DASHBOARD)
    for panel in CHARTS:
        ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    builtin = {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", FILE.read_text())) - builtin - {"__all"} == variables


def test_no_panel_covers_another() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= COLUMNS
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y


def _series(metric: Metric) -> str:
    """The series that a query must ask for; averages of Ray's histograms are estimates."""
    return metric.exported + ("_bucket" if metric.kind == "histogram" else "")


def test_it_shows_every_metric_and_no_other() -> None:
    named = {name for query in QUERIES for name in re.findall(r"\bray_\w+", query)}
    assert named == {_series(metric) for metric in METRICS}


def test_labels_are_those_of_the_metrics() -> None:
    labels = {_series(metric): {*metric.labels, "le"} for metric in METRICS}
    for panel in CHARTS:
        for target in panel["targets"]:
            query = target["expr"]
            names = re.findall(r"\bray_\w+", query)
            has = set.intersection(*(labels[name] for name in names))
            by = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", query))))
            where = set(re.findall(r"(\w+)(?==~|!=)", query))
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert by | where <= has
            assert shown <= by
            assert query.count("(") == query.count(")")
            # Gauges are read as they are; what only grows is read as a rate.
            grows = any(not name.endswith("_bucket") and name.endswith("_total") for name in names)
            assert ("rate(" in query) == (grows or "_bucket" in query)
