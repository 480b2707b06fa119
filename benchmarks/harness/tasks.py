"""Texts and tasks: random prompts of known lengths, and tasks for the demo model."""

from __future__ import annotations

import base64
import io
import random
import string
from typing import Any

from benchmarks.harness.client import Job
from demo.data.shapes import HELD_OUT_SEED, draw_image

PROMPT_TOKENS = (16, 256)
ANSWER_TOKENS = (32, 128)
LONG: dict[str, Any] = {"do_sample": True, "temperature": 100.0, "top_k": 0}
"""Draws from all tokens alike, so that the demo model's answers are long and all different."""

_SEED = 20260101


def mixed_jobs(count: int, round_index: int) -> list[Job]:
    """``count`` jobs of mixed lengths, for a model whose tokens are letters.

    The lengths of the first jobs are the same for every count and round. The texts never are, so
    that no prompt is found in a cache that an earlier run has left behind.
    """
    lengths = random.Random(_SEED)
    texts = random.Random(f"{_SEED}/{count}/{round_index}")
    return [
        Job(letters(texts, lengths.randint(*PROMPT_TOKENS)), lengths.randint(*ANSWER_TOKENS))
        for _ in range(count)
    ]


def uniform_jobs(
    count: int, prompt_tokens: int, answer_tokens: int, round_index: int = 0
) -> list[Job]:
    """``count`` jobs of the same length: all rows of a decode step are used to the end.

    The texts of two rounds differ.
    """
    texts = random.Random(f"{_SEED}/uniform/{count}/{round_index}")
    return [Job(letters(texts, prompt_tokens), answer_tokens) for _ in range(count)]


def letters(texts: random.Random, length: int) -> str:
    """Random letters and spaces."""
    return "".join(texts.choices(string.ascii_lowercase + " ", k=length))


def demo_tasks(count: int, *, images: bool = True) -> list[dict[str, Any]]:
    """Different tasks: numbers to count, free text at high temperature, images."""
    return [_demo_task(number) for number in range(count) if images or number % 4 != 1]


def _demo_task(number: int) -> dict[str, Any]:
    kind, content = number % 4, None
    config: dict[str, Any] = {"max_new_tokens": 64}
    if kind == 1:
        file = io.BytesIO()
        draw_image(HELD_OUT_SEED + number).image.save(file, "PNG")
        content = [
            {"type": "image", "base64": base64.b64encode(file.getvalue()).decode()},
            {"type": "text", "text": "What is in this image?"},
        ]
    if kind >= 2:
        config |= LONG | {"max_new_tokens": 160, "num_return_sequences": 1 if kind == 2 else 2}
    return demo_task(number, content or f"Count from {number % 50} to 99.", config)


def demo_task(seed: int, content: Any, config: dict[str, Any]) -> dict[str, Any]:
    """A task of one message for the demo model."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "generation_config": config,
        "seed": seed,
    }
