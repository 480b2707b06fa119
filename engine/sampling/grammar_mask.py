"""Forbids the tokens that the grammars of a task's answers do not allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor

from engine.platform.transfer import send, staged
from engine.sampling.grammar import Matcher


class GrammarMask(LogitsProcessor):
    """A processor of `generate`'s kind, for all tasks: reads matchers, never moves them."""

    def __init__(self, matchers: Callable[[], Sequence[Matcher | None]]) -> None:
        """``matchers`` gives those of the rows, at least one; None for rows that are not read."""
        self._matchers = matchers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocab] with -inf for what is not allowed.

        Raises:
            TaskExecutionError: see `engine.sampling.grammar.Matcher.fill`.
        """
        matchers = self._matchers()
        num_words = next(matcher.num_words for matcher in matchers if matcher is not None)
        bits = staged((len(matchers), num_words), -1, torch.int32, scores.device)
        for row, matcher in zip(bits, matchers, strict=True):
            if matcher is not None:
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
