"""Which results of a forward come from functions that libraries round in more than one way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_ROUNDED = {
    *("exp", "exp2", "expm1", "log", "log1p", "sigmoid", "silu", "gelu", "tanh", "softplus"),
    *("mish", "elu", "erf", "cos", "sin"),
}
"""Functions of single elements that libraries compute, each in its way. Products, sums, roots and
quotients have one right result."""


class Rounded(TorchDispatchMode):
    """Notes the size of each tensor that a function has made whose results are rounded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's own signature
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.rstrip("_") in _ROUNDED:
            self.sizes.append(result.numel())
        return result


class GrowingSizes:
    """Sizes of results that grow with the rows of a forward, told from two forwards."""

    def __init__(self, rows: tuple[int, int], few: Sequence[int], many: Sequence[int]) -> None:
        """What was seen.

        Args:
            rows: of the two forwards, ascending.
            few: the sizes of all results in the first one.
            many: those in the second one.
        """
        self._rows = rows[0]
        apart = rows[1] - rows[0]
        self._widths = {((b - a) // apart, a) for a, b in zip(few, many, strict=False)}

    def at(self, rows: int) -> Iterator[int]:
        """The sizes in a forward of so many rows."""
        for width, size in self._widths:
            if width:
                yield size + width * (rows - self._rows)
