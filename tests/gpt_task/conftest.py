"""The models of these tests: the demo model, which reads images, and a random text model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt_task.config import get_config
from tests.engine.models.tiny_models import save_tiny_model

REPOSITORY = Path(__file__).parents[2]
DEMO = str(REPOSITORY / "demo" / "model")


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a tiny random model: its answers are noise of all bytes, and long."""
    directory = tmp_path_factory.mktemp("text")
    save_tiny_model("qwen2", directory)
    return str(directory)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No configuration of the machine, and one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT_TASK_CONFIG", raising=False)
    get_config.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    get_config.cache_clear()
