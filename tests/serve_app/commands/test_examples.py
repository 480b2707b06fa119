"""Every example, as it stands, against the server of the committed configuration."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.config.app_args import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
INTERPRETERS = {".py": [sys.executable, "-W", "error"], ".sh": ["sh"], ".mjs": ["node"]}
COUNTED = "3, 4, 5, 6, 7, 8, 9."
# What each of them prints, among other things.
PRINTS = {
    "curl.sh": ['"content":"3, 4, 5', "data: [DONE]", '"content":"A red circle."'],
    "openai_sync.py": ["Your name is Ada.", "fox", "the same again: True"],
    "openai_async.py": ["0 + 4 = 4.", "7 + 4 = 11.", "15 + 4 = 19."],
    "openai_stream.py": ["I am the demo model of GPT Task Serve", " tokens, fp_"],
    "openai_vision.py": ["The first image shows a red circle, the second a blue star."],
    "openai_tools.py": ["paint({", " is painted"],
    "openai_structured.py": ["{'shape': '", "'plain': "],
    "langchain_chat.py": ["t-i-g-e-r", COUNTED],
    "task.py": ["0: ", "1: ", "fox", "A red circle."],
    "verify.py": ["as it was answered: exact", "with another token: different", "'position': 5"],
    "task.mjs": [COUNTED, "A blue star."],
}


def test_all_examples_are_known() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in INTERPRETERS} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str, address: str) -> None:
    interpreter = INTERPRETERS[Path(name).suffix]
    if shutil.which(interpreter[0]) is None:
        pytest.skip(f"no {interpreter[0]} here")
    done = subprocess.run(
        [*interpreter, EXAMPLES / name],
        env=os.environ | {"BASE_URL": address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for text in PRINTS[name]:
        assert text in done.stdout
