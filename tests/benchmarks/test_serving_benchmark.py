"""The benchmark of servers, against a small scripted server over real HTTP."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForImageTextToText

from benchmarks.harness.client import Answer, Client, Dialect, Endpoint, Job
from benchmarks.harness.load import Load, Run, run
from benchmarks.harness.metrics import Target, per_token_s, spread, summary
from benchmarks.harness.models import ServedModel
from benchmarks.harness.peers import PEERS, Setup
from benchmarks.harness.served_models import save_random
from benchmarks.serving.__main__ import main
from benchmarks.serving.equality import compare
from benchmarks.serving.measure import Plan, measure_peers, measure_running
from benchmarks.serving.profile import top_functions
from benchmarks.serving.transformers_serve import load_processor
from benchmarks.workloads.jobs import jobs, workload_names
from engine import Engine, EngineConfig
from schema import Task
from schema.answers.response import TaskResponse

MODEL = ServedModel("", "float32", images=True, padded=True, told=False)
TARGET = Target(first_token_s=1.0, per_token_s=0.1)
PAUSE_S = 0.002


class Scripted:
    """Answers with as many words as asked for; a text says if something is to go wrong."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.at_once = 0
        routes = [Route("/v1/chat/completions", self.complete, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        text = body["messages"][0]["content"]
        if text == "refuse":
            return JSONResponse({"error": "no"}, 503)
        return StreamingResponse(self.events(text, body["max_tokens"]))

    async def events(self, text: str, count: int) -> AsyncIterator[str]:
        self.at_once += 1
        loaded = self.at_once > 1
        for number in range(count):
            wrong = text == "differs under load" and loaded and number == count - 1
            yield self.event({"delta": {"content": " Word" if wrong else " word"}})
            await asyncio.sleep(PAUSE_S if text != "hang" else 60)
            if text == "break":
                break
        self.at_once -= 1
        if text == "fail":
            yield f"data: {json.dumps({'error': {'message': 'broken'}})}\n\n"
        elif text != "break":
            usage = {"completion_tokens": count}
            yield self.event({"delta": {}, "finish_reason": "length"}, usage=usage)
        yield "data: [DONE]\n\n"

    def event(self, choice: dict[str, Any], **more: object) -> str:
        return f"data: {json.dumps({'choices': [choice], **more})}\n\n"


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Scripted, Endpoint]]:
    """The server, and where it listens."""
    script = Scripted()
    server = uvicorn.Server(uvicorn.Config(script.app, log_level="error", lifespan="off"))
    with closing(socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield script, Endpoint(f"http://127.0.0.1:{port}", "m")
        server.should_exit = True
        server.force_exit = True  # some answers never end
        thread.join()


async def test_an_answer_is_read_as_it_came(scripted: tuple[Scripted, Endpoint]) -> None:
    script, endpoint = scripted
    async with Client(endpoint) as client:
        answer = await client.send(Job("hello", 5, seed=7))
    assert script.bodies[-1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "temperature": 1.0,
        "seed": 7,
        "stream": True,
    }
    assert (answer.text, answer.tokens, answer.complete) == (" word" * 5, 5, True)
    each = per_token_s(answer, None)
    assert each is not None
    assert each > PAUSE_S / 2  # clocks differ; here it is only told from none at all


@pytest.mark.parametrize(
    ("text", "error"),
    [("refuse", "503"), ("fail", "broken"), ("break", "ended early")],
)
async def test_errors_are_told(scripted: tuple[Scripted, Endpoint], text: str, error: str) -> None:
    async with Client(scripted[1]) as client:
        answer = await client.send(Job(text, 3))
    assert not answer.complete
    assert error in str(answer.error)


async def test_one_wrong_letter_is_noticed(scripted: tuple[Scripted, Endpoint]) -> None:
    _, endpoint = scripted
    steady = [Job("hello", 4), Job("hello", 4, seed=1)]
    async with Client(endpoint) as client:
        good = await compare(client, steady, orders=2)
        assert good.holds
        assert str(good) == "1 of 1 greedy, 1 of 1 seeded"
        bad = await compare(client, [*steady, Job("differs under load", 4)], orders=2)
        assert not bad.holds
        assert str(bad) == "1 of 2 greedy, 1 of 1 seeded"
        missing = await compare(client, [*steady, Job("refuse", 4)], orders=1)
        assert not missing.holds
        assert len(missing.errors) == 2


async def test_a_closed_loop_sends_again_until_the_end(
    scripted: tuple[Scripted, Endpoint],
) -> None:
    _, endpoint = scripted
    source = (Job("hello", 5) for _ in range(10_000))
    async with Client(endpoint) as client:
        found = await run(client, Load(2, None, 0.05, 0.2), source)
    numbers = summary(found, Target(60.0, 60.0))
    assert numbers.sent > 2
    assert numbers.cut_off <= 2
    assert numbers.finished + numbers.cut_off == numbers.sent
    assert not numbers.errors
    assert 0 < numbers.goodput_per_s == numbers.requests_per_s
    assert found.end - found.start == pytest.approx(0.2)


async def test_an_open_loop_does_not_wait_for_answers(
    scripted: tuple[Scripted, Endpoint],
) -> None:
    _, endpoint = scripted
    source = (Job("hang", 2) for _ in range(10_000))
    async with Client(endpoint) as client:
        found = await run(client, Load(None, 100.0, 0.0, 0.3), source)
    numbers = summary(found, TARGET)
    assert numbers.cut_off == numbers.sent
    assert numbers.sent >= 5
    assert numbers.requests_per_s == numbers.goodput_per_s == 0


def made(sent: float, words: list[float], ended: float | None, counted: bool = True) -> Answer:
    """An answer of words that came at these times."""
    lines = [(when, Scripted().event({"delta": {"content": "word"}}).encode()) for when in words]
    if ended is not None:
        usage = {"usage": {"completion_tokens": 2 * len(words)}} if counted else {}
        last = Scripted().event({"delta": {}, "finish_reason": "stop"}, **usage)
        lines.append((ended, last.encode()))
    return Answer(Job("", 9), sent, list(lines), ended)


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    """Words of two tokens; the measurement goes from 10 to 20."""
    answers = [
        made(8.0, [9.0, 11.0, 13.0], 13.0),  # two of three words, 2 s for the other 4 tokens each
        made(12.0, [12.5, 12.6], 12.7),  # keeps the target: 0.1 s for 2 tokens
        made(15.0, [19.0, 19.5], None),  # cut off, its tokens count as the others' do
        made(19.0, [], None),  # cut off before its first token
    ]
    refused = made(13.0, [], 13.0)
    refused.failure = "503"
    found = summary(Run([*answers, refused], 10.0, 20.0), TARGET)
    assert (found.sent, found.finished, found.cut_off) == (5, 2, 2)
    assert found.errors == {"503": 1}
    assert found.tokens_per_s == pytest.approx(12 / 10)
    assert found.requests_per_s == pytest.approx(2 / 10)
    assert found.goodput_per_s == pytest.approx(1 / 10)
    assert found.per_token.p50 == pytest.approx(0.25)
    assert (found.per_token.p95, found.per_token.p99) == (1.0, 1.0)
    # First tokens: 0.5, 1 and 4 seconds, and more than 1. The last one is as long as 4.
    assert found.first_token.p50 == pytest.approx(1.0)
    assert found.first_token.p99 == pytest.approx(4.0)


def test_percentiles_are_nearest_ranks() -> None:
    times = [float(number) for number in range(1, 101)]
    found = spread(times)
    assert (found.p50, found.p95, found.p99) == (50.0, 95.0, 99.0)
    assert spread([3.0]).p99 == 3.0
    assert spread([]).p50 is None


def test_what_was_cut_off_makes_percentiles_lower_bounds() -> None:
    """Three of four never ended: only that the median is at least as long as was waited."""
    found = spread([1.0], [5.0, 5.0, 5.0])
    assert (found.p50, found.at_least) == (5.0, ("p50", "p95", "p99"))
    # One that was cut off at once says nothing about the others.
    assert spread([2.0, 3.0, 4.0], [0.1]) == spread([2.0, 3.0, 4.0])


def test_workloads_are_the_same_for_every_server_and_new_in_every_round() -> None:
    def first(workload: str, stream: str) -> list[Job]:
        return [job for job, _ in zip(jobs(workload, MODEL, stream), range(4), strict=False)]

    for workload in workload_names():
        assert first(workload, "a") == first(workload, "a")
        assert first(workload, "a") != first(workload, "b")
    warm, cold = first("prefix-warm", "a"), first("prefix-cold", "a")
    assert [len(job.text) for job in warm] == [len(job.text) for job in cold]
    assert len({job.text[:512] for job in warm}) == 1
    assert len({job.text[:8] for job in cold}) == 4
    assert [job.png is not None for job in first("mixed", "a")] == [False, True, False, True]
    images = [job.png for job in first("images", "a")]
    assert len(set(images)) == 4
    for png in images:
        assert Image.open(io.BytesIO(png or b"")).size == (448, 448)


def test_a_prompt_that_is_sent_back_is_no_answer() -> None:
    texts = ["the prompt", "one", "the prompt"]
    events = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    answer = Answer(Job("the prompt", 5), 0.0, list(enumerate(events)))
    assert answer.deltas == [(1, "one"), (2, "the prompt")]
    events = [{"choices": [{"delta": {"content": text}}]} for text in ("no", "echo")]
    assert len(Answer(Job("the prompt", 5), 0.0, list(enumerate(events))).deltas) == 2


def test_earlier_turns_and_their_image_are_sent() -> None:
    job = Job("And now?", 5, b"png", earlier=(("What is it?", "A star."),))
    data = base64.b64encode(b"png").decode()
    blocks: dict[Dialect, Any] = {
        "chat": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        "tasks": {"type": "image", "base64": data},
    }
    for dialect, image in blocks.items():
        assert Endpoint("", "m", dialect).body(job)["messages"] == [
            {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "A star."},
            {"role": "user", "content": "And now?"},
        ]


def test_a_server_that_honours_no_seeds_gets_none() -> None:
    job = Job("Say something.", 5, seed=3, temperature=0.7)
    told, not_told = Endpoint("", "m").body(job), Endpoint("", "m", seeds=False).body(job)
    assert told == {**not_told, "seed": 3}
    assert not_told["temperature"] == 0.7


def answers(model: ServedModel, asked: list[Job]) -> list[tuple[str, int]]:
    """What the engine answers, and with how many tokens."""
    config = EngineConfig(model=model.source, dtype="float32", device="cpu", threads=1)
    engine = Engine(config.replace(kv_cache_tokens=4096, local_files_only=True))
    bodies = [Endpoint("", "m", "tasks").body(job) for job in asked]

    async def run_all() -> list[TaskResponse]:
        tasks = [Task.model_validate(body) for body in bodies]
        return await asyncio.gather(*(engine.run(task) for task in tasks))

    try:
        responses = asyncio.run(run_all())
    finally:
        engine.close()
    return [
        (str(r["choices"][0]["message"]["content"]), r["usage"]["completion_tokens"])
        for r in responses
    ]


def test_a_random_model_sees_images_as_in_transformers(tmp_path: Path) -> None:
    """Both read the saved folder; answers are as long as was asked, and depend on the image."""
    save_random("tiny-vlm", "float32", str(tmp_path))
    model = ServedModel(str(tmp_path), "float32", images=True, padded=True, told=False)
    greedy = (replace(job, max_tokens=12, seed=None) for job in jobs("images", model, "a"))
    first, second = islice(greedy, 2)
    asked = [first, second, replace(first, png=second.png), replace(first, png=None)]
    found = answers(model, asked)
    assert [tokens for _, tokens in found] == [12] * 4
    assert len({text for text, _ in found}) == 4

    own: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    processor = load_processor(str(tmp_path))
    for job, (text, _) in zip(asked, found, strict=True):
        images = [] if job.png is None else [Image.open(io.BytesIO(job.png)).convert("RGB")]
        said = [*({"type": "image"} for _ in images), {"type": "text", "text": job.text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": said}], tokenize=False)
        inputs = processor(text=prompt, images=images or None, return_tensors="pt")
        ids = own.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert processor.decode(ids[0, inputs["input_ids"].shape[1] :]) == text


def test_the_demo_model_answers_at_the_asked_length() -> None:
    model = ServedModel("demo/model", "float32", images=True, padded=False, told=True)
    asked = list(islice(jobs("images", model, "a"), 8))
    assert [tokens for _, tokens in answers(model, asked)] == [job.max_tokens for job in asked]


def test_a_running_server_is_measured_and_reported(scripted: tuple[Scripted, Endpoint]) -> None:
    plan = Plan(
        loads=[Load(2, None, 0.02, 0.1), Load(None, 50.0, 0.02, 0.1)],
        workloads=["text"],
        rounds=1,
        target=TARGET,
        equal=2,
        equal_tokens=3,
        orders=1,
    )
    about = {"title": "t", "target_text": "t"}
    report = measure_running(plan, scripted[1], MODEL, about, promises=True)
    written = json.loads(json.dumps(report.to_json()))
    assert [(row["clients"], row["rate"]) for row in written["runs"]] == [(2, None), (None, 50.0)]
    assert written["equal_answers"][0]["holds"]
    table = report.table()
    assert "2 clients" in table
    assert "50/s" in table
    assert "as promised" in table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--graph-cost --peers vllm", "--peers says nothing with --graph-cost"),
        ("--address http://x --model x --profile", "--profile says nothing with --address"),
        ("--promises", "--promises needs --address"),
        ("--images", "--images needs --model"),
        ("--model ./nowhere", "--model: there is no directory ./nowhere"),
        ("--model x --geometry demo", "--geometry says nothing with --model"),
        ("--workloads text real", "--workloads with real texts needs --model"),
        ("--answers 5 --rates 1", "--answers says nothing with --rates"),
        ("--address http://x --model x --set a=1", "--set says nothing with --address"),
        ("--address http://x", "--address needs --model"),
        ("--address http://x --model x --peers vllm", "--peers says nothing with --address"),
    ],
)
def test_no_option_is_ignored(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_an_environment_that_is_not_there_is_named(tmp_path: Path) -> None:
    setup = Setup(MODEL, tmp_path, 1, 1, 64, tmp_path / "python", on_gpu=False)
    plan = Plan([], ["text"], 1, TARGET, equal=0, equal_tokens=1, orders=1)
    report = measure_peers(plan, [PEERS["vllm"]], setup, {})
    assert report.skipped == {"vllm": f"--vllm-python: there is no {tmp_path / 'python'}"}


def test_profiles_are_summed_up() -> None:
    stacks = "main (a.py:1);work (a.py:7) 3\nmain (a.py:1);work (a.py:9) 1\nmain (a.py:2) 4\n"
    lines = [line.split() for line in top_functions(stacks).splitlines()]
    assert lines[1:] == [
        ["50.0%", "50.0%", "work", "(a.py"],
        ["50.0%", "100.0%", "main", "(a.py"],
    ]
