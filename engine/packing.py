"""What a packed forward is made of, and its numbers on the way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one sequence in a packed forward."""

    start: int  # position of the first token
    num_tokens: int
    pages: Sequence[int]
    features: torch.Tensor | None = None  # [image tokens among them, hidden]

    @property
    def context(self) -> int:
        """Tokens of the sequence that the last token sees, itself included."""
        return self.start + self.num_tokens


def positions(pieces: Sequence[Piece], num_rows: int) -> list[int]:
    """The position of every row; 0 for padding."""
    real = [i for piece in pieces for i in range(piece.start, piece.context)]
    return real + [0] * (num_rows - len(real))


def upload(
    values: Sequence[float] | Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype = torch.long,
) -> torch.Tensor:
    """A tensor on the device; the host does not wait until it is there."""
    on_cuda = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=on_cuda).to(device, non_blocking=on_cuda)


class Download:
    """A tensor on its way to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._copied: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = tensor.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> torch.Tensor:
        """The tensor; the one place where the host waits for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor
