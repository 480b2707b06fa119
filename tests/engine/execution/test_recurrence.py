"""Layers with a recurrent state in the batch: the answers of `generate`, whoever else is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.execution.batch_sizes import BatchSizes
from engine.execution.modules.recurrence.scan import scan, scan_in_steps
from engine.execution.modules.recurrence.steps import DecayByValue, Runs, Steps
from engine.loading.estimate import estimate_memory
from engine.requests.request import ScheduledTokens
from tests.engine.core.speculation.engines import ARITHMETIC, Guided, opened, tiny_vocabulary
from tests.engine.core.speculation.properties import differences, make_cases
from tests.engine.core.test_generate_fallback import (
    SETTINGS,
    TEXT,
    answers,
    generated,
    save_architecture,
    task,
)
from tests.engine.execution.test_experts import check_under_load, engine_of, tasks

WIDE = {"intermediate_size": 128}  # of which bitsandbytes' blocks are parts
_HYBRID = ["linear_attention", "linear_attention", "hybrid"] * 2
# Gated delta nets, Kimi's, Mamba 2 beside and between attention (and attention that layers share),
# Mamba 1 alone, and short convolutions.
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        **WIDE,
        "head_dim": 16,
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "kimi_linear": {
        "num_key_value_heads": 4,
        "num_hidden_layers": 4,
        "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "mlp_layer_types": ["dense", *["sparse"] * 3],
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "falcon_h1": {
        **WIDE,
        "head_dim": 16,
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_n_groups": 2,
        "mamba_d_state": 8,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": _HYBRID,
        "num_mem_blocks": 1,
        "num_key_value_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "mamba_d_state": 8,
        "time_step_min": 0.5,  # of the steps of prompts, not of decoded tokens
    },
    "mamba": {"state_size": 4},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_generate_writes(kind: str, tmp_path: Path) -> None:
    """Beams and several answers too, which go on from one state."""
    save_architecture(kind, KINDS[kind], tmp_path)
    with opened(tmp_path) as engine:
        card = engine.card()
        assert card["continuous_batching"], card["fallback_reason"]
        estimate = estimate_memory(engine.config)
        assert estimate.states == card["memory"]["states_bytes"]
        for text in ("Hi", TEXT):
            for settings in SETTINGS:
                assert answers(engine, text, settings) == generated(tmp_path, text, settings)


@pytest.mark.parametrize(
    ("kind", "name"), [*(("qwen3_5_text", name) for name in ARITHMETIC), ("falcon_h1", "bf16")]
)
async def test_alone_and_under_load(kind: str, name: str, tmp_path: Path) -> None:
    """Tokens and log probabilities, in several orders; and they are verified."""
    save_architecture(kind, KINDS[kind], tmp_path)
    asked = tasks(16, ARITHMETIC[name].get("quantize_bits"))
    with opened(tmp_path, max_sequences=24, **ARITHMETIC[name]) as engine:
        await check_under_load(engine, asked)


@pytest.mark.parametrize("kind", ["qwen3_5_text", "mamba"])
async def test_drafts_and_known_tokens_change_no_answer(kind: str, tmp_path: Path) -> None:
    """Right ones move a state on, wrong ones do not."""
    save_architecture(kind, KINDS[kind], tmp_path)
    vocabulary = tiny_vocabulary(tmp_path, image=None)
    with opened(tmp_path, speculation="off") as off:
        cases = await make_cases(off, vocabulary, range(16))
    with opened(tmp_path) as on:
        found = await differences(Guided(on, vocabulary), cases)
        assert on.stats()["drafts_accepted"] > 0
    assert not found, "\n".join(map(str, found))


def test_a_known_prefix_begins_with_its_state(tmp_path: Path) -> None:
    save_architecture("qwen3_5_text", KINDS["qwen3_5_text"], tmp_path)
    sampled = {"max_new_tokens": 12, "do_sample": True}
    texts = [TEXT, TEXT + " And more.", TEXT[:40] + " and something else, as long as that."]
    cold = []
    for text in texts:
        with closing(engine_of(tmp_path)) as engine:
            cold.append(answers(engine, text, sampled))
    with opened(tmp_path, max_sequences=2) as engine:
        for _ in range(2):
            assert [answers(engine, text, sampled) for text in texts] == cold
        assert engine.stats()["prefix_tokens_reused"] >= 5 * 32
        # More prefixes than may have a state: the oldest lose theirs.
        for number in range(12):
            answers(engine, f"{number} {TEXT}", {"max_new_tokens": 1})
        assert [answers(engine, text, sampled) for text in texts] == cold


async def test_a_forward_that_fails_moves_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in its last layer, when those before it have computed; then members run alone."""
    save_architecture("falcon_h1", KINDS["falcon_h1"], tmp_path)
    wanted = {"max_new_tokens": 20, "do_sample": True}
    texts = [f"Number {number}" for number in range(5)]
    with opened(tmp_path) as engine:
        alone = [await engine.run(task(text, wanted)) for text in texts]
        runner = engine._loop.assembly.batching.runner
        step, last = runner.step, engine._loaded.model.get_decoder().layers[-1]
        calls = 0

        def failing(batch: Sequence[ScheduledTokens], sizes: BatchSizes) -> Any:
            nonlocal calls
            calls += 1
            if len({tokens.owner.id for tokens in batch}) < 2 or calls % 3:
                return step(batch, sizes)
            with monkeypatch.context() as patch:

                def fail(*_: Any, **__: Any) -> None:
                    raise ValueError("a bug")

                patch.setattr(last, "forward", fail)
                return step(batch, sizes)

        monkeypatch.setattr(runner, "step", failing)
        assert await asyncio.gather(*(engine.run(task(text, wanted)) for text in texts)) == alone
        assert calls > 20


async def test_tasks_that_are_cancelled_free_their_states(tmp_path: Path) -> None:
    save_architecture("mamba", KINDS["mamba"], tmp_path)
    with opened(tmp_path, max_sequences=4) as engine:
        wanted = await engine.run(task(TEXT, {"max_new_tokens": 20}))
        for _ in range(3):
            running = [
                asyncio.create_task(engine.run(task(f"{n} {TEXT}", {"max_new_tokens": 400})))
                for n in range(6)
            ]
            await asyncio.sleep(0.1)
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        assert await engine.run(task(TEXT, {"max_new_tokens": 20})) == wanted


@pytest.mark.parametrize(
    ("heads", "groups", "depth", "width", "form"),
    [
        (4, 2, 16, 24, "delta"),
        (2, 2, 96, 130, "delta by key"),
        (4, 1, 8, 80, "plain"),
        (1, 1, 16, 200, "by value"),
    ],
)
def test_the_compiled_scan(heads: int, groups: int, depth: int, width: int, form: str) -> None:
    """It computes what torch's operations do, and what it computes for a run is its own."""
    made = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=made) - 0.3

    queries, keys = some(40, groups, depth), some(40, groups, depth)
    decays: dict[str, torch.Tensor | DecayByValue] = {
        "delta": some(40, heads, 1).expand(40, heads, depth),
        "plain": some(40, heads, 1).expand(40, heads, depth),
        "delta by key": some(40, heads, depth),
        "by value": DecayByValue(-some(heads, depth, width), some(40, heads, width)),
    }
    beta = some(40, heads) if form.startswith("delta") else None
    steps = Steps(keys, some(40, heads, width), decays[form], beta)
    states = some(9, heads, depth, width)
    runs = [(0, 1, 1, -1, 5), (1, 9, 9, 0, 6), (10, 20, 20, 1, 7), (33, 4, 1, 2, 8)]

    def table(members: Sequence[tuple[int, ...]]) -> Runs:
        return Runs(*(np.array(column, dtype=np.int64) for column in zip(*members, strict=True)))

    wanted, wanted_states = torch.zeros(40, heads, width), states.clone()
    scan_in_steps(queries, steps, wanted_states, table(runs), wanted)
    got_states = states.clone()
    got = scan(queries, steps, got_states, table(runs))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_states, wanted_states, rtol=1e-4, atol=1e-5)
    for run in runs:
        alone_states = states.clone()
        alone = scan(queries, steps, alone_states, table([run]))
        rows = slice(run[0], run[0] + run[1])
        assert torch.equal(alone[rows], got[rows])
        assert torch.equal(alone_states[run[4]], got_states[run[4]])
