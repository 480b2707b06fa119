"""Only `engine.platform` and attention backends ask which kind of device they run on.

So a new accelerator is one class: the last test runs an engine on one that is made up here. Where
serve_app and cluster compare a device, it is the one that the configuration names, or the doctor
describes CUDA's own driver and cards.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine import Engine, EngineConfig
from engine.execution.kv_cache import KVCache
from engine.platform import platforms
from engine.platform.cpu import CpuPlatform
from engine.platform.interface import Replay, Sizes
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.sampling.test_generate_oracle import TEXTS, task

REPOSITORY = Path(__file__).parents[3]
ENGINE = REPOSITORY / "engine"
ALLOWED = (ENGINE / "platform", ENGINE / "execution" / "attention")
DEVICE_TYPES = {"cpu", "cuda", "mps", "xpu", "hpu", "npu"}
MODULES_OF_TORCH = DEVICE_TYPES - {"cpu"} | {"accelerator"}


def questions(source: str) -> Iterator[int]:
    """The lines of a module that ask what a device is.

    They read ``is_cuda`` and its like, use torch's module for one kind of device, or compare
    something with the name of a type of device. Names as values, as in a ``Literal``, ask nothing.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            of_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
            asked = node.attr in {f"is_{name}" for name in DEVICE_TYPES}
            if asked or (of_torch and node.attr in MODULES_OF_TORCH):
                yield node.lineno
        elif isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            if any(isinstance(p, ast.Constant) and p.value in DEVICE_TYPES for p in parts):
                yield node.lineno
        elif isinstance(node, ast.MatchValue):
            if isinstance(node.value, ast.Constant) and node.value.value in DEVICE_TYPES:
                yield node.value.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            base = getattr(node, "module", None)
            names = [f"{base}.{a.name}" if base else a.name for a in node.names]
            if any(name.startswith(f"torch.{m}") for name in names for m in MODULES_OF_TORCH):
                yield node.lineno


@pytest.mark.parametrize(
    "question",
    [
        "tensor.is_cuda",
        "torch.cuda.is_available()",
        "torch.accelerator.is_available()",
        "import torch.cuda",
        "from torch.cuda import Event",
        "from torch import cuda",
        "device.type == 'cuda'",
        "'cpu' != tensor.device.type",
        "device.type in ('cuda', 'xpu')",
        "match device.type:\n    case 'cuda':\n        pass",
    ],
)
def test_a_question_is_found(question: str) -> None:
    assert list(questions(question))


def test_names_ask_nothing() -> None:
    assert not list(questions("Device = Literal['auto', 'cpu', 'cuda']\ntorch.device('cpu')"))


def test_no_other_module_asks_what_a_device_is() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for package in (ENGINE, REPOSITORY / "gpt_task")
        for path in sorted(package.rglob("*.py"))
        if not any(path.is_relative_to(allowed) for allowed in ALLOWED)
        for line in questions(path.read_text())
    ]
    assert not found, "ask `engine.platform` instead"


class Accelerator(CpuPlatform):
    """Computes on the CPU, but appears to the engine as another kind of device."""

    default_sizes = Sizes(prefill_chunk=32, page_size=8, forward_rows=64)
    kv_layout = "tokens first"
    default_kv_bytes = None
    lookahead = True
    may_prepack = False
    copies = 0

    def device_name(self, device: torch.device) -> str:
        return "made up"

    def kv_room(self, device: torch.device) -> int | None:
        return 1 << 20

    def packs_weights(self, dtype: torch.dtype) -> bool:
        return False

    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        Accelerator.copies += 1
        return tensor.clone(), lambda: None

    def graph_recorder(self) -> Callable[[Replay], Replay]:
        raise AssertionError("the backend of this platform captures nothing")


def test_a_new_accelerator_is_one_class(
    tiny_engine: TinyEngine, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [task([{"role": "user", "content": text}], {}) for text in TEXTS]
    expected = [tiny_engine("qwen2").run_blocking(one)["choices"] for one in wanted]
    monkeypatch.setitem(vars(platforms)["PLATFORMS"], "cpu", Accelerator())
    engine = Engine(EngineConfig(model=str(tiny_model("qwen2")), dtype="float32", threads=1))
    try:
        card = engine.card()
        assert card["device"] == "made up"
        assert card["prefill_chunk"] == 32
        assert not card["prepacked"]
        assert 0 < card["memory"]["kv_cache_bytes"] <= (1 << 20) + 8 * 512
        cache: KVCache = engine._loop.assembly.batching.cache
        assert all(layer.keys.is_contiguous() for layer in cache.layers.values())
        assert [engine.run_blocking(one)["choices"] for one in wanted] == expected
        assert Accelerator.copies
    finally:
        engine.close()
