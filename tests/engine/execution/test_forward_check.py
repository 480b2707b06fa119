"""The check of packed forwards at load: it takes right ones, whatever is rounded, and no others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch

from engine import EngineConfig
from engine.execution import cuda_graphs, model_runner
from engine.execution.attention.interface import AttentionBackend
from engine.execution.attention.paged import PerSequenceAttention
from engine.execution.executor import Executor
from engine.execution.kv_cache import KVCache
from engine.execution.measuring.forward_check import forward_problem
from engine.execution.model_runner import ModelRunner
from engine.execution.modules.recurrence.states import StateCache
from engine.loading.loader import load_model
from engine.platform.determinism import make_deterministic
from engine.requests.request import ScheduledTokens
from tests.engine.conftest import TinyModel
from tests.engine.core.test_generate_fallback import INSIDE, save_architecture
from tests.engine.execution.test_attention_backend import Fault, PlainAttention, PlainBatch

WINDOWS: tuple[Fault, ...] = ("no window", "window too wide", "window too narrow")
FAULTS: tuple[Fault, ...] = tuple(fault for fault in get_args(Fault) if fault not in WINDOWS)
IN_DECODE: tuple[Fault, ...] = ("a key too many", "a key too few", "the oldest key missing")
MOVED = {"all": range(1, 25), "second chunk": range(13, 24), "decode": range(24, 25)}

ARITHMETIC = [
    pytest.param(dtype, bits, id=f"{dtype}-{bits}")
    for dtype, bits in (*product(("float32", "bfloat16"), (None, 8, 4)), ("float16", None))
]
KINDS = ("qwen2", "gpt2", "mistral", "gemma3")


class Checker:
    """A loaded model, checked with any attention."""

    def __init__(self, directory: Path, dtype: Any, bits: Any) -> None:
        make_deterministic(1)
        config = EngineConfig(model=str(directory), dtype=dtype, quantize_bits=bits, threads=1)
        self.executor = Executor(load_model(config))
        text_config = self.executor.loaded.model.config.get_text_config()
        self.vocab_size = text_config.vocab_size

    def __call__(self, backend: type[AttentionBackend]) -> str | None:
        loaded, shapes = self.executor.loaded, self.executor.measure()
        cache = KVCache(
            shapes.keys_and_values,
            num_pages=8,
            page_size=8,
            device=loaded.device,
            layout=backend.kv_layout,
        )
        runner = ModelRunner(loaded, backend(max_rows=32), cache, StateCache([], 0), max_pages=8)
        return forward_problem(runner, vocab_size=self.vocab_size)

    def shorten(self, layers: int) -> None:
        """Leave out all layers of the model after the first ones."""
        model = self.executor.loaded.model
        model.get_decoder().layers = model.get_decoder().layers[:layers]
        model.config.num_hidden_layers = layers

    def refuses(self, faults: Sequence[Fault], *, decode_only: bool = False) -> None:
        """Each of these faults is found."""
        accepted = [fault for fault in faults if self(faulty(fault, decode_only)) is None]
        assert accepted == []


def faulty(wrong: Fault, decode_only: bool = False) -> type[PlainAttention]:
    """A kernel with a fault, in all forwards or where it decodes."""

    class Faulty(PlainAttention):
        fault: ClassVar[Fault | None] = wrong

        def batch(self, *args: Any, decode: bool) -> PlainBatch:
            right = decode_only and not decode
            return replace(super().batch(*args, decode=decode), fault=None if right else wrong)

    return Faulty


def check_positions(check: Checker, patch: pytest.MonkeyPatch) -> None:
    """Positions that are one too large are found, wherever they are."""
    right = vars(model_runner)["positions"]
    accepted = []
    for name, moved in MOVED.items():

        def wrong(
            scheduled: Sequence[ScheduledTokens], num_rows: int, axes: int, moved: range = moved
        ) -> list[list[int]]:
            rows = right(scheduled, num_rows, axes)
            return [[i + (i in moved) for i in row] for row in rows]

        patch.setattr(model_runner, "positions", wrong)
        if check(PlainAttention) is None:
            accepted.append(name)
    assert accepted == []


@pytest.mark.parametrize(("dtype", "bits"), ARITHMETIC)
@pytest.mark.parametrize("kind", KINDS)
def test_of_small_models(
    kind: Any, dtype: str, bits: int | None, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Checker(tiny_model(kind), dtype, bits)
    assert check(PerSequenceAttention) is None
    assert check(PlainAttention) is None
    check.refuses(FAULTS)
    check.refuses(IN_DECODE, decode_only=True)
    if kind in ("mistral", "gemma3"):
        check.refuses(WINDOWS)
    check_positions(check, monkeypatch)


@pytest.fixture(scope="session")
def windowed(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real weights as a Mistral, which is the same but for a window, as long as Mistral's."""
    directory = tmp_path_factory.mktemp("windowed")
    for file in smollm2.iterdir():
        (directory / file.name).symlink_to(file)
    config = json.loads((smollm2 / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(config | {"sliding_window": 4096}))
    return directory


@pytest.mark.parametrize(("dtype", "bits"), ARITHMETIC)
def test_of_real_weights(
    dtype: str, bits: int | None, windowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their activations are large, and what quantized layers round off grows from layer to layer.

    So right attention is checked in all layers; for wrong ones a few layers must be enough.
    """
    check = Checker(windowed, dtype, bits)
    assert check(PerSequenceAttention) is None
    check.shorten(4)
    assert check(PlainAttention) is None
    check.refuses((*FAULTS, *WINDOWS))
    check.refuses(IN_DECODE, decode_only=True)
    check_positions(check, monkeypatch)


def test_a_graph_that_replays_old_numbers(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Checker(tiny_model("qwen2"), "float32", None)
    load = cuda_graphs._Step.load

    def stale(self: Any, token_ids: torch.Tensor, scheduled: Any, keep: Any) -> None:
        load(self, token_ids, [ScheduledTokens(3, 1, scheduled[0].pages)], keep)

    monkeypatch.setattr(cuda_graphs._Step, "load", stale)
    problem = check(PlainAttention)
    assert problem is not None
    assert "graph" in problem


def test_the_problem_is_named(tiny_model: TinyModel) -> None:
    problem = Checker(tiny_model("qwen2"), "float32", None)(faulty("keys in another order"))
    assert problem is not None
    assert problem.startswith("attention of layer 0")


def test_soft_caps_where_plain_operations_round_them(tmp_path: Path) -> None:
    """Scores near 50 in bfloat16 are an eighth apart, in the model's own attention."""
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    options = INSIDE["gemma2"] | {"head_dim": 32, "query_pre_attn_scalar": 32, **sizes}
    save_architecture("gemma2", options, tmp_path)
    checker = Checker(tmp_path, "bfloat16", None)
    assert checker(PerSequenceAttention) is None
