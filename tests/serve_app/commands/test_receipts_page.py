"""The lines of docs/receipts.md by which anybody checks a receipt, run on a real server's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpt_task.receipts.__main__ import main
from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import answer, text_task

PAGE = (REPOSITORY / "docs/receipts.md").read_text(encoding="utf-8")
(LINES,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def claim(address: str) -> dict[str, Any]:
    """A task, its response, and the keys of the server."""
    task = text_task(receipt=True, return_token_ids=True)
    with httpx.Client(base_url=address, timeout=120) as client:
        response = answer(client.post("/v1/tasks", json=task))
        return {
            "task": task,
            "response": response,
            "keys": client.get("/v1/receipts/keys").json(),
        }


def run(claim: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    for name, value in claim.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", "-c", LINES], cwd=folder, capture_output=True, text=True, check=False
    )


def test_there_are_ten_lines() -> None:
    code = [line for line in LINES.splitlines() if line and "import" not in line]
    assert len(code) == 10
    assert not re.search("schema|gpt_task|serve_app", LINES)


def test_a_receipt_is_checked(claim: dict[str, Any], tmp_path: Path) -> None:
    done = run(claim, tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_altered_one_is_found(claim: dict[str, Any], tmp_path: Path) -> None:
    response, receipt = claim["response"], claim["response"]["receipt"]
    (choice,) = response["choices"]
    message = choice["message"] | {"content": "1, 2, 3."}
    for changes, said in (
        ({"task": claim["task"] | {"seed": 1}}, "AssertionError"),
        (
            {"response": response | {"choices": [choice | {"message": message}]}},
            "AssertionError",
        ),
        (
            {"response": response | {"receipt": receipt | {"dtype": "float16"}}},
            "InvalidSignature",
        ),
        ({"keys": {"keys": []}}, "StopIteration"),
    ):
        done = run(claim | changes, tmp_path)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr


def test_the_command_checks_it_too(
    claim: dict[str, Any], address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "claim.json"
    file.write_text(json.dumps(claim))
    assert main(["check", str(file), "--keys", address]) == 0
    assert "It is of this response." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("route", "request_body"),
    [
        ("/v1/tasks", text_task(receipt=True, return_token_ids=True, seed=3)),
        ("/v1/tasks", text_task(receipt=True, return_token_ids=True, quantize_bits=8)),
        ("/v1/chat/completions", text_task(receipt=True, return_token_ids=True, temperature=1.0)),
    ],
)
def test_the_server_verifies_it(
    route: str,
    request_body: dict[str, Any],
    address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command, and the real route: right, and with a trace of another model."""
    response = httpx.post(address + route, json=request_body, timeout=120).json()
    file = tmp_path / "claim.json"
    name = "task" if route == "/v1/tasks" else "request"
    command = ["verify", str(file), "--server", address]
    file.write_text(json.dumps({name: request_body, "response": response}))
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "exact"
    response["receipt"]["choices"][0]["trace"] = "0" * 64
    file.write_text(json.dumps({name: request_body, "response": response}))
    assert main(command) == 1
    (found,) = json.loads(capsys.readouterr().out)["response_differences"]
    assert found["field"] == "receipt.choices.0.trace"
