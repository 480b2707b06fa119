"""Proofs about what an engine answers: the same bytes, and those of transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, set_seed

from cluster.gpu_day.claim import DEMO_MODEL, Bench, Found, NotHereError, NotShownError
from cluster.gpu_day.engines import (
    FIRST_IMAGE,
    at_once,
    different,
    image_tasks,
    one_by_one,
    random_model,
    running,
    task,
    tasks,
)
from engine.core.in_flight import InFlight
from engine.core.step import Execution
from schema.answers.response import TaskResponse
from schema.task import Task

_WITHOUT_GRAPH = "without a CUDA graph"
_CARD = ("attention", "fallback_reason", "compiled", "system_fingerprint")


def bfloat16(bench: Bench) -> Found:
    """Bytes are equal in bfloat16."""
    return _equal_bytes(bench, random_model(bench), _asked(bench))


def float16(bench: Bench) -> Found:
    """Bytes are equal in float16."""
    return _equal_bytes(bench, random_model(bench), _asked(bench), dtype="float16")


def float32(bench: Bench) -> Found:
    """Bytes are equal in float32."""
    return _equal_bytes(bench, random_model(bench), _asked(bench), dtype="float32")


def int8(bench: Bench) -> Found:
    """Bytes are equal with INT8 weights."""
    asked = _asked(bench, quantize_bits=8)
    return _equal_bytes(bench, random_model(bench), asked, dtype="float16", quantize_bits=8)


def nf4(bench: Bench) -> Found:
    """Bytes are equal with NF4 weights."""
    asked = _asked(bench, quantize_bits=4)
    return _equal_bytes(bench, random_model(bench), asked, quantize_bits=4)


def images(bench: Bench) -> Found:
    """Bytes are equal where tasks have images; answers are right."""
    answers, found = _compared(bench, DEMO_MODEL, image_tasks(24))
    said = str(answers[0]["choices"][0]["message"]["content"])
    if FIRST_IMAGE not in said:
        raise NotShownError(f"of a {FIRST_IMAGE} it says {said!r}; {found}")
    return {"said": said} | found


def layers_over_two(bench: Bench) -> Found:
    """Bytes are equal where a model's layers lie on two GPUs."""
    _needs_two(bench)
    asked = _asked(bench)
    return _equal_bytes(bench, random_model(bench), asked, num_devices=2, split="layers")


def tensors_over_two(bench: Bench) -> Found:
    """Bytes are equal where each layer is cut over two GPUs."""
    _needs_two(bench)
    asked = _asked(bench)
    return _equal_bytes(bench, random_model(bench), asked, num_devices=2, split="tensor")


def _needs_two(bench: Bench) -> None:
    bench.needs_cuda()
    if torch.cuda.device_count() < 2:
        raise NotHereError("needs two GPUs")


def _asked(bench: Bench, **fields: Any) -> list[Task]:
    """16 tasks: prompts of up to several chunks, and more than one page of keys."""
    return tasks(16, 8 if bench.small else 48, words=90 if bench.small else 900, **fields)


def _equal_bytes(bench: Bench, model: Path, asked: Sequence[Task], **options: Any) -> Found:
    return _compared(bench, model, asked, **options)[1]


def _compared(
    bench: Bench, model: Path, asked: Sequence[Task], **options: Any
) -> tuple[list[TaskResponse], Found]:
    """The answers alone, which are those of all at once, and of all at once after a restart."""
    with _warnings() as said:
        with running(bench, model, **options) as engine:
            card = engine.card()
            alone = one_by_one(engine, asked)
            together = at_once(engine, asked)
        with running(bench, model, **options) as engine:
            restarted = at_once(engine, asked)
    found = {name: card[name] for name in _CARD if card.get(name)}
    if sizes := card["batch_sizes"]:
        found |= {name: f"at {len(n)} sizes, {n[0]} to {n[-1]}" for name, n in sizes.items()}
    for when, answers in (("at once", together), ("after a restart", restarted)):
        if wrong := different(alone, answers):
            raise NotShownError(f"tasks {wrong} of {len(asked)} differ {when}; {found}")
    if not card["continuous_batching"]:
        raise NotShownError(f"equal, but by the generate fallback; {found}")
    if eager := [line for line in said if _WITHOUT_GRAPH in line]:
        found["eager"] = eager[0]
    return alone, {"equal": f"{len(asked)} of {len(asked)}"} | found


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the engine warns about until the body ends."""
    said: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    keeper, log = Keeper(logging.WARNING), logging.getLogger("engine")
    log.addHandler(keeper)
    try:
        yield said
    finally:
        log.removeHandler(keeper)


def decode_graphs(bench: Bench) -> Found:
    """Decode steps are replayed from graphs, those of bitsandbytes' layers too."""
    bench.needs_cuda()
    eager = {}
    for bits in (None, 8, 4):
        dtype = "float16" if bits == 8 else "bfloat16"
        options: dict[str, Any] = {"dtype": dtype, "quantize_bits": bits}
        with _warnings() as said, running(bench, random_model(bench), **options) as engine:
            at_once(engine, tasks(64, 8, quantize_bits=bits))
        eager[str(bits)] = [line for line in said if _WITHOUT_GRAPH in line]
    if any(eager.values()):
        raise NotShownError(str(eager))
    return {"captured": "unquantized, INT8, NF4"}


def launches_do_not_wait(bench: Bench) -> Found:
    """No launch of a step waits for the device."""
    bench.needs_cuda()
    launch = Execution.launch
    launches: list[int] = []

    def watched(execution: Execution) -> list[InFlight]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            launches.append(1)
            return launch(execution)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    asked = tasks(8, 16)
    with running(bench, random_model(bench)) as engine:
        at_once(engine, asked)  # graphs are captured, memory is there
        with patch.object(Execution, "launch", watched):
            at_once(engine, asked)
    if not launches:
        raise NotShownError("no step was launched")
    return {"launches": len(launches)}


def drafts(bench: Bench) -> Found:
    """Drafts change no byte, and answers are verified as exact. A grammar forces most tokens."""
    names = ["first name", "last name"]
    schema: dict[str, Any] = {"type": "object", "required": names, "additionalProperties": False}
    schema |= {"properties": {name: {"enum": ["a", "b"]} for name in names}}
    asked = [
        task(
            f"{number} names",
            {"max_new_tokens": 60, "do_sample": bool(number % 2)},
            seed=number,
            return_token_ids=True,
            structured_output={"type": "json_schema", "schema": schema},
        )
        for number in range(8)
    ]
    with running(bench, speculation="off") as engine:
        plain = at_once(engine, asked)
    with running(bench) as engine:
        drafted = at_once(engine, asked)
        verdicts = [
            engine.verify_blocking(each, answer)["verdict"]
            for each, answer in zip(asked, drafted, strict=True)
        ]
        stats = engine.stats()
    if wrong := different(plain, drafted):
        raise NotShownError(f"tasks {wrong} differ with drafts")
    if set(verdicts) != {"exact"}:
        raise NotShownError(f"verdicts {verdicts}")
    if not stats["drafts_accepted"]:
        raise NotShownError("no draft was right, so none was shown to be harmless")
    counts = ("drafts_proposed", "drafts_accepted", "known_tokens_read")
    return {name: stats[name] for name in counts} | {"verdicts": "exact"}


def as_generate(bench: Bench) -> Found:
    """In float32 the tokens are those of transformers' `generate`, but at near ties."""
    model_dir = random_model(bench)
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}
    asked = [
        task(f"{n} times", more | {"max_new_tokens": 16}, seed=n, return_token_ids=True)
        for n, more in enumerate([{}, sampled] * 4)
    ]
    with running(bench, model_dir, dtype="float32") as engine:
        answers = at_once(engine, asked)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.to(bench.device)
    equal = 0
    for each, answer in zip(asked, answers, strict=True):
        prompt = torch.tensor([answer["prompt_token_ids"]], device=bench.device)
        set_seed(each.seed)
        config = each.generation_config.model_dump(exclude_unset=True)
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **config)
        equal += output[0, prompt.shape[1] :].tolist() == answer["choices"][0]["token_ids"]
    if 2 * equal < len(asked):
        raise NotShownError(f"only {equal} of {len(asked)} answers are those of generate")
    return {"equal": f"{equal} of {len(asked)}"}
