"""Requests that frameworks and programs have sent, with their versions, sent to a real server.

``make test-clients RECORD=1`` runs the frameworks themselves and writes their requests anew. Those
of ``programs/`` are the first that two programs have sent, with every field and a tool of each
kind; texts are cut. `docs/clients.md` says how to run the programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.clients.answers import calls_in, read
from tests.serve_app.clients.frameworks import FRAMEWORKS, HERE, Framework
from tests.serve_app.clients.recorded import recorded
from tests.serve_app.clients.weather_model import weather_server

RESULT = "18 degrees and sunny in Paris"
"""What the tool has said; see `hello/weather.py`."""

each_framework = pytest.mark.parametrize(
    "framework", FRAMEWORKS, ids=[f"{each.package} {each.version}" for each in FRAMEWORKS]
)


PROGRAMS: list[dict[str, Any]] = [
    json.loads(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("programs/*.json"))
]

Answers = dict[str, list[httpx.Response]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """The answers to all recorded requests, several at a time, by the framework or program."""
    recordings = {each.name: recorded(each) for each in FRAMEWORKS}
    recordings |= {each["program"]: each for each in PROGRAMS}
    with (
        weather_server(tmp_path_factory.mktemp("weather")) as address,
        httpx.Client(base_url=address, timeout=120) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def send(request: Any) -> httpx.Response:
            return client.request(
                request["method"],
                request["path"],
                headers=request["headers"],
                json=request["body"],
            )

        sent = {
            name: [pool.submit(send, request) for request in recording["requests"]]
            for name, recording in recordings.items()
        }
        yield {name: [each.result() for each in waiting] for name, waiting in sent.items()}


def last_said(body: Any) -> str:
    """What the model has to answer: the last message, or the last item of the input."""
    return json.dumps((body.get("messages") or body["input"])[-1], ensure_ascii=False)


@each_framework
def test_what_was_recorded_is_of_the_version_that_is_named(framework: Framework) -> None:
    found = recorded(framework)
    assert (found["package"], found["version"]) == (framework.package, framework.version)


@each_framework
def test_the_page_names_the_version(framework: Framework) -> None:
    page = (REPOSITORY / "docs/clients.md").read_text(encoding="utf-8")
    assert f"\n| {framework.title} | {framework.version} |" in page


def test_every_script_and_every_recording_is_of_a_framework() -> None:
    names = {each.name for each in FRAMEWORKS}
    assert {path.stem.removeprefix("hello_") for path in HERE.glob("hello/hello_*")} == names
    assert {path.stem for path in HERE.glob("recorded/*.json")} == names


@each_framework
def test_a_frameworks_requests_are_answered(answers: Answers, framework: Framework) -> None:
    """A tool that is offered is called, and a result that came back is in the answer. The call is
    the one that the framework has executed and sent back when it was recorded.
    """
    exchanges = []
    requests = recorded(framework)["requests"]
    for request, answer in zip(requests, answers[framework.name], strict=True):
        # A refusal was recorded where the framework has another way.
        assert answer.status_code == request["status"], answer.text
        if answer.is_success:
            exchanges.append((request["body"], read(request["path"], answer)))
    for body, said in exchanges:
        if RESULT in last_said(body):
            assert RESULT in said.text + str(said.calls)
        elif body.get("tools"):
            ((_, arguments),) = said.calls
            assert arguments == {"city": "Paris"}
        else:
            assert "Paris" in said.text
    for (_, said), (following, _) in pairwise(exchanges):
        if said.calls and RESULT in last_said(following):
            (call,) = said.calls
            # smolagents writes its calls as text.
            assert call in calls_in(following) or framework.name == "smolagents"


@pytest.mark.parametrize(
    "program", PROGRAMS, ids=[f"{each['program']} {each['version']}" for each in PROGRAMS]
)
def test_a_programs_first_requests_are_answered(answers: Answers, program: dict[str, Any]) -> None:
    """The model calls the first function with its first parameter: it has read the tools."""
    for request, answer in zip(program["requests"], answers[program["program"]], strict=True):
        if request["method"] == "HEAD":
            assert (answer.status_code, answer.content) == (200, b"")
            continue
        tool = request["body"]["tools"][0]
        parameters = tool.get("parameters") or tool["input_schema"]
        said = read(request["path"], answer)
        assert said.calls == [(tool["name"], {next(iter(parameters["properties"])): "Paris"})]


def test_the_page_of_clients_names_the_versions() -> None:
    page = (HERE.parents[2] / "docs/clients.md").read_text(encoding="utf-8")
    tried = [f"{each['program']} | {each['version']}" for each in PROGRAMS]
    tried += [f"{each.title} | {each.version}" for each in FRAMEWORKS]
    assert [one for one in tried if f"| {one} |" not in page] == []
