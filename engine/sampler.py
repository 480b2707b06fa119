"""From logits to the next tokens: transformers' processors and the task's own generator.

``torch.multinomial`` with one sample is an exponential race, ``argmax(probs / q)`` with ``q ~
Exp(1)`` drawn in the shape of ``probs``. A task that draws ``[num_return_sequences, vocab]`` a step
from a generator of its own picks the tokens that ``set_seed(seed); model.generate(...)`` picks,
while it shares its forwards with strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from engine.generation import GenerationSettings
from schema.errors import TaskExecutionError


class Sampler:
    """Picks tokens for the sequences of one task; owns its random state."""

    def __init__(
        self,
        model: Any,
        settings: GenerationSettings,
        prompt_ids: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> None:
        self._do_sample = bool(settings.hf.do_sample)
        self._num_sequences = settings.num_sequences
        self._generator = torch.Generator(device).manual_seed(seed)
        prompt = torch.tensor([list(prompt_ids)], device=device)
        _complete(settings.hf, len(prompt_ids))
        model._prepare_special_tokens(settings.hf, kwargs_has_attention_mask=True, device=device)
        # transformers' own factory: which processors, with which defaults, in which order.
        self._processors = model._get_logits_processor(
            generation_config=settings.hf,
            input_ids_seq_length=len(prompt_ids),
            encoder_input_ids=prompt,
            device=str(device),
            model_kwargs={},
        )
        self._pad_id = next(iter(sorted(settings.eos_token_ids)), 0)
        # [num_sequences, tokens so far], as `generate` passes to processors.
        self._ids = prompt.repeat(self._num_sequences, 1)

    def next_tokens(self, logits: torch.Tensor, alive: Sequence[int]) -> list[int]:
        """Pick one token for each sequence that is still running.

        Args:
            logits: float32 [len(alive), vocab], in the order of ``alive``.
            alive: indices of the running sequences, ascending.

        Raises:
            TaskExecutionError: the logits are not numbers.
        """
        check_numbers(logits)
        if len(alive) < self._num_sequences:
            # `generate` goes on drawing for finished sequences, so we do; what they score is
            # unused.
            full = logits.new_zeros(self._num_sequences, logits.shape[1])
            full[list(alive)] = logits
            logits = full
        scores = self._processors(self._ids, logits)
        if self._do_sample:
            check_numbers(scores)
            probabilities = torch.softmax(scores, dim=-1)
            tokens = torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]
        else:
            tokens = scores.argmax(dim=-1)
        picked = tokens.tolist()
        if self._processors:
            running = set(alive)
            padded = [t if i in running else self._pad_id for i, t in enumerate(picked)]
            column = torch.tensor(padded, device=self._ids.device)[:, None]
            self._ids = torch.cat([self._ids, column], dim=1)
        return [picked[i] for i in alive]


def check_numbers(scores: torch.Tensor) -> None:
    """Raise unless every row has a largest score: no NaN, no overflow, not everything forbidden.

    On CUDA, sampling from such a row would take the whole process down.

    Raises:
        TaskExecutionError: the scores are not numbers.
    """
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise TaskExecutionError("the model produced logits that are not numbers (NaN or infinity)")


def _complete(hf: GenerationConfig, prompt_tokens: int) -> None:
    """Lengths that processors read and that `generate` derives from the prompt's length."""
    hf.max_length = prompt_tokens + hf.max_new_tokens
    if hf.min_new_tokens is not None:
        hf.min_length = prompt_tokens + hf.min_new_tokens
