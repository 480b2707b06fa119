"""Rotary embeddings with two sets of factors, chosen row by row (``longrope``).

transformers chooses by the longest position of a forward, which may be another task's. Here a row
has the factors that its own sequence asks for. A task whose answer may grow from one set into the
other runs alone through `generate` (`engine.sampling.settings`), because some models then compute
all of it again; so all rows of a sequence in the batch have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens

TYPE = "longrope"
_ATTRIBUTE = "_row_lengths"


@dataclass
class RowLengths:
    """The length of which each row of the forward is, while one runs; None elsewhere.

    ``limit``: rows of longer sequences have the long factors; None for a model without them.
    """

    limit: int | None = None
    of_rows: Sequence[int] | None = None

    @contextmanager
    def of(self, scheduled: Sequence[ScheduledTokens], num_rows: int) -> Iterator[None]:
        """In the body, the rows are those of some tokens, and padding."""
        if self.limit is not None:
            lengths = [n for each in scheduled for n in [_length(each)] * each.num_tokens]
            self.of_rows = lengths + [1] * (num_rows - len(lengths))
        try:
            yield
        finally:
            self.of_rows = None


def _length(tokens: ScheduledTokens) -> int:
    """One that asks for the same factors as the whole sequence."""
    return tokens.stop if tokens.request is None else tokens.request.prompt_tokens


def long_rope_limit(model: Any) -> int | None:
    """Tokens up to which sequences have the short factors; None for a model without long ones."""
    return row_lengths(model).limit


def row_lengths(model: Any) -> RowLengths:
    """What a model's rotary embeddings are told before a forward; nobody reads it without any."""
    found = (getattr(each, _ATTRIBUTE, None) for each in model.get_decoder().modules())
    return next((each for each in found if each is not None), RowLengths())


def use_row_lengths(model: Any) -> None:
    """Let the rotary embeddings of a model choose by rows, in place.

    A model without such embeddings stays as it is, and so does one whose layers differ in them.
    """
    lengths = RowLengths()
    for module in model.get_decoder().modules():
        if getattr(module, "rope_type", None) == TYPE:
            limit = int(module.config.rope_parameters["original_max_position_embeddings"])
            device = module.inv_freq.device
            # Makes the long factors, which are computed when they are first needed.
            module(torch.zeros(1, device=device), torch.tensor([[limit]], device=device))
            module.forward = partial(_forward, module, lengths, module.forward)
            setattr(module, _ATTRIBUTE, lengths)
            lengths.limit = limit


def _forward(
    module: Any, lengths: RowLengths, own: Any, x: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [batch, rows, size]."""
    if lengths.of_rows is None:
        return own(x, position_ids)  # type: ignore[no-any-return]
    assert lengths.limit is not None
    is_long = [length > lengths.limit for length in lengths.of_rows]
    # Below the decorator that would choose for all rows at once.
    compute = type(module).forward.__wrapped__.__wrapped__
    made = {}
    for long in {*is_long}:
        factors = module.long_inv_freq if long else module.original_inv_freq
        module.inv_freq.copy_(factors)
        made[long] = compute(module, x, position_ids)
    if len(made) == 1:
        ((only),) = made.values()
        return only  # type: ignore[no-any-return]
    chosen = upload(is_long, x.device, torch.bool)[None, :, None]
    (cos, sin), (short_cos, short_sin) = made[True], made[False]
    return torch.where(chosen, cos, short_cos), torch.where(chosen, sin, short_sin)
