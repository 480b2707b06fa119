"""Forbids the tokens that the grammars of a task's answers do not allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import LogitsProcessor

from engine.platform.transfer import send, staged
from engine.sampling.grammar import Matcher


class Answer(Protocol):
    """The part of one answer's state that the mask reads."""

    @property
    def finished(self) -> bool:
        """Whether it is complete."""
        ...

    @property
    def matcher(self) -> Matcher | None:
        """How far it has come in its grammar."""
        ...


class GrammarMask(LogitsProcessor):
    """A processor of `generate`'s kind, for all tasks: reads the matchers, never moves them."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        """``answers`` are the task's, all with a matcher."""
        self._matchers = [(answer, answer.matcher) for answer in answers if answer.matcher]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [sequences, vocab] with -inf for what is not allowed.

        Raises:
            TaskExecutionError: see `engine.sampling.grammar.Matcher.fill`.
        """
        shape = (len(self._matchers), self._matchers[0][1].num_words)
        bits = staged(shape, -1, torch.int32, scores.device)
        for row, (answer, matcher) in zip(bits, self._matchers, strict=True):
            if not answer.finished:  # rows of finished answers are not read
                matcher.fill(row)
        return apply_token_bitmask(scores, send(bits, scores.device))


def apply_token_bitmask(scores: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Scores with -inf where a bit is 0.

    Args:
        scores: float [rows, vocab].
        bits: int32 [rows, words], a bit for each token, lowest first. There may be fewer tokens
            than columns of scores, as in models with a padded vocabulary; the other columns are
            forbidden.
    """
    vocab = scores.shape[1]
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab].bool()
    allowed = torch.nn.functional.pad(allowed, (0, vocab - allowed.shape[1]))
    return scores.masked_fill(~allowed, float("-inf"))
