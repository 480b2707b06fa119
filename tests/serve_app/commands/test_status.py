"""`python -m serve_app.status`: what it shows, and its exit status."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from schema import ModelCorrupt
from serve_app.models import main as list_models
from serve_app.status import Sample, main, report
from tests.serve_app.scripted import app_maker
from tests.serve_app.tasks import answer, text_task

KEY = "k" * 24


def _model(*replicas: Any, least: int = 1, **fields: Any) -> dict[str, Any]:
    made = {"id": "a", "dtype": "auto", "quantize_bits": None, "deployment": "Model:a"}
    return made | {"min_replicas": least, "max_replicas": 4, "replicas": list(replicas)} | fields


def _running(name: str, **load: int) -> dict[str, Any]:
    names = ["waiting", "running", "running_sequences", "kv_pages", "kv_pages_free"]
    names += ["kv_pages_kept", "prefix_tokens_reused", "images_encoded", "images_reused"]
    names += [
        "adapters_loaded",
        "adapter_loads",
        "prompt_tokens",
        "generated_tokens",
        "drafts_proposed",
        "drafts_accepted",
    ]
    tasks = {"ongoing": 0, "finished": 1, "refused": 4, "failed": 2, "cancelled": 3}
    return {
        "replica": name,
        "load_seconds": 1.5,
        "tasks": tasks,
        "load": dict.fromkeys(names, 0) | load,
    }


def _sample(at: float, *models: dict[str, Any], **ingress: Any) -> Sample:
    counted = {"replica": "i-1", "requests": {}, "replays": {}, "replayed_tokens": {}} | ingress
    data = [{"id": model["id"], "variants": [model]} for model in models]
    return Sample({"object": "list", "data": data, "ingress": counted}, at)


def _cells(said: str, row: int) -> dict[str, str]:
    """A row of the table, by the heads of its columns."""
    heads, *rows = (re.split(r"  +", line) for line in said.split("\n\n")[0].splitlines())
    return dict(zip(heads, rows[row], strict=True))


def test_replicas_are_added_up() -> None:
    load = {"kv_pages": 100, "kv_pages_free": 60, "kv_pages_kept": 20, "generated_tokens": 100}
    load |= {"prompt_tokens": 200, "prefix_tokens_reused": 50, "running": 1, "waiting": 2}
    load |= {"drafts_proposed": 40, "drafts_accepted": 10}
    now = _model(
        _running("one", **load, running_sequences=4),
        _running("two", **load, images_encoded=3, images_reused=1),
    )
    cells = _cells(report(_sample(0.0, now)), 0)
    assert cells == {
        "model": "a (auto)",
        "deployment": "Model:a",
        "replicas": "2/4",
        "running": "2 (4)",
        "waiting": "4",
        "finished": "2",
        "refused": "8",
        "failed": "4",
        "cancelled": "6",
        "tokens/s": "-",
        "tokens": "200",
        "KV used": "20%",
        "prefix hits": "25%",
        "guesses right": "25%",
        "images": "4 (1 again)",
        "adapters": "0 (0 loads)",
        "loaded in": "1.5 s",
    }


def test_tokens_a_second_are_of_replicas_that_stayed() -> None:
    def model(**tokens: int) -> dict[str, Any]:
        return _model(*(_running(name, generated_tokens=n) for name, n in tokens.items()))

    before = _sample(10.0, model(stays=100, goes=5000))
    said = report(_sample(14.0, model(stays=110, comes=7000)), before)
    assert _cells(said, 0)["tokens/s"] == "2.5"


def test_problems_are_listed() -> None:
    broken = {"replica": "r", "tasks": {}, **ModelCorrupt("it is damaged").to_dict()}
    said = report(
        _sample(0.0, _model(), _model(broken, broken, least=0, id="b"), _model(least=0, id="c"))
    )
    assert said.split("\n\n")[-1].splitlines() == [
        "a (auto), Model:a: 0 of 1 replicas answer",
        "b (auto), Model:a: cannot load: it is damaged",
    ]


def test_answers_and_replays() -> None:
    requests = {"": {"not_found": 2}, "Model:a": {"ok": 5, "server_is_overloaded": 1}}
    said = report(_sample(0.0, requests=requests, replays={"Model:a": 3}))
    assert "  no model: not_found 2, replays 0" in said
    assert "  Model:a: ok 5, server_is_overloaded 1, replays 3" in said
    assert "ingress i-1" in said


def test_a_real_server(
    client: httpx.Client, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(client.post("/v1/tasks", json=text_task()))
    assert main(["--address", address]) == 0
    cells = _cells(capsys.readouterr().out, 0)
    assert (cells["model"], cells["replicas"], cells["tokens/s"]) == ("demo (float32)", "1/1", "-")
    assert int(cells["finished"]) > 0
    assert int(cells["tokens"]) > 0
    assert main(["--address", address, "--watch", "0.1", "--times", "2"]) == 0
    said = capsys.readouterr().out
    assert "answered by ingress" in said
    assert [line.startswith("demo (float32)") for line in said.splitlines()].count(True) == 2
    assert re.search(r" \d+\.\d ", said)  # tokens a second, the second time
    assert main(["--address", address, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["data"][0]["variants"][0]["deployment"] == "Model:demo:float32"


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with keys; its one replica reports nothing."""
    monkeypatch.setenv("SERVE_KEYS", f"alice: {KEY}")
    app = app_maker()(auth={"keys_env": "SERVE_KEYS"})
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    listening = server.config.bind_socket()
    listening.listen()  # so that early connections are not refused
    serving = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    serving.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    serving.join()
    listening.close()


def test_a_server_with_keys(
    guarded: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for ask in (main, list_models):
        for wrong in ([], ["--key", "wrong"], ["--key", f"{KEY}\n"]):
            assert ask(["--address", guarded, *wrong]) == 1
            said = capsys.readouterr().err
            assert "key" in said
            assert KEY not in said
    assert main(["--address", guarded, "--key", KEY]) == 3  # its replica reports nothing
    assert "Model:demo: 0 of 1 replicas answer" in capsys.readouterr().out
    monkeypatch.setenv("API_KEY", KEY)
    assert main(["--address", guarded]) == 3


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--address", "http://127.0.0.1:9"], 1),
        (["--address", "ftp://127.0.0.1"], 1),
        (["no/such.yaml"], 1),
    ],
)
def test_no_answer(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == status
    assert "no status: " in capsys.readouterr().err


def test_arguments_that_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--watch", "0"], ["--watch", "soon"], ["--nothing"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
