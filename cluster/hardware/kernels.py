"""Runs the kernels that an engine needs on small inputs, and compares them with plain arithmetic.

Each function returns None, or the problem in a few words. None of them measures time.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from engine import Engine, EngineConfig
from engine.execution.attention.interface import AttentionBackend, AttentionForm
from engine.execution.attention.triton_paged import TritonAttention
from engine.execution.attention.varlen import VarlenAttention
from engine.execution.kv_cache import KVCache, KVShape
from engine.requests.request import ScheduledTokens
from schema.task import Task

DEMO_MODEL = Path(__file__).resolve().parents[2] / "demo" / "model"

# Rounding in half precision; the results of a wrong kernel are off by their own size.
_TOLERANCE = 0.05
_ROWS = (1, 2, 8, 33)
_IN, _OUT = 256, 128
_PAGE = 256
_QUESTIONS = ("Hello!", "Count from 3 to 9.", "What is 5 + 4?", "Tell me a story about a fox.")


@dataclass(frozen=True)
class EqualBytesResult:
    """What the demo model did on a device: ``problem``, if any, and its card's main points."""

    problem: str | None
    attention: str | None = None
    fingerprint: str | None = None


def attempt(check: Callable[[torch.device], str | None], device: torch.device) -> str | None:
    """The problem that a check finds, or the error that it raises."""
    try:
        with torch.inference_mode():
            return check(device)
    except Exception as error:  # noqa: BLE001 - any error of a broken installation is the finding
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no text'}"


def int4_problem(device: torch.device) -> str | None:
    """NF4 of bitsandbytes, at a few numbers of rows, against its own dequantized weights."""
    bitsandbytes = _bitsandbytes()
    layer = bitsandbytes.nn.Linear4bit(
        _IN, _OUT, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    ).to(device)
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return _differs(layer, weight, torch.bfloat16, device)


def int8_problem(device: torch.device) -> str | None:
    """INT8 of bitsandbytes with threshold 0, as the engine runs it."""
    bitsandbytes = _bitsandbytes()
    layer = bitsandbytes.nn.Linear8bitLt(
        _IN, _OUT, bias=False, has_fp16_weights=False, threshold=0.0
    ).to(device)
    rows = torch.zeros(1, _IN, dtype=torch.float16, device=device)
    layer(rows)  # moves the scales to their place
    weight = layer.weight.data.float() * layer.state.SCB.float()[:, None] / 127
    return _differs(layer, weight, torch.float16, device)


def _differs(
    layer: Any, weight: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> str | None:
    for num_rows in _ROWS:
        rows = _random(num_rows, _IN).to(device, dtype)
        if problem := _far(layer(rows), rows.float() @ weight.float().T, f"{num_rows} rows"):
            return problem
    return None


def attention_problem(device: torch.device) -> str | None:
    """torch's attention of one sequence, compared with an explicit softmax."""
    query, key, value = (_random(1, 4, 40, 64).to(device, torch.bfloat16) for _ in range(3))
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = query.float() @ key.float().transpose(-1, -2) / 8
    later = torch.ones(40, 40, dtype=torch.bool, device=device).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    return _far(output, weights @ value.float(), "a causal sequence")


def triton_attention_problem(device: torch.device, page_size: int = _PAGE) -> str | None:
    """This engine's own kernels: they are compiled here, as `paged_attention_problem`."""
    return paged_attention_problem(device, page_size, TritonAttention)


def paged_attention_problem(
    device: torch.device,
    page_size: int = _PAGE,
    backend: type[AttentionBackend] = VarlenAttention,
) -> str | None:
    """A paged kernel as the engine uses it: correct, and the same bits in any batch."""
    cache = KVCache(
        {0: KVShape(2, 64, 64, torch.bfloat16)},
        num_pages=4,
        page_size=page_size,
        device=device,
        layout=backend.kv_layout,
    )
    long = page_size + 3
    scheduled = [ScheduledTokens(0, long, [2, 0]), ScheduledTokens(0, 5, [3])]
    kernel = backend(max_rows=long + 5)
    batch = kernel.batch(cache, scheduled, num_rows=long + 5, decode=False)

    def attend(seed: int) -> torch.Tensor:
        """Attend for a long sequence, always the same, and another that depends on ``seed``."""
        rows = [
            torch.cat([_random(heads, long, 64), _random(heads, 5, 64, seed=seed)], dim=1)
            for heads in (4, 2, 2)
        ]
        query, key, value = (part.to(device, torch.bfloat16) for part in rows)
        return batch.attend(0, query, key, value, AttentionForm())[:long]

    output = attend(1)
    if not torch.equal(output, attend(2)):
        return "a sequence's bits depend on other sequences in the batch"
    query, key, value = (
        _random(heads, long, 64).to(device, torch.bfloat16)[None] for heads in (4, 2, 2)
    )
    expected = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    return _far(output, expected[0].transpose(0, 1).float(), "a sequence of two pages")


def check_equal_bytes(device: torch.device) -> EqualBytesResult:
    """The demo model through the whole engine: the same bytes alone and under load. Blocking."""
    dtype: Any = "bfloat16" if device.type == "cuda" else "float32"
    kind: Any = device.type
    config = EngineConfig(
        model=str(DEMO_MODEL),
        model_id="demo",
        device=kind,
        dtype=dtype,
        max_sequences=8,
        context_length=256,
        threads=1,
    )
    engine: Engine | None = None
    try:
        engine = Engine(config)
        card = engine.card()
        alone, together = asyncio.run(_answers(engine))
    except Exception as error:  # noqa: BLE001 - as in `attempt`
        return EqualBytesResult(f"{type(error).__name__}: {error}")
    finally:
        if engine is not None:
            engine.close()
    differ = sum(a != b for a, b in zip(alone, together, strict=True))
    problem = f"{differ} of {len(alone)} answers differ under load" if differ else None
    return EqualBytesResult(problem, card["attention"], card["system_fingerprint"])


async def _answers(engine: Engine) -> tuple[list[str], list[str]]:
    tasks = [
        Task.model_validate(
            {
                "model": "demo",
                "messages": [{"role": "user", "content": text}],
                "generation_config": {"max_new_tokens": 24, "do_sample": sampled},
                "seed": 7,
            }
        )
        for text in _QUESTIONS
        for sampled in (False, True)
    ]
    alone = [await engine.run(task) for task in tasks]
    together = await asyncio.gather(*(engine.run(task) for task in tasks))
    return [_text(answer) for answer in alone], [_text(answer) for answer in together]


def _text(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _far(output: torch.Tensor, expected: torch.Tensor, where: str) -> str | None:
    off = ((output.float() - expected).abs().max() / expected.abs().max()).item()
    # Not `off > _TOLERANCE`, which NaN passes.
    return None if off < _TOLERANCE else f"results are off by {off:.0%} ({where})"


def _bitsandbytes() -> Any:
    # It warns at import and at every call about settings that are intended: engine.quantization.
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return importlib.import_module("bitsandbytes")
