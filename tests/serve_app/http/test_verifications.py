"""``POST /v1/verifications`` without a cluster: its errors, limits and losses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.types import ASGIApp

from schema import EngineStopped, StreamChunk, Task, schemas
from tests.serve_app.scripted import (
    ScriptedReplica,
    StandIn,
    app_maker,
    cancelled,
    chunk,
    client,
    task,
)

VERDICT = Draft202012Validator(schemas()["verdict"])
PATH = "/v1/verifications"


@pytest.fixture(scope="module")
def app() -> Callable[..., ASGIApp]:
    return app_maker(ScriptedReplica)


def claim(act: str, text: str = "é ok", **response: Any) -> dict[str, Any]:
    """That the scripted replica's answer to a task, which has no tokens, is this text."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "token_ids": [],
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    claimed = {"model": "demo", "choices": [choice], "usage": usage, "system_fingerprint": "one"}
    return {"task": task(act), "response": claimed | response}


async def test_verdicts(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        right = await http.post(PATH, json=claim("go"))
        wrong = await http.post(PATH, json=claim("go", "é no"))
        other = await http.post(PATH, json=claim("go", system_fingerprint="two", other={"a": 1}))
    for response in (right, wrong, other):
        assert response.status_code == 200
        VERDICT.validate(response.json())
    assert right.json()["verdict"] == "exact"
    assert wrong.json()["verdict"] == "different"
    assert wrong.json()["response_differences"] == [
        {"field": "choices.0.message.content", "claimed": "é no", "expected": "é ok"}
    ]
    assert (other.json()["verdict"], other.json()["same_fingerprint"]) == ("exact", False)


@pytest.mark.parametrize(
    ("act", "status", "code", "param"),
    [
        ("refuse", 400, "invalid_value", "task.messages.0.content"),
        ("overload", 503, "server_is_overloaded", None),
        ("fail", 500, "server_error", None),
        ("bug", 500, "server_error", None),
        ("nothing", 500, "server_error", None),
    ],
)
async def test_errors(
    app: Callable[..., ASGIApp], act: str, status: int, code: str, param: str | None
) -> None:
    async with client(app()) as http:
        response = await http.post(PATH, json=claim(act))
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert response.headers.get("retry-after") == ("3" if act == "overload" else None)


async def test_refused_requests(app: Callable[..., ASGIApp]) -> None:
    body = claim("go")
    without_ids = claim("go")
    del without_ids["response"]["choices"][0]["token_ids"]
    unknown = {**body, "task": body["task"] | {"model": "made-up"}}
    async with client(app()) as http:
        for sent, status, param in (
            (without_ids, 400, "response.choices.0.token_ids"),
            (body | {"tolerance": -1}, 400, "tolerance"),
            (unknown, 404, "task.model"),
        ):
            response = await http.post(PATH, json=sent)
            assert response.status_code == status
            assert response.json()["error"]["param"] == param
        assert (await http.post(f"{PATH}?stream=true", json=body)).status_code == 400
    async with client(app(max_body_mb=0.0001)) as http:
        assert (await http.post(PATH, json=body)).status_code == 413


async def test_a_model_that_was_full_is_not_asked_again(app: Callable[..., ASGIApp]) -> None:
    async with client(app()) as http:
        assert (await http.post("/v1/tasks", json=task("overload"))).status_code == 503
        broken = claim("go") | {"tolerance": -1}
        # Refused before it is validated: the model is found in the task.
        assert (await http.post(PATH, json=broken)).status_code == 503


async def test_a_deadline_ends_and_cancels_it(app: Callable[..., ASGIApp]) -> None:
    cancelled.clear()
    async with client(app(request_timeout_s=0.2)) as http:
        response = await http.post(PATH, json=claim("hang"))
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    assert await asyncio.to_thread(cancelled.wait, 30)


async def test_the_log_and_the_counts_know_it(
    app: Callable[..., ASGIApp], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ray.serve"):
        async with client(app()) as http:
            await http.post(PATH, json=claim("go", "no"))
            await http.post("/v1/tasks", json=task("go"))
            counted = (await http.get("/v1/models")).json()["ingress"]["requests"]
    assert counted == {"Model:demo": {"ok": 2}}
    lines = [record.getMessage() for record in caplog.records]
    (verified,) = [line for line in lines if f'POST "{PATH}" 200' in line]
    assert verified.endswith('model="demo" tokens=1+0 error=- verdict=different')
    (ran,) = [line for line in lines if 'POST "/v1/tasks" 200' in line]
    assert ran.endswith("error=-")


_runs: dict[str, int] = {}


class LosingReplica(StandIn):
    """Is lost as often as the task says, and answers then."""

    async def chunks(self, task: Task) -> AsyncGenerator[StreamChunk, None]:
        script = str(task.messages[0].content)
        run = _runs[script] = _runs.get(script, 0) + 1
        if run <= json.loads(script):
            raise EngineStopped("gone", retry_after_s=1)
        yield chunk("é ok", "stop")


@pytest.mark.parametrize(("losses", "status"), [(1, 200), (2, 200), (3, 503)])
async def test_another_replica_takes_over(losses: int, status: int) -> None:
    _runs.clear()
    async with client(app_maker(LosingReplica)(max_replays=2)) as http:
        response = await http.post(PATH, json=claim(str(losses)))
        replays = (await http.get("/v1/models")).json()["ingress"]["replays"]
    assert response.status_code == status
    if status == 200:
        assert response.json()["verdict"] == "exact"
    assert replays == {"Model:demo": min(losses, 2)}
