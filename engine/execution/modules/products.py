"""Products with packed weights, and the numbers of rows at which results agree bit for bit.

Where only some rows of a forward go through a product, other tasks decide how many they are. At
these counts, measured as batch sizes are, with padding, what becomes of a row depends on it alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch.nn.functional import linear, pad

from engine.execution.batch_sizes import BatchInvarianceError, agreeing, largest_group
from engine.execution.kv_cache import bits_of
from engine.execution.modules import bfloat16_kernel
from engine.platform.platforms import platform_of

Product = Callable[[torch.Tensor], torch.Tensor]
"""From rows [n, in] to rows [n, out]."""
MakeProduct = Callable[[torch.Tensor, torch.Tensor | None], Product]
"""Makes a product of a weight [out, in] and a bias [out]."""

_PROBED = 16  # rows whose bits are compared: few might agree by chance
_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class PackedProduct(ABC):
    """A product whose weight, in a layout of its own, replaces that of the layers.

    Attributes:
        dtype: of the weight.
        computed_by: what multiplies, as the model's card says it.
        stored: the tensors that it keeps.
    """

    dtype: torch.dtype
    computed_by: ClassVar[str]
    stored: list[torch.Tensor]

    @abstractmethod
    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [..., in] -> [..., out], in their dtype."""


MakePacked = Callable[[torch.Tensor, torch.Tensor | None], PackedProduct]
"""Makes a packed product of a weight [out, in] and a bias [out]."""


class OneDNNProduct(PackedProduct):
    """A product by oneDNN, of float32 or bfloat16."""

    computed_by = "onednn"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.dtype = weight.dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = None if bias is None else bias.clone()
        self.stored = [self._weight] if self._bias is None else [self._weight, self._bias]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [..., in] -> [..., out]."""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return output


class BFloat16Product(PackedProduct):
    """A product by our kernel for bfloat16: a row has the same bits at every number of rows."""

    dtype = torch.bfloat16
    computed_by = "avx512_bf16"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._out_features = len(weight)
        self._weight = bfloat16_kernel.packed(weight)
        self._bias = bfloat16_kernel.in_panels(bias, len(weight))
        self.stored = [self._weight, self._bias]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [..., in] -> [..., out]."""
        flat = rows.reshape(-1, rows.shape[-1])
        output = bfloat16_kernel.product(flat, self._weight, self._bias, self._out_features)
        return output.view(*rows.shape[:-1], self._out_features)


def packed_product(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedProduct:
    """The fastest product on this CPU, of a dtype that oneDNN packs."""
    if weight.dtype == torch.bfloat16 and bfloat16_kernel.has_kernel():
        return BFloat16Product(weight, bias)
    return OneDNNProduct(weight, bias)


def plain_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """A product as torch computes it."""
    return partial(linear, weight=weight, bias=bias)


def padded(product: Product, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """A product of rows [n, in] with n of at least 1, at these counts, which are ascending."""
    parts = []
    for part in rows.split(counts[-1]):
        missing = next(count for count in counts if count >= len(part)) - len(part)
        parts.append(product(pad(part, (0, 0, 0, missing)) if missing else part))
    return parts[0][: len(rows)] if len(parts) == 1 else torch.cat(parts)[: len(rows)]


def probe_rows(width: int, like: torch.Tensor) -> torch.Tensor:
    """Rows to measure a product of ``width`` features with; dtype and device as ``like``."""
    return torch.randn(_COUNTS[-1], width, generator=torch.Generator().manual_seed(0)).to(like)


def agreeing_counts(
    product: Product, probe: torch.Tensor, what: str, *, rounded: int = 0
) -> tuple[int, ...]:
    """The numbers of rows at which a product gives a row the same bits, ascending.

    Args:
        product: what is measured.
        probe: of `probe_rows`.
        what: computes it, for the message.
        rounded: elements of each row that pass functions which round by place, such as exp.

    Raises:
        BatchInvarianceError: there are none.
    """
    alike = platform_of(probe.device).rounds_alike
    candidates = [count for count in _COUNTS if not rounded or alike(count * rounded)]
    found = largest_group(agreeing(_Check(product, probe), candidates), needed=1)
    if found is None:
        raise BatchInvarianceError(f"what {what} makes of a row depends on its other rows")
    return found


class _Check:
    """A product of some rows, at any place among others."""

    def __init__(self, product: Product, probe: torch.Tensor) -> None:
        self._product, self._probe = product, probe

    def bits(self, num_rows: int, *, seed: int) -> bytes:
        """All bits of the first `_PROBED` rows in products of ``num_rows``."""
        shuffle = torch.Generator().manual_seed(seed)
        seen = b""
        for members in torch.arange(_PROBED).split(num_rows):
            others = torch.randint(_PROBED, len(self._probe), (num_rows,), generator=shuffle)
            places = torch.randperm(num_rows, generator=shuffle)[: len(members)]
            others[places] = members
            output = self._product(self._probe[others])
            seen += b"".join(map(bits_of, output[places]))
        return seen
