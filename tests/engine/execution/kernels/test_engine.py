"""A whole engine on the kernels, interpreted: windows, sinks, images, half precision.

The interpreter takes a millisecond for a program, so engines are measured at few batch sizes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig
from engine.execution.measuring import batch_invariance
from engine.platform.cpu import CpuPlatform
from tests.engine.conftest import TinyModel
from tests.engine.core.test_generate_fallback import INSIDE, generated, save_architecture, task
from tests.engine.vision.vision_oracle import CONVERSATIONS, oracle, texts
from tests.engine.vision.vision_oracle import task as vision_task

TEXTS = ("Hi", "A prompt of several chunks, and of pages too.")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 8},
    {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 2},
)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_oss": INSIDE["gpt_oss"],
}

BATCH_SIZES = (6, 16, 32)

Opened = Callable[..., Engine]


@pytest.fixture
def opened(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Makes engines on the CPU that try the kernels as they are tried on CUDA."""
    if device.type != "cpu":
        pytest.skip("engines on a GPU have tests of their own")
    monkeypatch.setattr(CpuPlatform, "attention_backends", ("triton kernel", "per sequence"))
    monkeypatch.setattr("engine.execution.attention.triton_paged.triton_problem", lambda *_: None)
    monkeypatch.setattr(batch_invariance, "candidate_rows", lambda _: BATCH_SIZES)
    engines: list[Engine] = []

    def open_engine(directory: Path, **options: Any) -> Engine:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "threads": 1,
            "prefill_chunk": 16,
            "page_size": 16,
            "context_length": 256,
            "max_sequences": BATCH_SIZES[0],
            "lookahead": True,
        }
        engine = Engine(EngineConfig(model=str(directory), **settings | options))
        engines.append(engine)
        assert engine.card()["attention"] == "triton kernel"
        assert engine.card()["fallback_reason"] is None
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_alone_and_together_it_writes_what_generate_writes(
    kind: str, opened: Opened, tmp_path: Path
) -> None:
    save_architecture(kind, KINDS[kind], tmp_path)
    engine = opened(tmp_path)
    pairs = [(text, settings) for text in TEXTS for settings in SETTINGS]
    wanted = [task(*pair) for pair in pairs]
    alone = [engine.run_blocking(one) for one in wanted]
    assert [[c["message"]["content"] for c in each["choices"]] for each in alone] == [
        generated(tmp_path, *pair) for pair in pairs
    ]
    assert await asyncio.gather(*map(engine.run, wanted)) == alone


async def test_images_whose_tokens_attend_to_each_other(
    opened: Opened, tiny_model: TinyModel
) -> None:
    directory = tiny_model("gemma3_vision")
    engine = opened(directory)
    settings = {"max_new_tokens": 6}
    asked = [CONVERSATIONS["one image"], CONVERSATIONS["two images"]]
    wanted = (vision_task(messages, settings) for messages in asked)
    responses = await asyncio.gather(*map(engine.run, wanted))
    assert [texts(response) for response in responses] == [
        oracle(directory).answers(messages, settings) for messages in asked
    ]


async def test_half_precision(opened: Opened, tmp_path: Path) -> None:
    """The forward check passes, and tasks have the same bytes alone and together."""
    save_architecture("llama", {}, tmp_path)
    engine = opened(tmp_path, dtype="bfloat16")
    wanted = [task(text, settings) for text in TEXTS for settings in SETTINGS]
    alone = [engine.run_blocking(one) for one in wanted]
    assert await asyncio.gather(*map(engine.run, wanted)) == alone
