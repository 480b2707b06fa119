"""From logits to the next tokens: transformers' processors and the task's own generator.

``torch.multinomial`` with one sample is an exponential race, ``argmax(probs / q)`` with ``q ~
Exp(1)`` drawn in the shape of ``probs``. A task that draws ``[num_return_sequences, vocab]`` in
each step from its own generator samples the tokens that ``set_seed(seed); model.generate(...)``
samples, while it shares its forwards with other requests in the batch.

The part that depends on a task's settings or its random state (`Sampler.candidates`) runs task by
task; the rest (`sample`) runs once for all rows of a step. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from engine.platform.transfer import upload
from engine.sampling.logprobs import Logprobs
from engine.sampling.penalties import own_processors
from engine.sampling.settings import SamplingParams
from schema.errors import TaskArgsInvalid, TaskExecutionError

INVALID_LOGITS = -1
"""In place of a token: the model's logits, or what processors made of them, are not numbers."""


class Candidates(NamedTuple):
    """What the next tokens of some sequences are sampled from.

    Attributes:
        scores: float32 [sequences, vocab].
        noise: Exp(1) in the same shape, to sample; None to take the largest score.
        logprobs: of the model's own logits, where the task asks for them.
    """

    scores: torch.Tensor
    noise: torch.Tensor | None
    logprobs: Logprobs | None = None


class Sampler:
    """Scores tokens for the sequences of one task; owns its random state."""

    def __init__(
        self,
        model: Any,
        settings: SamplingParams,
        prompt_ids: Sequence[int],
        seed: int,
        device: torch.device,
        mask: LogitsProcessor | None = None,
    ) -> None:
        """``mask`` runs before every processor that chooses among the tokens, such as top_k."""
        self._do_sample = bool(settings.hf.do_sample)
        self._num_sequences = settings.num_sequences
        self._num_top = settings.logprobs
        self._generator = torch.Generator(device).manual_seed(seed)
        prompt = upload(prompt_ids, device)[None]
        self._processors = logits_processors(model, settings, prompt, mask)
        # [num_sequences, tokens so far], as `generate` passes to processors.
        self._ids = prompt.repeat(self._num_sequences, 1)

    def candidates(self, logits: torch.Tensor, alive: Sequence[int]) -> Candidates:
        """What the next tokens are sampled from; draws from the task's generator.

        Args:
            logits: float32 [len(alive), vocab], in the order of ``alive``.
            alive: indices of the running sequences, ascending.
        """
        scores = logits
        logprobs = None if self._num_top is None else Logprobs(logits, self._num_top)
        if self._processors:
            scores = self._processors(self._ids, self._spread(logits, alive))
            scores = self._only(scores, alive)
        if not self._do_sample:
            return Candidates(scores, None, logprobs)
        # `generate` goes on drawing for sequences that are finished, so this does too.
        noise = logits.new_empty(self._num_sequences, logits.shape[1])
        noise.exponential_(1, generator=self._generator)
        return Candidates(scores, self._only(noise, alive), logprobs)

    def advance(self, tokens: torch.Tensor, alive: Sequence[int]) -> None:
        """Append the sampled tokens [len(alive)], for the processors that read earlier tokens."""
        if self._processors:
            # `INVALID_LOGITS` ends the task, but later: until then it must not be an index.
            column = self._spread(tokens, alive)[:, None].clamp(min=0)
            self._ids = torch.cat([self._ids, column], dim=1)

    def _spread(self, rows: torch.Tensor, alive: Sequence[int]) -> torch.Tensor:
        """Rows of the running sequences, spread over rows of all; the other rows are not used."""
        if len(alive) == self._num_sequences:
            return rows
        full = rows.new_zeros(self._num_sequences, *rows.shape[1:])
        return full.index_copy_(0, upload(alive, rows.device), rows)

    def _only(self, rows: torch.Tensor, alive: Sequence[int]) -> torch.Tensor:
        if len(alive) == self._num_sequences:
            return rows
        return rows.index_select(0, upload(alive, rows.device))


def sample(batch: Sequence[Candidates]) -> torch.Tensor:
    """Sample a token for every row of a batch.

    Every row is computed by itself, so that its bits do not depend on the others.

    Returns:
        int64 [rows of all], in order; `INVALID_LOGITS` where a row has no largest score: NaN,
        overflow, or everything forbidden.
    """
    sampled: dict[int, torch.Tensor] = {}
    for to_sample in (False, True):
        members = [i for i, one in enumerate(batch) if (one.noise is not None) == to_sample]
        if not members:
            continue
        scores = _rows([batch[i].scores for i in members])
        if to_sample:
            tokens = _race(
                scores, _rows([n for n in (batch[i].noise for i in members) if n is not None])
            )
        else:
            tokens = _largest(scores)
        sampled.update(
            zip(members, tokens.split([len(batch[i].scores) for i in members]), strict=True)
        )
    return _rows([sampled[i] for i in range(len(batch))])


def _rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _largest(scores: torch.Tensor) -> torch.Tensor:
    best = scores.argmax(dim=-1, keepdim=True)
    return torch.where(scores.gather(1, best).isfinite(), best, INVALID_LOGITS)[:, 0]


def _race(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    winners = torch.softmax(scores, dim=-1).div_(noise).argmax(dim=-1)
    return torch.where(scores.amax(dim=-1).isfinite(), winners, INVALID_LOGITS)


def check_numbers(scores: torch.Tensor) -> None:
    """Raise unless every row has a largest score.

    Raises:
        TaskExecutionError: the scores are not numbers.
    """
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise invalid_logits()


def invalid_logits() -> TaskExecutionError:
    """The error of a task whose logits are not numbers."""
    return TaskExecutionError("the model produced logits that are not numbers (NaN or infinity)")


def logits_processors(
    model: Any,
    settings: SamplingParams,
    prompt: torch.Tensor,
    mask: LogitsProcessor | None = None,
) -> Any:
    """The `LogitsProcessorList` that `generate` would use for a prompt [1, tokens].

    First transformers' own, such as the repetition penalty, then ``mask`` and those of
    `penalties`, then those that prepare sampling: temperature, top_k and so on. Adds to
    ``settings.hf`` what `generate` derives from the prompt and the model.

    Raises:
        TaskArgsInvalid: a setting has a value that transformers' processors refuse. The task's own
            values have been checked, so it is one of the model's ``generation_config.json``.
    """
    hf, device, num_tokens = settings.hf, prompt.device, prompt.shape[1]
    hf.max_length = num_tokens + hf.max_new_tokens
    if hf.min_new_tokens is not None:
        hf.min_length = num_tokens + hf.min_new_tokens
    model._prepare_special_tokens(hf, kwargs_has_attention_mask=True, device=device)
    masks = [] if mask is None else [mask]
    own = own_processors(settings.penalties, num_tokens)
    try:
        # transformers' own factory: which processors, with which defaults, in which order.
        return model._get_logits_processor(
            generation_config=hf,
            input_ids_seq_length=num_tokens,
            encoder_input_ids=prompt,
            device=str(device),
            model_kwargs={},
            logits_processor=LogitsProcessorList([*masks, *own]),
        )
    except (ValueError, TypeError, IndexError) as error:
        raise TaskArgsInvalid(
            f"generation_config: the model's own generation_config.json has a value that cannot be "
            f"used with this task ({error}): set that value in the task",
            param="generation_config",
        ) from error
