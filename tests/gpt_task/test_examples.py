"""The scripts of `examples/gpt_task`, each with a tiny model of its family."""

import base64
import runpy
from pathlib import Path
from typing import Any

import pytest

from gpt_task.inference import run_task
from tests.engine.models.tiny_internvl import save_original
from tests.engine.models.tiny_models import save_tiny_model
from tests.engine.models.tiny_vision_models import save_tiny_vision_model
from tests.gpt_task.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "examples/gpt_task"
SCRIPTS = ("qwen2_5.py", "qwen2_5_vl.py", "internvl3.py", "smolvlm.py")
IMAGE = REPOSITORY / "demo/images/blue_star.png"
TOKENS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directory of each script's model."""
    found = {name: tmp_path_factory.mktemp(name) for name in SCRIPTS}
    save_tiny_model("qwen2", found["qwen2_5.py"])
    save_tiny_vision_model("qwen2_5_vl", found["qwen2_5_vl.py"])
    save_original(found["internvl3.py"], "qwen2", "300M")
    save_tiny_vision_model("smolvlm", found["smolvlm.py"])
    return found


def test_all_are_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)


# Not all pairs, for time. NF4 needs layers of some size, which two of the tiny models do not have.
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("qwen2_5.py", None),
        ("qwen2_5.py", 4),
        ("qwen2_5_vl.py", None),
        ("internvl3.py", 4),
        ("smolvlm.py", None),
        ("smolvlm.py", 8),
    ],
)
def test_a_script_prints_the_answer_of_its_task(
    name: str,
    bits: Any,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The answer that `run_task` gives as a whole, from a task that is written out here."""
    model, question = str(models[name]), "Who are you?"
    arguments = ["--model", model, "--dtype", "float32", f"--max-new-tokens={TOKENS}", question]
    content: Any = question
    settings: dict[str, Any] = {"max_new_tokens": TOKENS}
    messages: list[Any] = []
    if name == "qwen2_5.py":
        messages.append({"role": "system", "content": "You are a helpful assistant."})
        settings["temperature"] = 0.7
    else:
        arguments += ["--image", str(IMAGE)]
        settings["do_sample"] = False
        data = base64.b64encode(IMAGE.read_bytes()).decode()
        content = [{"type": "image", "base64": data}, {"type": "text", "text": question}]
    messages.append({"role": "user", "content": content})
    expected = run_task(
        model=model,
        messages=messages,
        generation_config=settings,
        seed=42,
        dtype="float32",
        quantize_bits=bits,
    )
    assert expected is not None
    if bits:
        arguments.append(f"--quantize-bits={bits}")
    monkeypatch.setattr("sys.argv", [name, *arguments])
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    answer, end = capsys.readouterr().out.rsplit("\n(", 1)
    choice = expected["choices"][0]
    assert answer == choice["message"]["content"]
    assert end == f"{choice['finish_reason']}, {expected['usage']['total_tokens']} tokens)\n"
