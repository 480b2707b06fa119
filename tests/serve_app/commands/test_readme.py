"""Runs the examples of README and its further pages: their output against the server's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import joined

PAGES = "".join(
    (REPOSITORY / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/api.md", "docs/gpt-task.md")
)
# (language, code, what follows up to the next block)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES, re.DOTALL | re.MULTILINE)
CURLS = [code for language, code in BLOCKS if language == "shell" and code.startswith("curl")]
SNIPPETS = [code for language, code in BLOCKS if language == "python"]


def printed_after(code: str) -> str:
    """The output block that follows a command; empty where there is none."""
    index = [block for _, block in BLOCKS].index(code)
    language, output = BLOCKS[index + 1]
    return output if language in ("json", "") else ""


def answer(text: str) -> Any:
    """The JSON value in an output, without what depends on the machine.

    Chunks of a stream are joined: how many tokens come in one depends on the machine, too.
    """
    events = re.findall(r"^data: (\{.*\})$", text, re.MULTILINE)
    value = joined([json.loads(event) for event in events]) if events else json.loads(text)
    for name in ("system_fingerprint", "id", "created"):
        value.pop(name, None)
    return value


@pytest.mark.parametrize("code", CURLS, ids=range(len(CURLS)))
def test_curl(code: str, address: str) -> None:
    command = re.sub(r"(http://)?localhost:8000", address, code)
    done = subprocess.run(
        ["bash", "-ec", command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout
    if printed := printed_after(code):
        assert answer(done.stdout) == answer(printed)
        assert ("[DONE]" in done.stdout) == ("[DONE]" in printed)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_python(code: str, address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("http://127.0.0.1:8000", address)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_is_something_to_run() -> None:
    assert len(CURLS) >= 5
    assert len(SNIPPETS) == 6
