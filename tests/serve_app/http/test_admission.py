"""Admission: keys, limits, places, CORS, request ids and the log; against a scripted replica."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, TaskCancelledError
from starlette.types import ASGIApp, Message

from tests.serve_app.http.test_api_keys import KEY, OTHER
from tests.serve_app.scripted import app_maker, cancelled, client, task

BEARER = {"authorization": f"Bearer {KEY}"}
MAKE = app_maker()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ASGIApp]:
    """Makes applications that ask for a key, with the limits of `auth` that it is called with."""
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}, bob: {OTHER}")

    def make(cors: Any = None, limits: dict[str, float] | None = None, **auth: Any) -> ASGIApp:
        return MAKE(auth={"keys_env": "SERVE_KEYS"} | auth, cors=cors, **(limits or {}))

    return make


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that are logged during the test."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ray.serve")
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer sk-0123456789abcdeg")],
        [("authorization", KEY)],
        [("authorization", f"Basic {KEY}")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {KEY} {KEY}")],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        [("authorization", b"Bearer \xff\xfe")],
        [("x-api-key", f"{KEY}x")],
        [("x-api-key", KEY), ("x-api-key", KEY)],
        [("authorization", "Bearer another-key-0123456"), ("x-api-key", KEY)],
        [("cookie", f"authorization=Bearer {KEY}")],
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/tasks"), ("GET", "/v1/models"), ("GET", "/docs"), ("GET", "/none")],
)
async def test_requests_without_a_valid_key_are_refused(
    app: Callable[..., ASGIApp], headers: list[Any], method: str, path: str
) -> None:
    async with client(app()) as http:
        response = await http.request(method, path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "sk-" not in response.text


async def test_requests_with_a_key_are_answered(
    app: Callable[..., ASGIApp], lines: list[str]
) -> None:
    async with client(app(public_docs=True)) as http:
        for scheme in ("Bearer", "bearer", "BEARER "):
            headers = {"authorization": f"{scheme} {KEY}"}
            assert (await http.post("/v1/tasks", json=task("go"), headers=headers)).is_success
        for path in ("/health", "/docs", "/docs/static/swagger-ui.css", "/openapi.json"):
            assert (await http.get(path)).status_code == 200
        assert (await http.get("/healthy")).status_code == 401
        document = (await http.get("/openapi.json")).json()
    assert document["security"] == [{"key": []}, {"plain_key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert any("key=alice" in line for line in lines)
    assert not any(KEY in line for line in lines)


def test_a_server_without_its_keys_does_not_start() -> None:
    with pytest.raises(ValueError, match="NO_SUCH_KEYS is not set"):
        MAKE(auth={"keys_env": "NO_SUCH_KEYS"})


@pytest.mark.parametrize(
    "query",
    [
        *(f"{name}={KEY}" for name in ("api_key", "apikey", "API-Key", "key", "access_token")),
        "authorization=Bearer%20something",
        f"stream={KEY}",
        f"{KEY}",
        f"x={KEY}&stream=true",
        "key",
    ],
)
@pytest.mark.parametrize("headers", [{}, BEARER])
async def test_a_key_in_the_address_is_refused_and_not_repeated(
    app: Callable[..., ASGIApp], lines: list[str], query: str, headers: dict[str, str]
) -> None:
    async with client(app()) as http:
        response = await http.post(f"/v1/tasks?{query}", json=task("go"), headers=headers)
        health = await http.get(f"/health?{query}")
    assert response.status_code == health.status_code == 400
    assert "must not stand in the address" in response.json()["error"]["message"]
    assert not any(KEY in text for text in [response.text, *lines])


async def test_a_key_with_too_many_requests(app: Callable[..., ASGIApp]) -> None:
    async with client(app(requests_per_minute=2, keys={"bob": {"requests_per_minute": 3}})) as http:
        alice = [await http.get("/v1/models", headers=BEARER) for _ in range(4)]
        bobs = {"authorization": f"Bearer {OTHER}"}
        bob = [await http.get("/v1/models", headers=bobs) for _ in range(4)]
    assert [response.status_code for response in alice] == [200, 200, 429, 429]
    assert [response.status_code for response in bob] == [200, 200, 200, 429]
    error = alice[-1].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(alice[-1].headers["retry-after"]) <= 30


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in BEARER.items()],
        "asgi": {"spec_version": "2.3"},  # as uvicorn says
    }


class Client:
    """Alice, who speaks ASGI: sends a body, and reads or does not read the answer."""

    def __init__(self, app: ASGIApp, act: str, reads: bool = True) -> None:
        body = json.dumps(task(act) | {"stream": True}).encode()
        self._body = [{"type": "http.request", "body": body, "more_body": False}]
        self._reads = reads
        self.messages: list[Message] = []
        self.begun = asyncio.Event()
        call = app(_scope("/v1/chat/completions"), self._receive, self._send)
        self.call = asyncio.ensure_future(call)

    async def _receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await asyncio.get_running_loop().create_future()  # stays connected and sends nothing
        raise AssertionError

    async def _send(self, message: Message) -> None:
        self.messages.append(message)
        self.begun.set()
        if not self._reads:
            await asyncio.get_running_loop().create_future()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])


@pytest.mark.parametrize("per_key", [True, False])
async def test_a_stream_keeps_its_place_until_its_end(
    app: Callable[..., ASGIApp], per_key: bool
) -> None:
    made = app(max_concurrent=1) if per_key else app(limits={"max_in_flight": 1})
    streaming = Client(made, "later hang")
    await streaming.begun.wait()
    refused = Client(made, "go")
    await refused.call
    headers = dict(refused.messages[0]["headers"])
    assert refused.status == (429 if per_key else 503)
    assert headers[b"retry-after"] == b"1"
    streaming.call.cancel()
    await asyncio.wait([streaming.call])
    after = Client(made, "go")
    await after.call
    assert after.status == 200


async def test_health_needs_no_place(app: Callable[..., ASGIApp]) -> None:
    made = app(limits={"max_in_flight": 1})
    streaming = Client(made, "later hang")
    await streaming.begun.wait()
    async with client(made) as http:
        assert (await http.get("/health")).status_code == 200
    streaming.call.cancel()
    await asyncio.wait([streaming.call])


async def test_a_client_that_never_reads_loses_its_place(
    app: Callable[..., ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.http.middleware.admission.SENDING_S", 0.1)
    cancelled.clear()
    made = app(max_concurrent=1, limits={"request_timeout_s": 0.1, "body_timeout_s": 0.1})
    silent = Client(made, "later hang", reads=False)
    await silent.call  # ends by itself, in the middle of the answer
    assert len(silent.messages) == 1
    assert await asyncio.to_thread(cancelled.wait, 30)
    after = Client(made, "go")
    await after.call
    assert after.status == 200


async def test_a_body_that_does_not_arrive(app: Callable[..., ASGIApp]) -> None:
    async def slowly() -> Any:
        yield b'{"model":'
        await asyncio.sleep(60)

    async with client(app(limits={"body_timeout_s": 0.1})) as http:
        response = await http.post("/v1/tasks", content=slowly(), headers=BEARER)
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "body_timeout"
    assert response.headers["connection"] == "close"


ORIGIN = {"origin": "https://app.example.org"}
PREFLIGHT = {"access-control-request-method": "POST"}


async def test_other_origins_are_off_by_default(app: Callable[..., ASGIApp]) -> None:
    async with client(MAKE()) as http:
        answered = await http.post("/v1/tasks", json=task("go"), headers=ORIGIN)
        asked = await http.options("/v1/tasks", headers=ORIGIN | PREFLIGHT)
    assert asked.status_code == 405
    for response in (answered, asked):
        assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize("allowed", ["https://app.example.org", "*"])
async def test_allowed_origins(app: Callable[..., ASGIApp], allowed: str) -> None:
    wanted = PREFLIGHT | {"access-control-request-headers": "authorization,x-stainless-os"}
    async with client(app(cors={"allow_origins": [allowed]})) as http:
        asked = await http.options("/v1/tasks", headers=ORIGIN | wanted)
        answered = await http.post("/v1/tasks", json=task("go"), headers=ORIGIN | BEARER)
        refused = await http.post("/v1/tasks", json=task("go"), headers=ORIGIN)
        other = await http.options(
            "/v1/tasks", headers=PREFLIGHT | {"origin": "https://evil.example"}
        )
    assert asked.status_code == 200
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    assert (answered.status_code, refused.status_code) == (200, 401)
    for response in (asked, answered, refused):
        assert response.headers["access-control-allow-origin"] == allowed
        assert "access-control-allow-credentials" not in response.headers
    readable = answered.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "request-id", "retry-after"} <= set(readable)
    assert other.status_code == (200 if allowed == "*" else 400)
    if allowed != "*":
        assert other.json()["error"]["code"] == "invalid_value"


@pytest.mark.parametrize("given", ["", "no good", "x" * 129, "é", "a\tb", 'a"b'])
async def test_an_invalid_request_id(given: str) -> None:
    async with client(MAKE()) as http:
        response = await http.get("/v1/models", headers=[(b"x-request-id", given.encode())])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-id"


async def test_two_request_ids() -> None:
    async with client(MAKE()) as http:
        headers = [("x-request-id", "a"), ("x-request-id", "b")]
        assert (await http.get("/v1/models", headers=headers)).status_code == 400


async def test_every_request_is_logged_in_one_line(lines: list[str]) -> None:
    async with client(MAKE()) as http:
        await http.post("/v1/tasks", json=task("go"))
        await http.post("/v1/tasks?stream=true", json=task("later fail"))
        await http.post("/v1/chat/completions", json=task("bug"))
        await http.get("/none%0aERROR%20forged%1b[31m%e2%80%a8")
        await http.get("/v1/models/forged%0d%0aline")
    logged = [line for line in lines if re.match(r"(GET|POST) ", line)]
    assert [re.sub(r"\d+\.\dms ", "", line) for line in logged] == [
        'POST "/v1/tasks" 200 key=- model="demo" tokens=1+1 error=-',
        'POST "/v1/tasks" 200 key=- model="demo" tokens=1+1 error=server_error',
        'POST "/v1/chat/completions" 500 key=- model="demo" tokens=- error=server_error',
        'GET "/none\\nERROR forged\\u001b[31m\\u2028" 404 key=- model=null tokens=- '
        "error=not_found",
        'GET "/v1/models/forged\\r\\nline" 404 key=- model=null tokens=- error=not_found',
    ]


GONE: list[Message | Exception] = [
    {"type": "http.disconnect"},
    TaskCancelledError(),  # what Ray's call to its proxy raises
    ActorDiedError(),
]


@pytest.mark.parametrize("gone", GONE, ids=["disconnect", "cancelled", "proxy"])
@pytest.mark.parametrize("more_body", [True, False], ids=["body", "answer"])
async def test_a_disconnect_is_not_a_fault_of_the_server(
    more_body: bool, gone: Message | Exception, lines: list[str]
) -> None:
    cancelled.clear()
    body = json.dumps(task("later hang") | {"stream": True}).encode()
    begun = asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": more_body}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        if not more_body:
            await begun.wait()
        if isinstance(gone, Exception):
            raise gone
        return gone

    async def send(message: Message) -> None:
        begun.set()

    await MAKE()(_scope("/v1/chat/completions"), receive, send)
    assert more_body or await asyncio.to_thread(cancelled.wait, 30)
    (line,) = [line for line in lines if line.startswith("POST ")]
    assert line.endswith(" error=cancelled")


async def test_refusals_within_a_second_share_a_line(
    app: Callable[..., ASGIApp], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.http.middleware.refusal_log.PERIOD_S", 0.3)
    async with client(app()) as http:
        refused = (http.post("/v1/tasks", json=task("overload"), headers=BEARER) for _ in range(9))
        await asyncio.gather(*refused)
    await asyncio.sleep(0.3)  # which ends after the period, because it began after it
    own = [line for line in lines if "error=server_is_overloaded" in line]
    shared = [line for line in lines if "were refused" in line]
    assert 'key=alice model="demo"' in own[0]
    assert all('for "Model:demo" key=alice' in line for line in shared)
    assert shared
    assert len(own) + sum(int(line.split()[0]) for line in shared) == 9
