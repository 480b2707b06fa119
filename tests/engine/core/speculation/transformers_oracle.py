"""What plain transformers draws for a random task: the ids that the engine has to draw."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, set_seed

from schema import Task
from tests.engine.core.speculation.comparison import Outcome
from tests.engine.sampling.test_generate_oracle import plainly

OURS = {"stop_strings", "logprobs", "prompt_logprobs", "num_return_sequences"}


class TransformersOracle:
    """`generate` of one model, in float32."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=torch.float32
        )

    def draws(self, task: Task) -> bool:
        """Whether `generate` can: there is no grammar, no image and no call in the messages."""
        return (
            task.structured_output is None
            and not task.forces_calls
            and not task.split_images()[1]
            and not any(message.tool_calls for message in task.messages)
            and task.generation_config.max_new_tokens != 0
        )

    def check(self, task: Task, response: Outcome) -> str | None:
        """How the tokens of a response differ from those of `generate`; None if they do not.

        The response has to have its `token_ids`. An answer that a stop string has ended is the
        beginning of what `generate` draws, which goes on.
        """
        rows = self._generated(task)
        for number, choice in enumerate(response["choices"]):
            row = rows[number % len(rows)]
            got = choice["token_ids"]
            stopped = task.generation_config.stop_strings and choice["finish_reason"] == "stop"
            want = row[: len(got)] if stopped else row
            if got != want:
                return f"choice {number} is {got}, and generate draws {want}"
        return None

    def _prompt(self, task: Task) -> list[int]:
        if task.prompt_token_ids is not None:
            return task.prompt_token_ids
        if not task.use_chat_template:
            text = "".join(message.text for message in task.messages)
            return list(self._tokenizer(text)["input_ids"])
        hints = {"enable_thinking": task.reasoning_effort not in (None, "none")}
        return list(
            self._tokenizer.apply_chat_template(
                [message.model_dump(exclude_none=True) for message in task.messages],
                tools=task.tools,
                add_generation_prompt=True,
                **hints | (task.template_args or {}),
            )["input_ids"]
        )

    def _generated(self, task: Task) -> list[list[int]]:
        """The tokens of each answer, up to and with the one that ends it."""
        config = task.generation_config
        settings = config.model_dump(exclude_none=True)
        if settings.get("temperature") == 0:
            settings |= {"temperature": 1.0, "do_sample": False}
        several = config.num_return_sequences or 1
        if not settings["do_sample"] and "num_beams" not in settings:
            several = 1  # greedy answers are equal
        settings = {name: value for name, value in settings.items() if name not in OURS}
        prompt = self._prompt(task)
        set_seed(task.seed)
        with torch.no_grad(), warnings.catch_warnings():
            # A task that asks for fewer tokens than the model's own settings do is allowed here.
            warnings.filterwarnings("ignore", "Unfeasible length constraints", UserWarning)
            output = self._model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                num_return_sequences=several,
                **plainly(settings, len(prompt)),
            )
        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends)
        return [_until(row, ends) for row in output[:, len(prompt) :].tolist()]


def _until(row: list[int], ends: set[int]) -> list[int]:
    first = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[: first + 1]
