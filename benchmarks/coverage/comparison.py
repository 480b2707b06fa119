"""One architecture: a tiny model of it, `generate` and the engine, and whether they agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from benchmarks.coverage.checkpoints import save_tiny
from benchmarks.coverage.rows import Row
from benchmarks.harness.engine_api import Engine, EngineConfig
from schema import Task
from schema.errors import TaskError

TEXTS = (
    "Hi",
    "The engine must write what generate writes, for a prompt of several chunks too.",
)
"""A prompt that is shorter than any window, and one that is longer than windows and chunks."""

SETTINGS: tuple[Mapping[str, Any], ...] = ({}, {"do_sample": True})
"""Greedy and sampled."""

TOKENS = 24
_SEED = 5
_OTHERS = 8
_MOST = 500  # characters of a reason


class CannotCompareError(Exception):
    """There is no tiny model, or `generate` does not run it; the message says why."""


def row(architecture: str) -> Row:
    """What becomes of a text architecture. Never raises."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as directory:
        try:
            save_tiny(architecture, Path(directory))
        except Exception as error:  # noqa: BLE001 - whatever transformers says of it
            return Row(architecture, "not made", told(error))
        return compared(architecture, directory, lambda: by_generate(directory), task)


def told(error: BaseException) -> str:
    """An error in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MOST]


def cases() -> list[tuple[str, Mapping[str, Any]]]:
    """The tasks that are compared: prompts and settings."""
    return [(text, settings) for settings in SETTINGS for text in TEXTS]


def task(text: str, settings: Mapping[str, Any]) -> Task:
    """A task of the engine."""
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": TOKENS, **settings},
        seed=_SEED,
        return_token_ids=True,
    )


def by_generate(directory: str) -> list[list[int]]:
    """The tokens that `generate` gives for each of `cases`."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    found = []
    for text, settings in cases():
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        set_seed(_SEED)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, **settings
        )
        found.append(output[0, ids.shape[1] :].tolist())
    return found


def compared(
    architecture: str,
    directory: str,
    reference: Callable[[], list[list[int]]],
    asked: Callable[[str, Mapping[str, Any]], Task],
) -> Row:
    """Load a checkpoint and compare its answers, alone and among others.

    Args:
        architecture: its name.
        directory: where it is.
        reference: the tokens that transformers gives for each of `cases`.
        asked: makes a task of a text and settings.
    """
    try:
        wanted = reference()
    except Exception as error:  # noqa: BLE001 - whatever transformers says of it
        return Row(architecture, "not made", f"generate: {told(error)}")
    config = EngineConfig(
        model=directory, dtype="float32", threads=1, prefill_chunk=16, max_sequences=16
    )
    try:
        engine = Engine(config)
    except TaskError as error:
        return Row(architecture, "refused", told(error))
    with closing(engine):
        tasks = [asked(*case) for case in cases()]
        try:
            alone = [_tokens(engine.run_blocking(one)) for one in tasks]
            if alone != wanted:
                return Row(architecture, "different", _where("alone", alone, wanted))
            among = asyncio.run(_among_others(engine, tasks, asked))
        except TaskError as error:
            return Row(architecture, "crashed", told(error))
        if among != alone:
            return Row(architecture, "different", _where("among others", among, alone))
        card = engine.card()
    if card["continuous_batching"]:
        return Row(architecture, "batched", "")
    return Row(architecture, "alone", " ".join(str(card["fallback_reason"]).split())[:_MOST])


async def _among_others(
    engine: Engine, tasks: Sequence[Task], asked: Callable[[str, Mapping[str, Any]], Task]
) -> list[list[int]]:
    """The tokens of tasks that run at once, with others that are not looked at."""
    others = [
        asked(f"Number {n} of the others, {'x' * n}", SETTINGS[n % len(SETTINGS)])
        for n in range(_OTHERS)
    ]
    answers = await asyncio.gather(*map(engine.run, [*tasks, *others]))
    return [_tokens(answer) for answer in answers[: len(tasks)]]


def _tokens(answer: Mapping[str, Any]) -> list[int]:
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens


def _where(which: str, got: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> str:
    """Which answers differ, and from which token on."""
    found = []
    for number, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        if mine != theirs:
            pairs = zip(mine, theirs, strict=False)
            first = next(
                (n for n, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs))
            )
            found.append(f"answer {number} at token {first}")
    return f"{which}: {', '.join(found)}"
