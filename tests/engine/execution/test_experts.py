"""Mixtures of experts in the batch: the answers of `generate`, whoever else chooses an expert."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from engine import Engine, EngineConfig
from engine.execution.batch_sizes import BatchInvarianceError
from engine.execution.modules.experts import (
    Experts,
    expert_counts,
    has_other_mixtures,
    mixtures,
    real_rows,
    use_exact_experts,
)
from engine.platform.cpu import CpuPlatform
from engine.quantization.registry import quantization
from schema import Task
from tests.engine.core.test_generate_fallback import (
    SETTINGS,
    TEXT,
    answers,
    generated,
    save_architecture,
)

_GROUPED: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# How experts are chosen and mixed: by softmax, by sigmoids within groups, with shared experts.
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, "moe_intermediate_size": 64},
    "glm4_moe": {**_GROUPED, "head_dim": 16, "intermediate_size": 128},
    "deepseek_v3": {
        **_GROUPED,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
    "granitemoe": {"num_local_experts": 4},
}
ARITHMETIC: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize_bits": 8},
    "nf4": {"dtype": "bfloat16", "quantize_bits": 4},
}


def engine_of(directory: Path, **options: Any) -> Engine:
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    return Engine(EngineConfig(model=str(directory), **settings | options))


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_generate_writes(kind: str, tmp_path: Path) -> None:
    save_architecture(kind, KINDS[kind], tmp_path)
    with closing(engine_of(tmp_path)) as engine:
        card = engine.card()
        assert card["continuous_batching"], card["fallback_reason"]
        for text in ("Hi", TEXT):
            for settings in SETTINGS:
                assert answers(engine, text, settings) == generated(tmp_path, text, settings)


def tasks(count: int, bits: int | None) -> list[Task]:
    draw = random.Random(0)
    return [
        Task.from_fields(
            model="tiny",
            messages=[{"role": "user", "content": TEXT[: draw.randrange(1, len(TEXT))]}],
            generation_config={
                "max_new_tokens": draw.randrange(8, 24),
                "do_sample": bool(number % 3),
                "num_return_sequences": 1 + (number % 5 == 0),
                "logprobs": 2,
            },
            seed=number,
            quantize_bits=bits,
            return_token_ids=True,
        )
        for number in range(count)
    ]


async def check_under_load(engine: Engine, asked: Sequence[Task]) -> None:
    """All at once, in two orders, have the responses that they have alone, which are verified."""
    assert engine.card()["continuous_batching"]
    alone = [await engine.run(one) for one in asked]
    for seed in range(2):
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        got = await asyncio.gather(*(engine.run(asked[number]) for number in order))
        assert got == [alone[number] for number in order]
    for one, answer in zip(asked[:4], alone, strict=False):
        assert (await engine.verify(one, answer))["verdict"] == "exact"


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("kind", ["qwen2_moe", "glm4_moe"])
async def test_alone_and_under_load(kind: str, name: str, tmp_path: Path) -> None:
    """Tokens and log probabilities, in several orders; and they are verified."""
    save_architecture(kind, KINDS[kind], tmp_path)
    asked = tasks(16, ARITHMETIC[name].get("quantize_bits"))
    with closing(engine_of(tmp_path, max_sequences=24, **ARITHMETIC[name])) as engine:
        await check_under_load(engine, asked)


@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_quantized_experts(name: str, tmp_path: Path) -> None:
    """They take little memory, and compute what their weights say when they are written out."""
    save_architecture("qwen2_moe", KINDS["qwen2_moe"], tmp_path)
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    small: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    quantized = quantization(8 if name == "int8" else 4)
    assert quantized is not None
    use_exact_experts(small, quantized, packs=False)
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
    for mine, reference in zip(mixtures(small), mixtures(whole), strict=True):
        for weights in (reference.gate_up_proj.data, reference.down_proj.data):
            for weight in weights:
                weight.copy_(written_out(weight, name))
        chosen = torch.randint(8, (12, 3), generator=torch.Generator().manual_seed(2))
        mixed = torch.rand(12, 3, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            wanted = reference(rows, chosen, mixed)
            got = mine(rows, chosen, mixed)
        # INT8 quantizes the rows too.
        torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())
        assert mine.gate_up_proj is None


def written_out(weight: torch.Tensor, name: str) -> torch.Tensor:
    """A weight after quantization, by bitsandbytes' own functions."""
    from bitsandbytes import functional

    if name == "nf4":
        packed, state = functional.quantize_4bit(weight, quant_type="nf4")
        return functional.dequantize_4bit(packed, state)
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round() * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packs", [False, True])
def test_the_bits_of_a_row_are_its_own(dtype: torch.dtype, packs: bool) -> None:
    """Alone, in another order, and with rows that all choose its experts."""
    config = MixtralConfig(hidden_size=128, intermediate_size=192, num_local_experts=8)
    module: Any = MixtralExperts(config)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model = nn.ModuleList([module.to(dtype)])
    module.config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(300, 128, generator=generator).to(dtype)
    scores = torch.randn(300, 8, generator=generator)
    scores[150:] = scores[0]  # many rows for the same experts
    weights, chosen = scores.softmax(-1).topk(2)
    weights = weights.to(dtype)
    with torch.no_grad():
        reference = module(rows, chosen, weights)
        use_exact_experts(model, None, packs=packs)
        whole = module(rows, chosen, weights)
        torch.testing.assert_close(whole, reference, rtol=2e-2, atol=2e-2)
        order = torch.randperm(300, generator=generator)
        assert torch.equal(module(rows[order], chosen[order], weights[order]), whole[order])
        for row in range(64):
            alone = module(rows[row : row + 1], chosen[row : row + 1], weights[row : row + 1])
            assert torch.equal(alone[0], whole[row])
        with real_rows(model).limited_to(17):
            some = module(rows, chosen, weights)
        assert torch.equal(some[:17], whole[:17])
        assert not some[17:].any()


class Elementwise(nn.Module):
    """A product in which no row has to do with another, whatever the library."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.scales = weight[:, 0].detach().clone()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        width = len(self.scales)
        return rows.repeat(1, -(-width // rows.shape[1]))[:, :width] * self.scales


def use_elementwise_experts() -> nn.Module:
    model = nn.ModuleList([MixtralExperts(MixtralConfig(hidden_size=32, intermediate_size=64))])
    for weight in model.parameters():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    kept = quantization(8)
    assert kept is not None
    use_exact_experts(model, replace(kept, layer=Elementwise), packs=False)
    return model


def test_counts_that_do_not_divide_the_compared_rows() -> None:
    """Where rows have nothing to do with each other, every number of them may be computed."""
    (counts,) = expert_counts(use_elementwise_experts())
    assert {3, 6, 12, 16} <= {*counts}


def test_experts_without_a_count_at_which_functions_round_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CpuPlatform, "rounds_alike", lambda self, size: False)
    with pytest.raises(BatchInvarianceError, match="other rows"):
        use_elementwise_experts()


def test_experts_of_another_form_are_known_as_such() -> None:
    known = nn.ModuleDict({"experts": MixtralExperts(MixtralConfig(hidden_size=8))})
    assert not has_other_mixtures(known)
    other = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(8, 8)])})
    assert has_other_mixtures(other)
    assert not has_other_mixtures(nn.ModuleDict({"shared_experts": nn.Linear(8, 8)}))
    assert not has_other_mixtures(nn.ModuleDict({"experts": nn.Linear(8, 8)}))  # of all rows
    choosing = nn.ModuleDict({"experts": nn.Sequential(nn.Linear(8, 8))})
    assert has_other_mixtures(choosing)
    assert not any(isinstance(module, Experts) for module in known.modules())
