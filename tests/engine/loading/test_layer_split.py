"""Layers over several devices: the same bits as on one, and no operation on tensors of two devices.

A machine without GPUs has one device. So stages are the CPU twice, which still goes through every
boundary; and `TwoMemories` watches that no operation takes tensors of two stages.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
from transformers.integrations.accelerate import expand_device_map

from engine import EngineConfig
from engine.execution.executor import Executor, RunnerPlan
from engine.execution.model_runner import ModelRunner, plain_attention
from engine.loading.estimate import estimate_memory
from engine.loading.loaded_model import LoadedModel
from engine.loading.loader import load_model
from engine.loading.sharding.layer_split import (
    LayerPlacement,
    Stage,
    balanced,
    connect,
    plan_spread,
    stage_devices,
)
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens
from schema import Task
from schema.errors import ModelInvalid
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.execution.varlen_stand_in import small_varlen_attn
from tests.engine.models.tiny_models import Kind
from tests.engine.models.tiny_vision_models import VisionKind
from tests.engine.sampling.test_generate_oracle import SETTINGS, check_crowd
from tests.engine.vision.vision_oracle import CONVERSATIONS, oracle, texts
from tests.engine.vision.vision_oracle import task as vision_task

PAGE = 8
TOKENS = torch.randint(200, (21,), generator=torch.Generator().manual_seed(0)).tolist()


def configured(directory: Path, **options: Any) -> EngineConfig:
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "threads": 1}
    return EngineConfig(model=str(directory), **settings | options)


def test_stages_are_balanced() -> None:
    """The best of all cuts, and the first of equal ones."""
    draw = random.Random(0)
    for _ in range(200):
        layers = [draw.randrange(1, 9) for _ in range(draw.randrange(2, 9))]
        rest, num_stages = draw.randrange(20), draw.randrange(1, len(layers) + 1)

        def largest(cuts: Sequence[int], layers: list[int] = layers, rest: int = rest) -> int:
            sizes = [sum(layers[a:b]) for a, b in itertools.pairwise(cuts)]
            return max(sizes[0] + rest, *sizes[1:]) if sizes[1:] else sizes[0] + rest

        every = [
            (0, *inner, len(layers))
            for inner in itertools.combinations(range(1, len(layers)), num_stages - 1)
        ]
        cuts = balanced(rest, layers, num_stages)
        assert largest(cuts) == min(map(largest, every))
        assert tuple(cuts) in every


def test_every_tensor_has_a_device(tmp_path: Path) -> None:
    """As transformers reads a device map, also where one layer's name begins another's."""
    hf_config = Qwen2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=13,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
    )
    devices = [torch.device("cuda", index) for index in range(3)]
    spread, device_map = plan_spread(configured(tmp_path), hf_config, devices)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(hf_config)
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    for name, device in expand_device_map(device_map, names).items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        assert device == spread.layer_devices[layer], name
    assert [stage.stop - stage.start for stage in spread.stages] == [4, 4, 5]
    assert spread.name == "layers:3 (0-3, 4-7, 8-12)"


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma3", "internvl", "qwen3_vl"])
def test_planned_as_loaded(kind: Kind | VisionKind, bits: Any, tiny_model: TinyModel) -> None:
    """The planner, which has the headers of files only, cuts where the loader does."""
    config = configured(tiny_model(kind), device="cuda", quantize_bits=bits)
    found = estimate_memory(config)
    hf_config = AutoConfig.from_pretrained(tiny_model(kind))
    spread, _ = plan_spread(config, hf_config, [torch.device("cpu")] * 2)
    cuts = balanced(found.weights - sum(found.layers), found.layers, 2)
    assert [stage.start for stage in spread.stages] == cuts[:-1]


async def test_under_load_it_writes_what_generate_writes(
    tiny_engine: TinyEngine, tiny_model: TinyModel
) -> None:
    """All settings at once, twice: the second time prompts begin in the prefix cache."""
    engine = tiny_engine("qwen2", num_devices=2, split="layers", max_sequences=8)
    await check_crowd(
        engine,
        tiny_model("qwen2"),
        [SETTINGS[name] for name in ("greedy", "everything", "all beams")],
    )
    card = engine.card()
    assert card["layout"] == "layers:2 (0-0, 1-1)"
    assert card["continuous_batching"]
    alone = tiny_engine("qwen2", max_sequences=8).card()
    assert alone["layout"] is None
    assert card["batch_sizes"] == alone["batch_sizes"]
    assert card["system_fingerprint"] != alone["system_fingerprint"]


def test_the_prompt_is_scored_as_on_one_device(tiny_engine: TinyEngine) -> None:
    asked = Task.from_fields(
        model="tiny",
        prompt_token_ids=[7 + i % 50 for i in range(40)],
        generation_config={"max_new_tokens": 2, "prompt_logprobs": 3, "logprobs": 2},
    )
    whole = tiny_engine("qwen2", max_sequences=8).run_blocking(asked)
    found = tiny_engine("qwen2", num_devices=2, split="layers", max_sequences=8).run_blocking(asked)
    assert found["prompt_logprobs"] == whole["prompt_logprobs"]
    assert found["choices"] == whole["choices"]


def test_images(tiny_engine: TinyEngine, tiny_model: TinyModel) -> None:
    """Of a model with three rotary positions a token and features for further layers."""
    engine = tiny_engine("qwen3_vl", num_devices=2, split="layers", max_sequences=4)
    for name in ("one image", "two turns"):
        messages = CONVERSATIONS[name]
        response = engine.run_blocking(vision_task(messages))
        assert texts(response) == oracle(tiny_model("qwen3_vl")).answers(messages, {})


def runner_of(loaded: LoadedModel, attention: str = "per sequence") -> ModelRunner:
    executor = Executor(loaded)
    executor.measure()
    return executor.build(RunnerPlan(attention, PAGE, num_pages=16, max_pages=4, max_rows=12))


def bits_of(runner: ModelRunner) -> list[torch.Tensor]:
    """Logits of a prompt in two chunks, of a copy and it in one step; and what is in the cache."""
    mine, copy = [1, 4, 2, 9], [3, 5, 7, 11]
    cache = runner.cache

    def run(start: int, *pages: list[int], decode: bool = False) -> torch.Tensor:
        tokens = TOKENS[start : start + 1] if decode else TOKENS[start : start + 10]
        batch = [ScheduledTokens(start, len(tokens), each) for each in pages]
        ids = upload(tokens * len(pages), runner.device)
        keep = range(len(pages)) if decode else [len(tokens) - 1]
        rows = 12 if not decode else 2
        logits = runner.forward(ids, batch, num_rows=rows, keep=keep, num_keep=2, decode=decode)
        return logits.clone()

    logits = [run(0, mine), run(10, mine)]
    cache.copy(mine, copy, 0, 20)
    logits.append(run(20, mine, copy, decode=True))
    stored = [part for layer in cache.layers.values() for part in (layer.keys, layer.values)]
    cache.fill_randomly([8, 12], seed=1)  # as the batch invariance check does
    drawn = torch.frombuffer(bytearray(cache.bits([8, 12], 3, PAGE + 5)), dtype=torch.uint8)
    return [*logits, *stored, drawn]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized(bits: Any, tiny_model: TinyModel) -> None:
    """NF4 and INT8, bit for bit as on one device, and what the model's own forward computes."""
    results = []
    for num_devices in (1, 2):
        config = configured(tiny_model("qwen2"), quantize_bits=bits, num_devices=num_devices)
        loaded = load_model(config)
        assert (loaded.spread is not None) == (num_devices == 2)  # by what "auto" means
        runner = runner_of(loaded)
        results.append(bits_of(runner))
        own = runner.plain_logits(TOKENS)
        torch.testing.assert_close(results[-1][2], own[20:].expand(2, -1), rtol=1e-3, atol=1e-3)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


class TwoMemories(TorchDispatchMode):
    """Keeps cpu:0 and cpu:1 apart as GPUs are; torch itself does not distinguish them.

    What is made with such a device, or sent to it, is there, and so is what is computed of it. An
    operation on tensors of both is refused as CUDA refuses it; only copies may have two.
    """

    COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where: dict[int, tuple[int, object]] = {}
        self.sent = 0

    def put(self, tensor: torch.Tensor, index: int) -> None:
        storage = tensor.untyped_storage()
        self._where.setdefault(storage._cdata, (index, storage))

    def of(self, tensor: torch.Tensor) -> int | None:
        return self._where.get(tensor.untyped_storage()._cdata, (None, None))[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        found = {index for tensor in tensors if (index := self.of(tensor)) is not None}
        assert len(found) <= 1 or func.overloadpacket in self.COPIES, f"{func} on two devices"
        output = func(*args, **kwargs)
        device = kwargs.get("device")
        index = next(iter(found), None) if device is None else device.index
        self.sent += bool(found) and index not in found
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and index is not None:
                self.put(leaf, index)
        return output


@pytest.mark.parametrize("kernel", ["per sequence", "paged kernel"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma3"])
def test_nothing_lies_on_two_devices(
    kind: Kind, kernel: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.execution.attention.varlen.varlen_attn", small_varlen_attn)
    config = configured(tiny_model(kind))
    plain = load_model(config)
    stages = (Stage(torch.device("cpu", 0), 0, 1), Stage(torch.device("cpu", 1), 1, 2))
    spread = LayerPlacement(stages)
    loaded = replace(plain, device=stages[0].device, spread=spread)
    memories = TwoMemories()
    for name, tensor in [*plain.model.named_parameters(), *plain.model.named_buffers()]:
        memories.put(tensor, int(any(part in name for part in (".layers.1.", ".h.1."))))

    def bits(loaded: LoadedModel) -> list[torch.Tensor]:
        return bits_of(runner_of(loaded, kernel))

    def generated() -> torch.Tensor:
        """As the generate fallback does."""
        prompt = torch.tensor([TOKENS]).to(loaded.device)
        with plain_attention(plain), torch.inference_mode():
            output: torch.Tensor = loaded.model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4
            )
        return output

    want, answer = bits(plain), generated()
    with memories, pytest.raises(AssertionError, match="on two devices"):
        bits(loaded)  # layers that are not connected
    connect(loaded.model, spread, config)
    with memories:
        got = bits(loaded)
        sent = memories.sent
        assert torch.equal(generated(), answer)
    for one, two in zip(want, got, strict=True):
        assert torch.equal(one, two)
    assert 0 < sent < 60  # hidden states, what layers share and the batch's numbers, once each


def test_what_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelInvalid, match=r"num_devices is 3, but .* has 2 layers"):
        load_model(configured(tiny_model("qwen2"), num_devices=3, split="layers"))
    with pytest.raises(ModelInvalid, match=r"num_devices is 99, but this process sees \d+ GPUs"):
        stage_devices(configured(tiny_model("qwen2"), num_devices=99), torch.device("cuda", 0))
    with pytest.raises(ValueError, match="split is 'tensor', which a quantized model cannot be"):
        configured(tiny_model("qwen2"), num_devices=2, split="tensor", quantize_bits=4)
    with pytest.raises(ValueError, match="num_devices must be at least 1"):
        configured(tiny_model("qwen2"), num_devices=0)
