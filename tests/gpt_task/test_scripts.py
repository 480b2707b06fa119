"""Scripts written for gpt-task, unchanged except for the model's id."""

from __future__ import annotations

import ast
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpt_task.conftest import DEMO, REPOSITORY

# The two examples of gpt-task's README (Apache 2.0), which are the interface that is tested here.
README_LLM = """
import logging
from gpt_task.inference import run_task


logging.basicConfig(
    format="[{asctime}] [{levelname:<8}] {name}: {message}",
    datefmt="%Y-%m-%d %H:%M:%S",
    style="{",
    level=logging.INFO,
)

messages = [{"role": "user", "content": "I want to create a chat bot. Any suggestions?"}]


res = run_task(
    model="Qwen/Qwen3-8B",
    messages=messages,
    seed=42,
)
print(res)
"""

README_VLM = """
import base64
from pathlib import Path
from gpt_task.inference import run_task

image_path = Path("./examples/test.png")
image_base64 = base64.b64encode(image_path.read_bytes()).decode("utf-8")

messages = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in this image?"},
            {"type": "image", "base64": image_base64},
        ],
    }
]

res = run_task(
    model="Qwen/Qwen2.5-VL-3B-Instruct",
    messages=messages,
    seed=42,
    dtype="float16",
)
print(res)
"""

# What gpt-task's examples folder shows besides, in short.
STREAMED = """
from gpt_task.inference import run_task
from gpt_task.models import GPTTaskStreamResponse

text, reasons, usage = "", [], None


def stream_callback(chunk: GPTTaskStreamResponse):
    global text, usage
    text += chunk["choices"][0]["delta"].get("content", "")
    reasons.append(chunk["choices"][0].get("finish_reason"))
    usage = chunk["usage"]


run_task(
    model="Qwen/Qwen3-8B",
    messages=[{"role": "user", "content": "Count from 3 to 9."}],
    stream_callback=stream_callback,
    generation_config={"repetition_penalty": 1.0, "do_sample": False, "max_new_tokens": 32768},
    seed=42,
    dtype="float32",
)
assert reasons[-1] == "stop" and not any(reasons[:-1])
print({"choices": [{"message": {"content": text}}], "usage": usage})
"""

CACHED = """
from gpt_task.cache import MemoryModelCache
from gpt_task.cache.memory_impl import MemoryModelCache as SameCache
from gpt_task.config import Config, DataDirConfig, ModelsDirConfig, ProxyConfig
from gpt_task.inference import run_task

assert SameCache is MemoryModelCache
cache = MemoryModelCache()
config = Config(
    data_dir=DataDirConfig(models=ModelsDirConfig(huggingface=".cache")),
    proxy=ProxyConfig(host="http://127.0.0.1", port=8080),
)
history = [{"role": "user", "content": "Hello!"}]
for question in ("What is 2 + 2?", "Count from 3 to 9."):
    history.append({"role": "user", "content": question})
    res = run_task(
        model="Qwen/Qwen3-8B",
        messages=history,
        generation_config={"max_new_tokens": 32768},
        model_cache=cache,
        config=config,
    )
    history.append(res["choices"][0]["message"])
    tool_call = {"function": {"name": "calculator", "arguments": '{"x": 2}'}, "id": "call_0"}
    history.append({"role": "assistant", "content": None, "tool_calls": [tool_call]})
    history.append({"role": "tool", "tool_call_id": "call_0", "content": "done"})
print(res)
"""


def prepared(script: str, folder: Path) -> Path:
    """The script in a folder, with the demo model and the image that it reads."""
    for model in ("Qwen/Qwen3-8B", "Qwen/Qwen2.5-VL-3B-Instruct"):
        script = script.replace(model, DEMO)
    (folder / "examples").mkdir()
    shutil.copy(REPOSITORY / "demo/images/red_circle.png", folder / "examples/test.png")
    path = folder / "script.py"
    path.write_text(script)
    return path


def check(printed: str, answer: str) -> None:
    response = ast.literal_eval(printed.splitlines()[-1])
    assert answer in response["choices"][0]["message"]["content"]
    usage = response["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    """Without a warning, from the first import on."""
    done = subprocess.run(
        [sys.executable, "-W", "error", prepared(README_LLM, tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout, "tiny demo model")


@pytest.mark.parametrize(
    ("script", "answer"),
    [(README_VLM, "A red circle."), (STREAMED, "3, 4, 5, 6, 7, 8, 9."), (CACHED, "")],
    ids=["README, VLM", "streamed", "cached"],
)
def test_it_runs(
    script: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(prepared(script, tmp_path)), run_name="__main__")
    check(capsys.readouterr().out, answer)
