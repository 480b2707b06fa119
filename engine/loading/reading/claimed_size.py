"""Refuses a configuration that describes far more than its files hold, before it takes memory.

transformers makes the modules that a configuration describes, and memory for all of them, before it
compares them with the weights: a file of some kilobytes can ask for all of a machine's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from schema.errors import ModelInvalid

# What the numbers of a configuration are called that say how many modules it has.
_COUNTS = ("layers", "layer", "experts", "blocks", "depth")
_MOST_MODULES = 65_536  # of a kind; none of the models that there are has a hundredth of it
_PACKED_PER_BYTE = 8  # numbers of one bit; there are none smaller

Shape = tuple[int, ...]


def refuse_absurd_counts(fields: Mapping[str, Any], model: str) -> None:
    """Refuse what would take memory while it is read: lists with an entry for each layer.

    Raises:
        ModelInvalid: a configuration has more layers or experts than any model has.
    """
    for name, value in _counts(fields):
        if value > _MOST_MODULES:
            raise ModelInvalid(
                f"model {model!r} is damaged: its configuration says {name} {value}; at most "
                f"{_MOST_MODULES} are read"
            )


def refuse_more_than_stored(
    fields: Mapping[str, Any],
    shapes: Sequence[Shape],
    describe: Callable[[], Iterable[Shape]] | None,
    *,
    num_bytes: int,
    packed: bool,
    model: str,
) -> None:
    """Compare a model's configuration with what its files hold.

    Args:
        fields: of the configuration.
        shapes: of all stored tensors.
        describe: gives the shapes of all tensors that the configuration describes; None if it does
            not say it.
        num_bytes: of the files of weights.
        packed: whether a byte may hold more than one number.
        model: its name, for messages.

    Raises:
        ModelInvalid: it describes more.
    """
    most = max([len(shapes), *(size for shape in shapes for size in shape)])
    for name, value in _counts(fields):
        if value > most:  # each layer has a tensor, each expert one or a place in one
            raise ModelInvalid(
                f"the files of model {model!r} are not of one model: the configuration says "
                f"{name} {value}, and the weights have {len(shapes)} tensors of {most} rows at most"
            )
    numbers = 0 if describe is None else sum(map(math.prod, describe()))
    if numbers > num_bytes * (_PACKED_PER_BYTE if packed else 1):
        raise ModelInvalid(
            f"the files of model {model!r} are not of one model: the configuration describes "
            f"{numbers} weights, and the files of weights have {num_bytes} bytes"
        )


def _counts(fields: Any) -> Iterator[tuple[str, int]]:
    """The numbers of modules that a configuration and those in it name."""
    if isinstance(fields, dict):
        for name, value in fields.items():
            if isinstance(value, int) and str(name).endswith(_COUNTS):
                yield str(name), value
            else:
                yield from _counts(value)
