"""What only a GPU can show: ``pytest -m gpu`` on a CUDA machine (docs/gpu.md keeps the results)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig
from engine.core.in_flight import InFlight
from engine.core.step import Execution
from schema import Task
from tests.engine.conftest import TinyModel
from tests.engine.models.tiny_models import Kind
from tests.engine.sampling.test_generate_oracle import SETTINGS

pytestmark = pytest.mark.gpu

ARITHMETIC: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "fp16": {"dtype": "float16"},
    "fp32": {"dtype": "float32"},
    "int8": {"dtype": "float16", "quantize_bits": 8},
    "nf4": {"dtype": "bfloat16", "quantize_bits": 4},
}


def tasks(bits: int | None = None) -> list[Task]:
    """Tasks of all settings, short and longer than a page."""
    texts = ["Hi", "A prompt. " * 9, "A prompt of more than one page and chunk. " * 9]
    return [
        Task.from_fields(
            model="tiny",
            messages=[{"role": "user", "content": f"{number} {text}"}],
            generation_config={"max_new_tokens": 40} | settings,
            seed=number,
            quantize_bits=bits,
        )
        for number, (text, settings) in enumerate(
            (text, settings) for text in texts for settings in SETTINGS.values()
        )
    ]


@pytest.fixture(params=ARITHMETIC)
def config(request: pytest.FixtureRequest, tiny_model: TinyModel) -> EngineConfig:
    kind: Kind = "qwen2"
    return EngineConfig(
        model=str(tiny_model(kind)), device="cuda", max_sequences=64, **ARITHMETIC[request.param]
    )


def answers(config: EngineConfig, *, at_once: bool) -> list[Any]:
    """The responses of all tasks, at once or one after the other, by a new engine."""
    engine = Engine(config)
    wanted = tasks(config.quantize_bits)

    async def run_all() -> list[Any]:
        return list(await asyncio.gather(*(engine.run(task) for task in wanted)))

    try:
        if at_once:
            return asyncio.run(run_all())
        return [engine.run_blocking(task) for task in wanted]
    finally:
        engine.close()
        engine._loop.scheduler.check_integrity()


def test_alone_at_once_and_after_a_restart(config: EngineConfig) -> None:
    alone = answers(config, at_once=False)
    assert answers(config, at_once=True) == alone
    assert answers(config, at_once=True) == alone


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@two_gpus
def test_layers_over_two_gpus(config: EngineConfig) -> None:
    """The same bytes in any batch, and as on one GPU: every operation is the same one."""
    spread = config.replace(num_devices=2, split="layers")
    alone = answers(spread, at_once=False)
    assert answers(spread, at_once=True) == alone
    assert answers(spread, at_once=True) == alone
    one = answers(config, at_once=False)
    assert [each["choices"] for each in alone] == [each["choices"] for each in one]
    assert alone[0]["system_fingerprint"] != one[0]["system_fingerprint"]


def test_every_dtype_uses_the_kernels_in_triton(tiny_model: TinyModel) -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        engine = Engine(EngineConfig(model=str(tiny_model("qwen2")), device="cuda", dtype=dtype))
        card = engine.card()
        engine.close()
        assert card["attention"] == "triton kernel"
        assert card["continuous_batching"]
        assert card["fallback_reason"] is None


def test_a_decode_step_is_a_graph(tiny_model: TinyModel, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(EngineConfig(model=str(tiny_model("qwen2")), device="cuda", dtype="bfloat16"))
    engine.run_blocking(tasks()[0])
    engine.close()
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.parametrize("num_devices", [1, pytest.param(2, marks=two_gpus, id="two_gpus")])
def test_a_launch_does_not_wait_for_the_device(
    num_devices: int, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(
        model=str(tiny_model("qwen2")),
        device="cuda",
        dtype="bfloat16",
        num_devices=num_devices,
        split="layers",
    )
    engine = Engine(config)
    launch = Execution.launch
    launches: list[int] = []

    def watched(execution: Execution) -> list[InFlight]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            launches.append(1)
            return launch(execution)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for task in tasks()[: len(SETTINGS)]:  # graphs are captured, memory is there
        engine.run_blocking(task)
    monkeypatch.setattr(Execution, "launch", watched)
    for task in tasks()[: len(SETTINGS)]:
        engine.run_blocking(task)
    engine.close()
    assert launches
