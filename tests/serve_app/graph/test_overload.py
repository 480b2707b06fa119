"""More tasks than a replica holds: some are answered, the others get a 503 with retry-after."""

import asyncio
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from schema.errors import Overloaded
from serve_app.config.app_args import AppArgs
from serve_app.graph.dispatcher import Dispatcher
from serve_app.graph.load_shedding import HOLD_S, LoadShedder
from serve_app.http.ingress import asgi_app
from serve_app.replicas.image_replica import PreprocessorReplica
from serve_app.replicas.model_replica import ModelReplica
from tests.serve_app.http.test_api_keys import KEY
from tests.serve_app.scripted import NoImages, ScriptedReplica, task
from tests.serve_app.tasks import error, text_of, text_task

ARGS = AppArgs.model_validate(
    {
        "models": [
            {
                "id": "demo",
                "source": "./demo/model",
                "dtype": "float32",
                "device": "cpu",
                "engine": {"max_sequences": 1, "max_waiting": 1, "threads": 1},
            }
        ]
    }
)


def _local(application: serve.Application, name: str) -> DeploymentHandle[Any]:
    handle: DeploymentHandle[Any] = serve.run(application, name=name, _local_testing_mode=True)
    return handle


def _refuse(shedder: LoadShedder, deployment: str) -> None:
    with pytest.raises(Overloaded), shedder.admit(deployment):
        raise Overloaded("full", retry_after_s=3.0)


def test_a_refusal_is_repeated_for_a_moment() -> None:
    now = 0.0
    shedder = LoadShedder(lambda: now)
    shedder.check("Model:a")
    assert not shedder
    _refuse(shedder, "Model:a")
    assert shedder
    shedder.check("Model:b")
    with pytest.raises(Overloaded, match="full") as caught:
        shedder.check("Model:a")
    assert caught.value.retry_after_s == 3.0
    now = HOLD_S
    shedder.check("Model:a")
    assert not shedder


def test_each_task_that_ends_makes_room_for_one_at_once() -> None:
    shedder = LoadShedder(lambda: 0.0)
    with ExitStack() as running:
        running.enter_context(shedder.admit("Model:a"))
        running.enter_context(shedder.admit("Model:a"))
        _refuse(shedder, "Model:a")
        with pytest.raises(Overloaded):
            shedder.check("Model:a")
    for _ in range(2):
        shedder.check("Model:a")
        running.enter_context(shedder.admit("Model:a"))
    with pytest.raises(Overloaded):
        shedder.check("Model:a")
    running.close()
    shedder.check("Model:a")
    _refuse(shedder, "Model:a")  # a task of another ingress was first
    with pytest.raises(Overloaded):
        shedder.check("Model:a")


class ServesTwo(ScriptedReplica):
    models = ("a", "b")


Full = tuple[httpx.AsyncClient, Dispatcher]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    """Three models behind a key. A task that says "overload" finds its model full."""
    monkeypatch.setattr("serve_app.graph.load_shedding.HOLD_S", 3600.0)
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}")
    args = AppArgs.model_validate(
        {
            "models": [{"id": "a"}, {"id": "a", "quantize_bits": 4}, {"id": "b"}],
            "auth": {"keys_env": "SERVE_KEYS"},
        }
    )
    replica = _local(serve.deployment(name="scripted")(ServesTwo).bind(), "overload-scripted")
    images = _local(serve.deployment(name="none")(NoImages).bind(), "overload-none")
    dispatcher = Dispatcher(args, images, {one.deployment: replica for one in args.models})
    http = httpx.AsyncClient(
        transport=httpx.ASGITransport(asgi_app(args, dispatcher)),
        base_url="http://test",
        headers={"authorization": f"Bearer {KEY}"},
    )
    return http, dispatcher


async def test_a_full_model_refuses_before_it_reads_a_request(full: Full) -> None:
    faulty = {"model": "a", "messages": [], "no such field": 1}
    async with full[0] as http:
        assert (await http.post("/v1/tasks", json=faulty)).status_code == 400
        first = await http.post("/v1/tasks", json=task("overload") | {"model": "a"})
        again = [
            await http.post(path, json=faulty | variant)
            for path in ("/v1/tasks", "/v1/tasks?stream=true", "/v1/chat/completions")
            for variant in ({}, {"dtype": "auto"}, {"quantize_bits": None})
        ]
    for response in [first, *again]:
        assert error(response, 503) == error(first, 503)
        assert response.headers["retry-after"] == "3"
        assert response.headers["x-request-id"]
    assert error(first, 503)["code"] == "server_is_overloaded"
    counted = full[1].metrics.counts()["requests"]
    assert counted["Model:a"]["server_is_overloaded"] == len(again) + 1


async def test_a_full_model_does_not_change_other_answers(full: Full) -> None:
    """Other models still answer; clients without a key do not learn that one is full."""
    async with full[0] as http:
        await http.post("/v1/tasks", json=task("overload") | {"model": "a"})
        for other in ({"model": "b"}, {"model": "a", "quantize_bits": 4}):
            good = await http.post("/v1/tasks", json=task("go") | other)
            assert good.status_code == 200
            faulty = await http.post("/v1/tasks", json={"messages": []} | other)
            assert error(faulty, 400)["param"] == "messages"
        for path in ("/v1/tasks", "/v1/chat/completions"):
            unknown = await http.post(path, json=task("go") | {"model": "c"})
            assert error(unknown, 404)["code"] == "model_not_found"
            for body in (b"", b"{", b"[]", b'{"model": 1}', b'{"model": "a", "dtype": []}'):
                assert (await http.post(path, content=body)).status_code == 400
        without_key = await http.post(
            "/v1/tasks", json=task("go") | {"model": "a"}, headers={"authorization": "Bearer x"}
        )
        assert error(without_key, 401)["code"] == "invalid_api_key"


async def test_overload() -> None:
    (model,) = ARGS.models
    replica = _local(
        serve.deployment(name="replica")(ModelReplica).bind(model, "cpu"), "overload-replica"
    )
    images = _local(
        serve.deployment(name="images")(PreprocessorReplica).bind([model]), "overload-images"
    )
    app = asgi_app(ARGS, Dispatcher(ARGS, images, {model.deployment: replica}))
    sampled = {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 100}
    task = text_task("hello", generation_config=sampled)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as c:
        responses = await asyncio.gather(*(c.post("/v1/tasks", json=task) for _ in range(32)))
        good = [text_of(response) for response in responses if response.status_code == 200]
        refused = [response for response in responses if response.status_code != 200]
        after = text_of(await c.post("/v1/tasks", json=task))
    assert refused
    for response in refused:
        assert error(response, 503)["code"] == "server_is_overloaded"
        assert int(response.headers["retry-after"]) >= 1
    assert set(good) == {after}
