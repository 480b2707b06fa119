"""More tasks than a replica holds: some are answered, the others are told when to come back."""

import asyncio
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from schema.errors import Overloaded
from serve_app.config import AppArgs
from serve_app.dispatch import Dispatcher
from serve_app.ingress import asgi_app
from serve_app.preprocessor import PreprocessorReplica
from serve_app.refusals import HOLD_S, Refusals
from serve_app.replica import ModelReplica
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


def test_a_refusal_is_said_again_for_a_moment() -> None:
    now = 0.0
    refusals = Refusals(lambda: now)
    refusals.check("Model:a")
    refusals.add("Model:a", Overloaded("full", retry_after_s=3.0))
    refusals.check("Model:b")
    with pytest.raises(Overloaded, match="full") as caught:
        refusals.check("Model:a")
    assert caught.value.retry_after_s == 3.0
    now = HOLD_S
    refusals.check("Model:a")


async def test_overload() -> None:
    (model,) = ARGS.models
    replica = _local(
        serve.deployment(name="replica")(ModelReplica).bind(model, "cpu"), "overload-replica"
    )
    pictures = _local(
        serve.deployment(name="pictures")(PreprocessorReplica).bind([model]), "overload-pictures"
    )
    app = asgi_app(ARGS, Dispatcher(ARGS, pictures, {model.deployment: replica}))
    sampled = {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 100}
    task = text_task("hello", generation_config=sampled)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as c:
        responses = await asyncio.gather(*(c.post("/v1/tasks", json=task) for _ in range(32)))
        good = [text_of(response) for response in responses if response.status_code == 200]
        refused = [response for response in responses if response.status_code != 200]
        after = text_of(await c.post("/v1/tasks", json=task))
    assert refused
    for response in refused:
        assert error(response, 503)["code"] == "overloaded"
        assert int(response.headers["retry-after"]) >= 1
    assert set(good) == {after}
