"""A task whose replica dies: its answer is as ever, and the next replica knows what was generated.

The replica is the real one with a real engine, and so is everything in front of it; only its death
is told by the test, in Ray's words.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from starlette.types import ASGIApp

from schema import Task
from schema.answers.verification import Claim
from serve_app.config.app_args import ModelArgs
from serve_app.protocol.messages import Alive, Chunk, Message, TokenIds
from serve_app.replicas.model_replica import ModelReplica
from tests.serve_app.scripted import app_maker, client, events_of
from tests.serve_app.tasks import text_task

LONG: dict[str, Any] = {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 120}

lives: list[float] = []
"""When each of the next calls dies: after so many messages with tokens. Later calls live."""

told: list[TokenIds] = []
"""What each call was told to expect."""


loads: list[dict[str, int]] = []
"""What the engine had counted when each call began."""


class DyingReplica(ModelReplica):
    """Dies when the test says so."""

    def __init__(self) -> None:
        demo = {"id": "demo", "source": "./demo/model", "dtype": "float32"}
        super().__init__(ModelArgs.model_validate(demo), "cpu")

    async def stream(
        self,
        task: Task,
        images: Any,
        caller: str = "",
        *,
        streamed: bool = True,
        known: TokenIds = (),
        claim: Claim | None = None,
        log_id: str | None = None,
    ) -> AsyncGenerator[Message, None]:
        left = lives.pop(0) if lives else math.inf
        told.append(known)
        loads.append(self._engine.stats())
        running = super().stream(
            task, images, caller, streamed=streamed, known=known, claim=claim, log_id=log_id
        )
        async with aclosing(running) as messages:
            async for message in messages:
                yield message
                left -= isinstance(message, Alive | Chunk) and bool(message.token_ids)
                if left <= 0:
                    raise ActorDiedError


@pytest.fixture(scope="module")
def app() -> Iterator[ASGIApp]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.graph.retry.LOST_PAUSE_S", 0.0)
        # Often, so that a whole answer has some too.
        patch.setattr("serve_app.replicas.model_replica.HEARTBEAT_S", 0.02)
        yield app_maker(DyingReplica)(max_replays=9)


async def ask(app: ASGIApp, path: str, body: dict[str, Any], *dying: float) -> Any:
    """The answer as one; of a stream, its chunks put together."""
    lives[:] = dying
    told.clear()
    loads.clear()
    async with client(app) as http:
        response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    if "event-stream" not in response.headers["content-type"]:
        return _comparable(response.json())
    return _comparable(_together(events_of(response.text)))


def _together(value: list[Any]) -> Any:
    """What the chunks of any API add up to: texts and lists are continued, the rest is the last."""
    whole: dict[str, Any] = {}
    for event in value:
        assert "error" not in event, event
        _add(whole, event)
    return whole


def _add(whole: dict[str, Any], news: dict[str, Any]) -> None:
    for name, value in news.items():
        if isinstance(value, list) and all(isinstance(v, dict) and "index" in v for v in value):
            for item in value:
                _add(whole.setdefault(name, {}).setdefault(item["index"], {}), item)
        elif isinstance(value, dict):
            _add(whole.setdefault(name, {}), value)
        elif isinstance(value, list):
            whole.setdefault(name, []).extend(value)
        elif isinstance(value, str) and name in ("text", "content", "prompt_text"):
            whole[name] = whole.get(name, "") + value
        elif value is not None or name not in whole:
            whole[name] = value


def _comparable(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


def _task(**fields: Any) -> dict[str, Any]:
    config = LONG | fields.pop("config", {})
    return text_task("hello", seed=7, generation_config=config, **fields)


TASKS: dict[str, dict[str, Any]] = {
    "sampled": _task(),
    "answers": _task(config={"num_return_sequences": 3}),
    "copies": _task(config={"do_sample": False, "num_return_sequences": 3}),
    "log probabilities": _task(config={"logprobs": 2, "prompt_logprobs": 1}, echo=True),
    "token ids": _task(config={"num_return_sequences": 2}, return_token_ids=True),
    "message": _task(answer_format="message"),
    "penalty": _task(config={"repetition_penalty": 1.3, "stop_strings": ["qqq"]}),
}
END = "1019"  # the token that ends an answer
COMPLETION: dict[str, Any] = {
    "model": "demo",
    "prompt": ["Count from 1 to 9.", "hello", "hello"],
    "temperature": 2.0,
    "max_tokens": 120,
    "logit_bias": {END: -100},
    "seed": 5,
}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("/v1/tasks", task) for name, task in TASKS.items()},
    "prompt list": ("/v1/completions", COMPLETION),
    "prompt list, several answers": ("/v1/completions", COMPLETION | {"n": 2}),
    "prompt list, copies": ("/v1/completions", COMPLETION | {"n": 2, "temperature": 0}),
    "prompt list, echo": ("/v1/completions", COMPLETION | {"echo": True, "logprobs": 2}),
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_the_answer_is_the_same_after_losses(app: ASGIApp, name: str, streamed: bool) -> None:
    path, body = REQUESTS[name]
    if streamed and path == "/v1/tasks":
        path += "?stream=true"
    elif streamed:
        body = body | {"stream": True}
    undisturbed = await ask(app, path, body)
    assert not any(told)
    # After some messages, while the next replica reads, and before it has said anything.
    assert await ask(app, path, body, 3, 1, 0) == undisturbed
    assert any(told), "the next replica was told nothing"


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_the_next_replica_is_told_the_tokens(app: ASGIApp, streamed: bool) -> None:
    path = "/v1/tasks" + ("?stream=true" if streamed else "")
    task = _task(config={"num_return_sequences": 2}, return_token_ids=True)
    choices = (await ask(app, path, task))["choices"]
    token_ids = [choices[index]["token_ids"] for index in (0, 1)]
    await ask(app, path, task, 3, 1)
    first, second, third = told
    assert not any(first)
    for known in (second, third):
        assert len(known) == 2
        for ids, all_of_them in zip(known, token_ids, strict=True):
            assert list(ids) == all_of_them[: len(ids)]
            assert ids
    # What the second has not come to is known all the same.
    assert all(len(after) >= len(before) for after, before in zip(third, second, strict=True))


async def test_the_next_replica_reads_and_does_not_generate(app: ASGIApp) -> None:
    """Counted in forwards: of the tokens that are known, dozens share one."""
    task = _task(config={"logit_bias": {END: -100.0}, "temperature": 5.0, "max_new_tokens": 400})
    await ask(app, "/v1/tasks?stream=true", task, 20)
    (known,), before = told[1], loads[1]
    await ask(app, "/v1/tasks?stream=true", _task(config={"max_new_tokens": 1}))
    (after,) = loads
    assert len(known) >= 20
    # A forward draws one token that is not counted as read.
    steps = after["decode_steps"] - before["decode_steps"]
    read = after["known_tokens_read"] - before["known_tokens_read"]
    assert read >= len(known) * 3 // 4
    assert steps <= 400 - read + 2  # what the lost call may still have done until it was cancelled


async def test_beams_have_no_tokens_before_their_end(app: ASGIApp) -> None:
    task = _task(config={"num_beams": 2, "do_sample": False})
    undisturbed = await ask(app, "/v1/tasks?stream=true", task)
    assert await ask(app, "/v1/tasks?stream=true", task, 0) == undisturbed
    assert told == [(), ()]


async def test_no_client_gets_token_ids_that_it_has_not_asked_for(app: ASGIApp) -> None:
    task = _task()
    lives[:] = [2, 1]
    async with client(app) as http:
        for path in ("/v1/tasks", "/v1/tasks?stream=true"):
            assert "token_ids" not in (await http.post(path, json=task)).text


async def test_wrong_hints_do_no_harm(app: ASGIApp) -> None:
    task = Task.from_fields(**_task(config={"num_return_sequences": 2}))
    replica = DyingReplica()
    lives.clear()

    async def text(known: TokenIds) -> dict[int, str]:
        texts: dict[int, str] = {}
        async for message in replica.stream(task, None, known=known):
            for choice in message.chunk["choices"] if hasattr(message, "chunk") else ():
                said = texts.get(choice["index"], "")
                texts[choice["index"]] = said + choice["delta"]["content"]
        return texts

    undisturbed = await text(())
    for known in (((0, 1, 2), (5,)), ((), (), (), (3,)), ((10**9,),), (tuple(range(5000)), ())):
        assert await text(known) == undisturbed


async def test_tokens_that_were_known_are_counted(app: ASGIApp) -> None:
    async def counted(http: Any) -> tuple[int, int]:
        ingress = (await http.get("/v1/models")).json()["ingress"]
        return (
            ingress["replays"].get("Model:demo", 0),
            ingress["replayed_tokens"].get("Model:demo", 0),
        )

    async with client(app) as http:
        before = await counted(http)
        await ask(app, "/v1/tasks?stream=true", _task(), 3)
        after = await counted(http)
    known = sum(len(ids) for ids in told[-1])
    assert (after[0] - before[0], after[1] - before[1]) == (1, known)
    assert known
