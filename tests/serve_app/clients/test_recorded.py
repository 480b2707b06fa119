"""Requests that frameworks have sent, with their versions, sent again to a real server.

``make test-clients RECORD=1`` runs the frameworks themselves and writes the requests anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.serve_app.clients.answers import Said, calls_in, read
from tests.serve_app.clients.frameworks import FRAMEWORKS, HERE, Framework
from tests.serve_app.clients.recorded import recorded
from tests.serve_app.clients.weather_model import weather_server

RESULT = "18 degrees and sunny in Paris"
"""What the tool has said; see `hello/weather.py`."""

each_framework = pytest.mark.parametrize(
    "framework", FRAMEWORKS, ids=[f"{each.package} {each.version}" for each in FRAMEWORKS]
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        weather_server(tmp_path_factory.mktemp("weather")) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def conversation(body: Any) -> str:
    """All that was said before, without the tools that are offered."""
    return json.dumps(body.get("messages") or body["input"], ensure_ascii=False)


@each_framework
def test_what_was_recorded_is_of_the_version_that_is_named(framework: Framework) -> None:
    found = recorded(framework)
    assert (found["package"], found["version"]) == (framework.package, framework.version)


def test_every_script_and_every_recording_is_of_a_framework() -> None:
    names = {each.name for each in FRAMEWORKS}
    assert {path.stem.removeprefix("hello_") for path in HERE.glob("hello/hello_*")} == names
    assert {path.stem for path in HERE.glob("recorded/*.json")} == names


@each_framework
def test_a_frameworks_requests_are_answered(server: httpx.Client, framework: Framework) -> None:
    """A tool that is offered is called; a result that came back is in the answer; and the call is
    the one that the framework has executed and sent back when it was recorded.
    """
    exchanges: list[tuple[Any, Said]] = []
    for request in recorded(framework)["requests"]:
        answer = server.request(
            request["method"], request["path"], headers=request["headers"], json=request["body"]
        )
        exchanges.append((request["body"], read(request["path"], answer)))
    called = 0
    for body, said in exchanges:
        heard = RESULT in conversation(body)
        if heard:
            assert RESULT in said.text + str(said.calls)
        elif body.get("tools"):
            ((_, arguments),) = said.calls
            assert arguments == {"city": "Paris"}
        else:
            assert "Paris" in said.text
        called += not heard
    assert called, "no request was the first of a conversation"
    for (body, said), (following, _) in pairwise(exchanges):
        if RESULT in conversation(following) and RESULT not in conversation(body):
            for call in said.calls:
                assert call in calls_in(following) or call[0] in conversation(following)
