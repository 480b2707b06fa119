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

    A model without such embeddings stays as it is, and so does one with several limits.
    """
    found = [
        (module, layer_type, limit)
        for module in model.get_decoder().modules()
        for layer_type, limit in _limits(module)
    ]
    if len({limit for _, _, limit in found}) != 1:
        return
    lengths = RowLengths(found[0][2])
    for module in {id(module): module for module, _, _ in found}.values():
        module.forward = partial(_forward, module, lengths, module.forward)
        setattr(module, _ATTRIBUTE, lengths)


def chooses_by_rows(model: Any) -> bool:
    """Whether all rotary embeddings of a model with two sets of factors choose by rows."""
    return all(
        hasattr(module, _ATTRIBUTE)
        for module in model.get_decoder().modules()
        if any(True for _ in _limits(module))
    )


def _limits(module: Any) -> Iterator[tuple[str | None, int]]:
    """The limits of a rotary embedding with two sets of factors, by the type of layer if it has
    parameters for each; nothing for another module.
    """
    kinds = getattr(module, "rope_type", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if kind == TYPE:
            parameters = module.config.rope_parameters
            own = parameters if layer_type is None else parameters[layer_type]
            yield layer_type, int(own["original_max_position_embeddings"])


def _forward(
    module: Any,
    lengths: RowLengths,
    own: Any,
    x: torch.Tensor,
    position_ids: torch.Tensor,  # [batch, rows], or [axes, batch, rows]
    layer_type: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [batch, rows, size]: the module's own, which chooses by the largest
    position, once for long sequences and once for short ones.
    """
    compute = own if layer_type is None else partial(own, layer_type=layer_type)
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    if lengths.of_rows is None or kind != TYPE:
        return compute(x, position_ids)  # type: ignore[no-any-return]
    assert lengths.limit is not None
    is_long = [length > lengths.limit for length in lengths.of_rows]
    made: dict[bool, tuple[torch.Tensor, torch.Tensor]] = {}
    for long in {*is_long}:
        if long:  # beside rows at the limit, so that it takes the long factors
            beside = torch.full_like(position_ids, lengths.limit)
            cos, sin = compute(x, torch.cat([position_ids, beside], dim=-2))
            batch = position_ids.shape[-2]
            made[long] = cos[..., :batch, :, :], sin[..., :batch, :, :]
        else:  # rows that are cut off here belong to long sequences
            made[long] = compute(x, position_ids.clamp(max=lengths.limit - 1))
    if len(made) == 1:
        ((only),) = made.values()
        return only
    chosen = upload(is_long, x.device, torch.bool)[None, :, None]
    (cos, sin), (short_cos, short_sin) = made[True], made[False]
    return torch.where(chosen, cos, short_cos), torch.where(chosen, sin, short_sin)
