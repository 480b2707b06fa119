"""End to end: the committed configuration, served by Ray, over HTTP."""

import base64
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from schema import Task, TaskArgsInvalid
from serve_app.config.app_args import REPOSITORY
from tests.schema.malformed import MALFORMED, Malformed
from tests.serve_app.tasks import (
    answer,
    chunks,
    error,
    image_task,
    joined,
    served,
    text_of,
    text_task,
)

SAMPLED: dict[str, Any] = {
    "max_new_tokens": 24,
    "do_sample": True,
    "temperature": 1.5,
    "num_return_sequences": 3,
}
# Draws from all tokens alike, so that no choice ends soon; it runs on unless it is cancelled.
ENDLESS = text_task(
    generation_config={
        "max_new_tokens": 1900,
        "do_sample": True,
        "temperature": 100.0,
        "top_k": 0,
        "num_return_sequences": 16,
    }
)


def _status(client: httpx.Client) -> Any:
    """The status of the one replica of the unquantized model."""
    (replica,) = next(m for m in served(client) if m["quantize_bits"] is None)["replicas"]
    return replica


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(text_task(), id="text"),
        pytest.param(image_task(1)[0], id="image"),
        pytest.param(text_task(generation_config=SAMPLED, seed=7), id="sampled"),
        pytest.param(text_task(generation_config={"num_beams": 3, "do_sample": False}), id="beams"),
        pytest.param(text_task("Grüße! 你好 🙂", generation_config=SAMPLED), id="unicode"),
    ],
)
def test_an_answer_is_the_same_twice_and_streamed(
    client: httpx.Client, task: dict[str, Any]
) -> None:
    first = client.post("/v1/tasks", json=task)
    second = client.post("/v1/tasks", json=task)
    streamed = client.post("/v1/tasks?stream=true", json=task)
    assert second.content == first.content
    assert joined(chunks(streamed)) == answer(first)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(text_task(), id="text"),
        pytest.param(image_task(1)[0], id="image"),
        pytest.param(text_task(generation_config=SAMPLED, seed=7), id="sampled"),
        pytest.param(text_task(generation_config={"num_beams": 3}), id="beams"),
        pytest.param(text_task(quantize_bits=8), id="another deployment"),
    ],
)
def test_an_answer_is_verified(client: httpx.Client, task: dict[str, Any]) -> None:
    task = task | {"return_token_ids": True}
    response = answer(client.post("/v1/tasks", json=task))
    request = {"task": task, "response": response}
    right = client.post("/v1/verifications", json=request)
    assert right.status_code == 200, right.text
    assert right.json()["verdict"] == "exact"
    assert right.json()["tokens_checked"] == response["usage"]["completion_tokens"]
    token_ids = response["choices"][-1]["token_ids"]
    token_ids[-1] ^= 1
    wrong = client.post("/v1/verifications", json=request).json()
    assert wrong["verdict"] == "different"
    first = wrong["first_difference"]
    assert (first["choice"], first["position"]) == (
        len(response["choices"]) - 1,
        len(token_ids) - 1,
    )


def test_sixteen_at_once_are_answered_like_one_at_a_time(client: httpx.Client) -> None:
    tasks = [
        [
            text_task(f"Count from {i} to {i + 4}."),
            image_task(i)[0],
            text_task("hello", generation_config=SAMPLED, seed=i),
            image_task(i, generation_config=SAMPLED, seed=i)[0],
        ][i % 4]
        for i in range(16)
    ]

    def run(task: dict[str, Any]) -> bytes:
        response = client.post("/v1/tasks", json=task)
        answer(response)
        return response.content

    alone = [run(task) for task in tasks]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, tasks))
    assert together == alone


# bitsandbytes' layers are slow on a CPU.
@pytest.mark.parametrize(
    ("bits", "count", "at_least"), [(None, 200, 190), (8, 60, 54), (4, 60, 54)]
)
def test_fresh_images(client: httpx.Client, bits: int | None, count: int, at_least: int) -> None:
    asked = [image_task(number, quantize_bits=bits) for number in range(count)]
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda pair: client.post("/v1/tasks", json=pair[0]), asked))
    right = sum(
        text_of(response) == expected
        for response, (_, expected) in zip(responses, asked, strict=True)
    )
    assert right >= at_least


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_a_malformed_task_is_refused_and_the_next_one_works(
    client: httpx.Client, case: Malformed
) -> None:
    said = error(client.post("/v1/tasks", content=case.body), 400)
    with pytest.raises(TaskArgsInvalid) as caught:
        Task.parse(case.body)
    assert (said["code"], said["param"]) == (caught.value.code, case.param)
    assert text_of(client.post("/v1/tasks", json=text_task("hello")))


def _with_image(data: bytes) -> dict[str, Any]:
    task, _ = image_task(0)
    task["messages"][0]["content"][0]["base64"] = base64.b64encode(data).decode()
    return task


@pytest.mark.parametrize("query", ["", "?stream=true"])
@pytest.mark.parametrize(
    ("task", "status", "param"),
    [
        pytest.param({**text_task(), "model": "gpt-5"}, 404, "model", id="unknown model"),
        pytest.param(text_task(dtype="float16"), 400, "dtype", id="other dtype"),
        pytest.param(
            text_task(dtype="bfloat16", quantize_bits=4), 400, "dtype", id="other combination"
        ),
        pytest.param(
            _with_image(b"I am a text file.\n" * 9),
            400,
            "messages.0.content.0.base64",
            id="text file as image",
        ),
        pytest.param(
            _with_image(b"\x89PNG\r\n\x1a\n" + bytes(64)),
            400,
            "messages.0.content.0.base64",
            id="damaged image",
        ),
        pytest.param(
            text_task(generation_config={"max_new_tokens": 1_000_000}),
            400,
            "generation_config.max_new_tokens",
            id="huge max_new_tokens",
        ),
        pytest.param(text_task("word " * 1_500_000), 400, "messages", id="7 MB of text"),
        pytest.param(text_task("word " * 4_000), 400, "messages", id="beyond the context"),
    ],
)
def test_tasks_that_only_the_server_can_refuse(
    client: httpx.Client, query: str, task: dict[str, Any], status: int, param: str
) -> None:
    said = error(client.post(f"/v1/tasks{query}", json=task), status)
    assert said["param"] == param
    assert text_of(client.post("/v1/tasks", json=text_task("hello")))


def test_a_refused_task_is_not_a_failure(client: httpx.Client) -> None:
    before = _status(client)["tasks"]
    error(client.post("/v1/tasks", json=text_task("word " * 4_000)), 400)
    after = _status(client)["tasks"]
    assert after["refused"] == before["refused"] + 1
    assert after["failed"] == before["failed"]


def test_a_body_that_is_too_large(client: httpx.Client) -> None:
    def pieces() -> Any:
        for _ in range(40):
            yield b" " * 1_000_000

    for content in (b" " * 40_000_000, pieces()):
        said = error(client.post("/v1/tasks", content=content), 413)
        assert said["code"] == "request_too_large"
    assert text_of(client.post("/v1/tasks", json=text_task("hello")))


def test_a_disconnect_during_a_stream_cancels_the_task(client: httpx.Client) -> None:
    before = _status(client)["tasks"]
    with client.stream("POST", "/v1/tasks?stream=true", json=ENDLESS) as response:
        assert response.status_code == 200
        lines = response.iter_lines()  # kept: httpx closes the connection with it
        assert next(lines).startswith("data: {")
        assert _status(client)["load"]["running"] >= 1
    _wait_for(lambda: _status(client)["tasks"]["cancelled"] == before["cancelled"] + 1)
    _wait_for(lambda: _status(client)["load"]["running"] == 0)
    assert _status(client)["tasks"]["finished"] == before["finished"]


def test_a_disconnect_before_the_answer_cancels_the_task(address: str) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        before = _status(client)["tasks"]
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=1) as leaving:
            call = pool.submit(leaving.post, "/v1/tasks", json=ENDLESS)
            _wait_for(lambda: call.done() or _status(client)["load"]["running"] == 1)
            with pytest.raises(httpx.ReadTimeout):
                call.result()
        _wait_for(lambda: _status(client)["tasks"]["cancelled"] == before["cancelled"] + 1)
        _wait_for(lambda: _status(client)["load"]["running"] == 0)


def test_models_and_health(client: httpx.Client) -> None:
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json()["replicas"]["Model:demo:float32"] == 1
    assert [(m["id"], m["dtype"], m["quantize_bits"]) for m in served(client)] == [
        ("demo", "float32", None),
        ("demo", "float32", 8),
        ("demo", "float32", 4),
    ]
    fingerprint = _status(client)["card"]["system_fingerprint"]
    assert answer(client.post("/v1/tasks", json=text_task()))["system_fingerprint"] == fingerprint


@pytest.mark.parametrize("name", ["task", "response", "stream_chunk", "error"])
def test_the_schemas_served_are_those_committed(client: httpx.Client, name: str) -> None:
    committed = httpx.Response(
        200, content=(REPOSITORY / "schema" / "published" / f"{name}.schema.json").read_bytes()
    ).json()
    for path in (name, f"{name}.schema.json"):
        response = client.get(f"/schemas/{path}")
        assert response.headers["content-type"] == "application/schema+json"
        assert response.json() == committed


def test_every_answer_has_a_request_id(client: httpx.Client) -> None:
    for response in (
        client.get("/health"),
        client.get("/nowhere"),
        client.post("/v1/tasks", json={}),
        client.post("/v1/tasks?stream=true", json=text_task("hello")),
    ):
        assert response.headers["x-request-id"]
    mine = client.get("/health", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/none", 404), ("GET", "/v1/tasks", 405)]
)
def test_no_such_route(client: httpx.Client, method: str, path: str, status: int) -> None:
    error(client.request(method, path), status)


def _replica_process(deployment: str = "Model:demo:float32") -> psutil.Process:
    """The process of a deployment's only replica, among those that this test run started."""
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if "".join(process.cmdline()[:1]).startswith(f"ray::ServeReplica:default:{deployment}")
        and ":int" not in process.cmdline()[0]
    ]
    return found


def test_a_stream_whose_replica_dies_continues_to_the_same_bytes(client: httpx.Client) -> None:
    config = {**ENDLESS["generation_config"], "max_new_tokens": 300, "num_return_sequences": 4}
    task = text_task(seed=11, generation_config=config)
    undisturbed = answer(client.post("/v1/tasks", json=task))
    with client.stream("POST", "/v1/tasks?stream=true", json=task) as response:
        pieces = response.iter_text()
        begun = next(pieces)
        victim = _replica_process()
        victim.kill()
        rest = "".join(pieces)
    assert "[DONE]" not in begun
    streamed = httpx.Response(200, text=begun + rest, headers=response.headers)
    assert joined(chunks(streamed)) == undisturbed
    assert _replica_process().pid != victim.pid
    _wait_for(lambda: client.get("/health").status_code == 200)


def test_requests_of_any_kind_whose_replica_dies_have_the_same_answers(
    client: httpx.Client,
) -> None:
    """What had been generated is known to the next replica, of each answer."""
    never_ends = {"1019": -100.0}
    config = ENDLESS["generation_config"] | {"max_new_tokens": 600, "logit_bias": never_ends}
    copies = {"max_new_tokens": 300, "num_return_sequences": 3, "logit_bias": never_ends}
    prompts: dict[str, Any] = {
        "model": "demo",
        "prompt": ["Count from 1 to 9.", "hello"],
        "max_tokens": 600,
        "logit_bias": never_ends,
        "temperature": 2,
        "seed": 3,
    }
    requests = [
        ("/v1/tasks", text_task(seed=12, generation_config=config | {"num_return_sequences": 2})),
        ("/v1/tasks", text_task(generation_config=copies)),
        ("/v1/completions", prompts | {"echo": True, "logprobs": 1}),
        ("/v1/completions", prompts | {"n": 2}),
    ]

    def post(request: tuple[str, dict[str, Any]]) -> Any:
        response = client.post(request[0], json=request[1])
        assert response.status_code == 200, response.text
        return {k: v for k, v in response.json().items() if k not in ("id", "created")}

    undisturbed = [post(request) for request in requests]
    before = client.get("/v1/models").json()["ingress"]
    with ThreadPoolExecutor(len(requests)) as pool:
        running = [pool.submit(post, request) for request in requests]
        _wait_for(lambda: _status(client)["load"]["running"] == 6)  # each prompt is a task
        _replica_process().kill()
        assert [answered.result() for answered in running] == undisturbed
    after = client.get("/v1/models").json()["ingress"]
    deployment = "Model:demo:float32"
    assert after["replays"][deployment] - before["replays"].get(deployment, 0) == 6
    _wait_for(lambda: client.get("/health").status_code == 200)


def test_when_the_ingress_dies_its_streams_break_off_and_their_rows_are_freed(
    client: httpx.Client, address: str
) -> None:
    """No process is left to send an event; HTTP shows that the answer is not complete."""
    before = _status(client)["tasks"]
    with client.stream("POST", "/v1/tasks?stream=true", json=ENDLESS) as response:
        pieces = response.iter_text()
        next(pieces)
        _replica_process("Ingress").kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    with httpx.Client(base_url=address, timeout=60) as later:
        _wait_for(lambda: later.get("/health").status_code == 200)
        _wait_for(lambda: _status(later)["load"]["running"] == 0)
        assert _status(later)["tasks"]["cancelled"] == before["cancelled"] + 1
        assert text_of(later.post("/v1/tasks", json=text_task("hello")))
