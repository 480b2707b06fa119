"""What is counted: against a scripted replica, and at `/metrics` of a real server."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from serve_app.observability import metrics
from serve_app.observability.metrics_page import merged
from tests.serve_app.scripted import app_maker, client, task
from tests.serve_app.tasks import answer, chunks, served, text_task

DEMO = "Model:demo:float32"


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    return app_maker()


async def test_requests_are_counted_by_code(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        for act in ("go", "later fail"):
            await http.post("/v1/tasks?stream=true", json=task(act))
        await http.post("/v1/chat/completions", json=task("refuse"))
        await http.post("/v1/tasks?stream=true", json=task("overload"))  # affects the next one
        await http.post("/v1/tasks", content=b"{")
        await http.post("/v1/tasks", json={**task("go"), "model": "made-up"})
        await http.get("/health")
        assert (await http.get("/health?key=k")).status_code == 400
        await http.get("/made/up")
        counted = (await http.get("/v1/models")).json()["ingress"]
    assert counted["requests"] == {
        # No label is a name that a client has invented.
        "": {"model_not_found": 1, "not_found": 1, "invalid_value": 1},
        "Model:demo": {
            "ok": 1,
            "server_is_overloaded": 1,
            "invalid_value": 1,
            "server_error": 1,
        },
    }
    assert counted["replays"] == {}


async def test_without_ray_there_are_no_metrics(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        response = await http.get("/metrics")
    assert (response.status_code, response.text) == (200, "")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_names_and_labels() -> None:
    names = [metric.exported for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    for metric in metrics.METRICS:
        assert metric.exported.endswith("_total") == (metric.kind == "counter")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")


def test_pages_of_several_machines_become_one() -> None:
    name = metrics.WAITING.exported

    def page(node: str, value: int) -> str:
        return (
            f'# HELP {name} Text\n# TYPE {name} gauge\n{name}{{node="{node}"}} {value}\n'
            f"# HELP ray_other Text\n# TYPE ray_other gauge\nray_other 1\n"
        )

    together = merged([page("a", 1), page("b", 2)])
    (family,) = text_string_to_metric_families(together)
    assert {sample.labels["node"]: sample.value for sample in family.samples} == {"a": 1, "b": 2}
    assert together.count("# TYPE") == 1


def test_a_page_is_passed_on_unchanged() -> None:
    count, seconds = metrics.TASKS.exported, metrics.TASK.exported
    page = (
        f"# HELP {count} Ends, by \\\\ and more\n# TYPE {count} counter\n"
        f'{count}{{model="a\\"b\\\\c\\nd",outcome="finished"}} 1.23456789e+08\n'
        f"# HELP {seconds} Seconds\n# TYPE {seconds} histogram\n"
        f'{seconds}_bucket{{le="0.1"}} 0.0\n{seconds}_bucket{{le="+Inf"}} 3.0\n'
        f"{seconds}_count 3.0\n{seconds}_sum 10.25\n"
    )
    others = f"# HELP ray_x Like {count}\n# TYPE ray_x gauge\nray_x NaN\n"
    created = f"# HELP {count}_created Ends\n# TYPE {count}_created gauge\n{count}_created 1.0\n"
    assert merged([others + page + created + others]) == page


def test_a_faulty_page_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    name = metrics.WAITING.exported
    page = f"# HELP {name} Text\n# TYPE {name} gauge\n{name} 1.0\n"
    assert merged([f"{page}{name} one\n", page]) == page
    assert "text format" in caplog.text


def _series(client: httpx.Client) -> dict[str, list[Any]]:
    """The samples at `/metrics`, by their name."""
    response = client.get("/metrics")
    assert response.status_code in (200, 503), response.text  # 503: there are no metrics yet
    found: dict[str, list[Any]] = {}
    if response.status_code == 200:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample)
    return found


def _replica(client: httpx.Client) -> Any:
    """The status of the one replica when its tasks have ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        replicas = next(model for model in served(client) if model["deployment"] == DEMO)[
            "replicas"
        ]
        if replicas and not replicas[0]["tasks"]["ongoing"]:
            return replicas[0]
        time.sleep(0.1)
    raise AssertionError("its tasks never ended")


def test_prometheus_gets_the_numbers_of_the_status(client: httpx.Client) -> None:
    before = _replica(client)
    usages = [
        chunks(client.post("/v1/tasks?stream=true", json=text_task()))[-1]["usage"],
        answer(client.post("/v1/tasks", json=text_task("hello")))["usage"],
    ]
    after = _replica(client)
    assert after["replica"] == before["replica"]
    for kind in ("prompt_tokens", "completion_tokens"):
        name = kind.replace("completion", "generated")
        grown = after["load"][name] - before["load"][name]
        assert grown == sum(usage[kind] for usage in usages)
    assert after["tasks"]["finished"] == before["tasks"]["finished"] + 2
    # No time is asserted: metrics arrive within Ray's period.
    labels = {"deployment": DEMO, "model": "demo", "variant": "float32"}
    labels["replica"] = after["replica"]
    load = after["load"]
    wanted = {
        "ray_gpt_task_generated_tokens_total": load["generated_tokens"],
        "ray_gpt_task_prompt_tokens_total": load["prompt_tokens"],
        "ray_gpt_task_kv_pages": load["kv_pages"],
        "ray_gpt_task_tasks_total": after["tasks"]["finished"],
        "ray_gpt_task_model_load_seconds": after["load_seconds"],
    }
    ok = client.get("/v1/models").json()["ingress"]["requests"][DEMO]["ok"]
    deadline = time.monotonic() + 60
    got: dict[str, float] = {}
    answered = 0.0
    found: dict[str, list[Any]] = {}
    while (got != wanted or answered < ok) and time.monotonic() < deadline:
        time.sleep(0.3)
        found = _series(client)
        got = {
            name: sample.value
            for name in wanted
            for sample in found.get(name, [])
            if labels.items() <= sample.labels.items()
            and sample.labels.get("outcome", "finished") == "finished"
        }
        answered = sum(
            sample.value
            for sample in found.get("ray_gpt_task_requests_total", [])
            if (sample.labels["deployment"], sample.labels["code"]) == (DEMO, "ok")
        )
    assert got == wanted
    assert answered >= ok  # an ingress that was replaced counts too
    for histogram in ("first_token", "token", "task", "request", "request_first_token"):
        samples = found[f"ray_gpt_task_{histogram}_seconds_count"]
        assert sum(x.value for x in samples if x.labels["deployment"] == DEMO) > 0
    known = {metric.exported for metric in metrics.METRICS}
    endings = ("", "_bucket", "_sum", "_count")
    assert set(found) <= {name + ending for name in known for ending in endings}
