"""Settings that transformers does not have: frequency and presence penalty, and a bias of tokens.

They are ordinary logits processors, so that `generate`, given `own_processors` as its
``logits_processor``, writes what the engine writes. It calls such processors after its own, such as
the repetition penalty, and before temperature, top_k and others that prepare sampling. They add to
the scores row by row: the bits of a row do not depend on other rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from engine.platform.transfer import upload
from schema.errors import TaskArgsInvalid
from schema.generation import GenerationConfig


@dataclass(frozen=True)
class Penalties:
    """Numbers that are added to a task's scores, and subtracted from them.

    Attributes:
        frequency: taken from a token's score for each time that its answer has it already.
        presence: taken once from the score of every token that its answer has already.
        bias: added to the scores of these tokens.
    """

    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


def resolve_penalties(asked: GenerationConfig, vocab_size: int) -> Penalties:
    """The penalties and the bias of a task for a model with ``vocab_size`` tokens.

    Raises:
        TaskArgsInvalid: the bias names a token that the model does not have.
    """
    bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
    for token_id in bias:
        if token_id >= vocab_size:
            raise TaskArgsInvalid(
                f"generation_config.logit_bias.{token_id}: the model has no such token; its ids "
                f"are 0 to {vocab_size - 1}",
                param=f"generation_config.logit_bias.{token_id}",
            )
    return Penalties(asked.frequency_penalty or 0.0, asked.presence_penalty or 0.0, bias)


def own_processors(penalties: Penalties, prompt_tokens: int) -> LogitsProcessorList:
    """The processors of a task, the penalties first; empty if the task asks for none."""
    processors = LogitsProcessorList()
    if penalties.frequency or penalties.presence:
        processors.append(CountPenalties(penalties.frequency, penalties.presence, prompt_tokens))
    if penalties.bias:
        processors.append(TokenBias(penalties.bias))
    return processors


class CountPenalties(LogitsProcessor):
    """Takes ``count * frequency + (count > 0) * presence`` from the score of every token.

    ``count`` is how often the row has the token after the prompt. The formula is OpenAI's.
    """

    def __init__(self, frequency: float, presence: float, prompt_tokens: int) -> None:
        self._frequency = frequency
        self._presence = presence
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Score [rows, vocab] the next tokens of ``input_ids`` [rows, tokens so far]."""
        generated = input_ids[:, self._prompt_tokens :]
        if not generated.shape[1]:
            return scores
        counts = _counts(generated, scores.shape[1])
        return scores - self._frequency * counts - self._presence * (counts > 0)


class TokenBias(LogitsProcessor):
    """Adds a number to the scores of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._bias = bias
        self._dense: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Score [rows, vocab] the next tokens."""
        if self._dense is None:
            dense = [0.0] * scores.shape[1]
            for token_id, value in self._bias.items():
                dense[token_id] = value
            self._dense = upload(dense, scores.device, torch.float32)
        return scores + self._dense


def _counts(token_ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """How often each row of token_ids [rows, tokens] has each token: float32 [rows, vocab].

    The place of a token among the sorted ones says how many are smaller. Adding into a table would
    be shorter, but on CUDA its deterministic form waits for the device.
    """
    ids = torch.arange(vocab_size + 1, device=token_ids.device).expand(len(token_ids), -1)
    smaller = torch.searchsorted(token_ids.sort(dim=1).values, ids.contiguous())
    return smaller.diff(dim=1).to(torch.float32)
