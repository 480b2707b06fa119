"""Answers alone and under load, by kinds of models: ``python -m benchmarks.coverage.underload``.

A model of each kind, with random weights, gets 64 tasks with a seed each, of mixed lengths and
settings: one after the other, and then all at once in three orders. Their responses, with the log
probabilities of all tokens, have to be the same to the last bit. Writes ``underload.json``, and
with ``--write`` the table of docs/models.md.

Exits with 1 if a response differs, or a model does not run in the batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.coverage import page
from benchmarks.coverage.checkpoints import save_tiny
from benchmarks.harness import command, report
from benchmarks.harness.engine_api import Engine, EngineConfig
from benchmarks.harness.report import say
from benchmarks.harness.tasks import letters
from schema import Task

_ORDERS = 3
_PROMPT_TOKENS = (2, 96)
_ANSWER_TOKENS = (8, 40)
_LIMIT = 64  # tokens: between the shortest and the longest sequence
_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
_RANK = 4
_ADAPTED = ("q_proj.weight", "v_proj.weight", "down_proj.weight")
_LONG_ROPE: dict[str, Any] = {
    "original_max_position_embeddings": _LIMIT,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16,
        "original_max_position_embeddings": _LIMIT,
    },
}


@dataclass(frozen=True)
class Kind:
    """A kind of models.

    Attributes:
        architecture: one of this kind.
        fields: of its configuration.
        adapters: LoRA adapters of it; one task of so many and one more has none.
    """

    architecture: str
    fields: Mapping[str, Any]
    adapters: int = 0


KINDS = {
    "experts": Kind("qwen3_moe", {"num_experts": 16, "num_experts_per_tok": 4}),
    "delta net": Kind("qwen3_next", {}),
    "Mamba 2 hybrid": Kind("bamba", {"mamba_d_head": 64}),
    "sinks": Kind("gpt_oss", {"sliding_window": 32}),
    "soft cap": Kind("gemma2", {"sliding_window": 32, "query_pre_attn_scalar": 32}),
    "longrope across its limit": Kind("phi3", _LONG_ROPE),
    "LoRA": Kind("qwen3", {}, adapters=2),
}


@dataclass(frozen=True)
class Row:
    """What came of one model.

    Attributes:
        batched: whether it runs in the batch.
        tasks: how many there were.
        same: in each order, how many had the response that they have alone.
    """

    kind: str
    architecture: str
    dtype: str
    batched: bool
    tasks: int
    same: list[int]

    @property
    def told(self) -> str:
        """The worst order."""
        return f"{min(self.same)} of {self.tasks}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    rows = []
    for kind in options.kinds:
        for dtype in options.dtypes:
            rows.append(_measured(kind, dtype, options))
            say(f"{kind}, {rows[-1].architecture}, {dtype}: {rows[-1].told}")
    print(_table(rows))
    about = report.about("underload", options, "torch", "transformers")
    report.write(options.out, "underload", {"about": about, "rows": [asdict(row) for row in rows]})
    if options.write:
        page.replace(options.write, "under load", _table(rows))
    if any(not row.batched or min(row.same) < row.tasks for row in rows):
        sys.exit("not all responses are the same in the batch")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.coverage.underload", __doc__)
    add = parser.add_argument
    add("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], metavar="DTYPE")
    add("--tasks", type=int, default=64)
    add("--threads", type=int, default=2, help="CPU threads")
    add("--write", type=Path, metavar="FILE", help="the page whose table is replaced")
    return parser.parse_args(arguments)


def _measured(kind: str, dtype: str, options: argparse.Namespace) -> Row:
    model = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="underload-") as name:
        directory = Path(name) / "model"
        directory.mkdir()
        save_tiny(model.architecture, directory, {**_SIZES, **model.fields})
        settings: dict[str, Any] = {"model": str(directory), "dtype": dtype}
        settings |= {"threads": options.threads, "prefill_chunk": 32}
        settings |= dict.fromkeys(("max_sequences", "max_waiting"), options.tasks)
        if model.adapters:
            settings["adapters"] = save_adapters(directory, Path(name), model.adapters)
        with closing(Engine(EngineConfig(**settings))) as engine:
            asked = tasks(options.tasks, ["tiny", *(f"tiny:{n}" for n in range(model.adapters))])
            same = asyncio.run(_compared(engine, asked))
            batched = engine.card()["continuous_batching"]
    return Row(kind, model.architecture, dtype, batched, options.tasks, same)


def save_adapters(model: Path, directory: Path, count: int) -> dict[str, str]:
    """Save random LoRA adapters in PEFT's format; their directories by name.

    Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
    """
    weights = load_file(model / "model.safetensors")
    adapted = {name: weight.shape for name, weight in weights.items() if name.endswith(_ADAPTED)}
    found = {}
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for name, (outputs, inputs) in adapted.items():
            at = f"base_model.model.{name.removesuffix('.weight')}"
            for side, shape in (("A", (_RANK, inputs)), ("B", (outputs, _RANK))):
                tensors[f"{at}.lora_{side}.weight"] = 0.1 * torch.randn(shape, generator=generator)
        where = directory / str(number)
        where.mkdir()
        save_file(tensors, where / "adapter_model.safetensors", {"format": "pt"})
        about: dict[str, Any] = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK}
        about["target_modules"] = [name.removesuffix(".weight") for name in _ADAPTED]
        (where / "adapter_config.json").write_text(json.dumps(about))
        found[str(number)] = str(where)
    return found


def tasks(count: int, models: Sequence[str]) -> list[Task]:
    """Tasks of mixed lengths and settings for these models in turn, the same every time."""
    draw = random.Random(0)
    return [
        Task.from_fields(
            model=models[number % len(models)],
            messages=[{"role": "user", "content": letters(draw, draw.randint(*_PROMPT_TOKENS))}],
            generation_config={
                "max_new_tokens": draw.randint(*_ANSWER_TOKENS),
                "do_sample": bool(number % 2),
                "num_return_sequences": 2 if number % 8 == 1 else 1,
                "repetition_penalty": 1.1 if number % 4 == 3 else 1.0,
                "logprobs": 1,
            },
            seed=number,
            return_token_ids=True,
        )
        for number in range(count)
    ]


async def _compared(engine: Engine, asked: Sequence[Task]) -> list[int]:
    """In each of some orders, how many tasks have the response that they have alone."""
    alone = [await engine.run(task) for task in asked]
    same = []
    for seed in range(_ORDERS):
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        got = await asyncio.gather(*(engine.run(asked[number]) for number in order))
        pairs = zip(order, got, strict=True)
        same.append(sum(response == alone[number] for number, response in pairs))
    return same


def _table(rows: Sequence[Row]) -> str:
    """In Markdown, a line for each kind."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    day = datetime.now(UTC).date().isoformat()
    lines = [f"| {day} | architecture | {' | '.join(dtypes)} |", "|---|---|" + "---|" * len(dtypes)]
    for kind, of_kind in report.grouped(rows, lambda row: row.kind).items():
        told = {row.dtype: row.told if row.batched else "not in the batch" for row in of_kind}
        cells = " | ".join(told[dtype] for dtype in dtypes)
        lines.append(f"| {kind} | `{of_kind[0].architecture}` | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
