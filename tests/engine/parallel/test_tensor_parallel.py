"""A model over two processes: the answers of the whole model, the same bytes in any batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from engine import Engine, EngineConfig
from engine.execution.model_runner import ModelRunner
from engine.parallel import group
from engine.parallel import worker as follower
from engine.parallel.launcher import WorkerProcess
from engine.parallel.worker import follow
from schema import Task
from schema.errors import (
    ModelInvalid,
    OutOfMemory,
    TaskArgsInvalid,
    TaskExecutionError,
)
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.core.test_batching import at_once, tasks
from tests.engine.core.test_generate_fallback import INSIDE, OUTSIDE, save_architecture
from tests.engine.models.tiny_internvl import save_original
from tests.engine.models.tiny_models import Kind
from tests.engine.parallel.two_ranks import ForkServer, children, hello, split, stops
from tests.engine.sampling.test_generate_oracle import actual, expected

DEMO = Path(__file__).parents[3] / "demo" / "model"
PROMPT = "The engine must write what generate writes, for a prompt of several chunks too."
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
}


@pytest.fixture(scope="module")
def fork_server() -> ForkServer:
    return ForkServer()


@pytest.fixture(scope="module")
def engine(tiny_model: TinyModel) -> Iterator[Engine]:
    """With images, so that they are covered too."""
    with split(tiny_model("internvl")) as engine:
        yield engine


# --- One engine for these ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokens_are_those_of_the_whole_model(
    name: str, engine: Engine, tiny_model: TinyModel
) -> None:
    directory = tiny_model("internvl")
    model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = dict(tokenizer(f"[user]{PROMPT}[assistant]", return_tensors="pt"))
    messages = [{"role": "user", "content": PROMPT}]
    assert actual(engine, messages, SETTINGS[name]) == expected(
        model, tokenizer, inputs, SETTINGS[name]
    )


def test_the_prompt_is_scored_as_by_the_whole_model(
    engine: Engine, tiny_engine: TinyEngine
) -> None:
    asked = Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": PROMPT}],
        generation_config={"max_new_tokens": 0, "prompt_logprobs": 0},
    )
    whole = tiny_engine("internvl").run_blocking(asked)
    found = engine.run_blocking(asked)["prompt_logprobs"]
    assert [token["token_id"] for token in found] == [
        token["token_id"] for token in whole["prompt_logprobs"]
    ]
    assert [token["logprob"] for token in found[1:]] == pytest.approx(
        [token["logprob"] for token in whole["prompt_logprobs"][1:]], abs=1e-4
    )


async def test_alone_and_under_load(engine: Engine, tiny_engine: TinyEngine) -> None:
    """Of all kinds: sampled, several answers, beams, images, with prefixes that are known."""
    wanted = tasks(12, images=True)
    alone = [engine.run_blocking(task) for task in wanted]
    assert await at_once(engine, wanted) == alone
    assert engine.stats()["prefix_tokens_reused"] > 0
    # The same as the whole model's, except the fingerprint.
    whole = tiny_engine("internvl", max_sequences=8)
    assert [r["choices"] for r in await at_once(whole, wanted)] == [r["choices"] for r in alone]
    assert engine.card()["system_fingerprint"] != whole.card()["system_fingerprint"]
    assert engine.card()["layout"] == "tensor:2"
    assert engine.card()["memory"]["weights_bytes"] < whole.card()["memory"]["weights_bytes"]
    engine._loop.scheduler.check_integrity()


def test_a_task_for_generate_is_refused(engine: Engine) -> None:
    own = engine._loop.assembly.loaded.model.generation_config
    own.guidance_scale = 1.5
    try:
        with pytest.raises(TaskArgsInvalid, match="split over 2 devices"):
            engine.run_blocking(hello())
    finally:
        own.guidance_scale = None


def test_one_at_a_time(engine: Engine, tiny_model: TinyModel) -> None:
    with pytest.raises(ModelInvalid, match="close the other engine"):
        Engine(EngineConfig(model=str(tiny_model("llama")), num_devices=2, device="cpu"))
    assert engine.run_blocking(hello())["choices"]


async def test_another_start_gives_the_same_bytes_and_a_lost_rank_ends_it(
    engine: Engine, tiny_model: TinyModel, fork_server: ForkServer
) -> None:
    first = engine.run_blocking(hello())
    (child,) = children()
    engine.close()
    engine.close()
    assert not child.is_running()
    with split(tiny_model("internvl"), fork_server) as second:
        assert second.run_blocking(hello()) == first
        await stops(second, fork_server.last.kill, because="rank 1")


# --- Engines of their own ------------------------------------------------------------------------


async def test_a_rank_that_hangs_ends_it(
    tiny_model: TinyModel, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a rank that compiles its attention while the other one waits.
    monkeypatch.setattr(group, "EXCHANGE_TIMEOUT", timedelta(seconds=4))

    def hang() -> None:
        assert fork_server.last.pid is not None
        os.kill(fork_server.last.pid, signal.SIGSTOP)

    with split(tiny_model("qwen2"), fork_server) as engine:
        await stops(engine, hang, because="rank 0 failed")


async def test_a_forward_that_fails_on_one_rank_ends_it(
    tiny_model: TinyModel, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> NoReturn:
        raise torch.OutOfMemoryError("this rank's device is full")

    with split(tiny_model("qwen2"), fork_server) as engine:
        await stops(
            engine,
            lambda: monkeypatch.setattr(ModelRunner, "_model_logits", fail),
            because="device is full",
        )


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "demo"])
def test_families(
    kind: Kind | Literal["demo"], tiny_model: TinyModel, fork_server: ForkServer
) -> None:
    """Norms of single heads, weights that are fused, and (in the demo model) a tied head."""
    directory = DEMO if kind == "demo" else tiny_model(kind)
    auto_class: Any = AutoModelForImageTextToText if kind == "demo" else AutoModelForCausalLM
    whole: Any = auto_class.from_pretrained(directory, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    with split(directory, fork_server) as engine:
        inputs = dict(tokenizer(PROMPT, return_tensors="pt"))
        task = Task.from_fields(
            model="tiny",
            messages=[{"role": "user", "content": PROMPT}],
            generation_config={"max_new_tokens": 24, "do_sample": True},
            use_chat_template=False,
            seed=11,
        )
        (choice,) = engine.run_blocking(task)["choices"]
        want = expected(whole, tokenizer, inputs, {"do_sample": True})
        assert [choice["message"]["content"]] == want
        runner = engine._loop.assembly.batching.runner
        with torch.inference_mode():
            ours = runner.plain_logits(inputs["input_ids"][0].tolist())
            theirs = whole(**inputs, use_cache=False).logits[0]
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.gpu
async def test_two_gpus(tiny_model: TinyModel) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    wanted = tasks(16, images=True)
    with split(tiny_model("internvl"), device="cuda", dtype="bfloat16") as engine:
        alone = [engine.run_blocking(task) for task in wanted]
        assert await at_once(engine, wanted) == alone
        assert engine.card()["layout"] == "tensor:2"
        (child,) = children()
        await stops(engine, child.kill, because="rank 1")


# --- Refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("gpt2", {}, "no tensor parallel plan for it"),
        ("qwen2", {"num_devices": 3}, "4 attention heads, 2 key/value heads, .* 3 does not divide"),
        ("qwen2", {"num_devices": 4}, "2 key/value heads, which 4 does not divide"),
    ],
)
def test_models_that_cannot_be_split(
    kind: Kind, options: dict[str, Any], why: str, tiny_model: TinyModel
) -> None:
    with (
        pytest.raises(ModelInvalid, match=f"{why}; set split to 'layers'"),
        split(tiny_model(kind), **options),
    ):
        pass
    assert not children()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("phi3", "does not run with continuous batching, because its rotary embedding"),
        ("mixtral", "its plan has the style 'packed_colwise', which is not supported"),
        ("opt", "no tensor parallel plan"),
    ],
)
def test_architectures_that_are_not_split(
    kind: str, why: str, tmp_path: Path, fork_server: ForkServer
) -> None:
    save_architecture(kind, (OUTSIDE | INSIDE)[kind], tmp_path)
    with pytest.raises(ModelInvalid, match=why), split(tmp_path, fork_server):
        pass


def test_weights_that_are_stored_as_one(tmp_path: Path) -> None:
    save_original(tmp_path, "internlm2", "300M")
    with pytest.raises(ModelInvalid, match="stored as one"), split(tmp_path):
        pass


def test_quantized_models_are_not_split_so() -> None:
    with pytest.raises(ValueError, match="set split to 'layers' or leave quantize_bits out"):
        EngineConfig(model="m", num_devices=2, split="tensor", quantize_bits=4)


def follow_without_memory(address: str, rank: int) -> None:
    def fail(*args: Any) -> NoReturn:
        raise torch.OutOfMemoryError("this rank's device is full")

    vars(follower)["load_model"] = fail  # in a process of its own
    follow(address, rank)


def test_a_rank_that_cannot_load(tiny_model: TinyModel, fork_server: ForkServer) -> None:
    class Small:
        def start(self, address: str, rank: int) -> WorkerProcess:
            return fork_server.start(address, rank, follow_without_memory)

    with (
        pytest.raises(OutOfMemory, match="rank 1 failed: this rank's device is full"),
        split(tiny_model("qwen2"), Small()),
    ):
        pass


def test_a_rank_that_does_not_start(tiny_model: TinyModel, fork_server: ForkServer) -> None:
    class Elsewhere:
        def start(self, address: str, rank: int) -> WorkerProcess:
            return fork_server.start("/nowhere", rank)

    with (
        pytest.raises(TaskExecutionError, match="rank 1 could not be started"),
        split(tiny_model("qwen2"), Elsewhere()),
    ):
        pass
