"""Messages between ranks: rank 0 makes the others set up, or run an operation.

Tensors of an operation are not in its message: the process group sends them from device to device,
in the order of their places in the message.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.config import EngineConfig
from engine.execution.executor import RunnerPlan


@dataclass(frozen=True)
class WorkerInit:
    """The data with which a worker becomes a rank.

    Attributes:
        config: of its engine; the model is a directory, where the weights are already.
        store: the file through which the ranks form the process group.
    """

    config: EngineConfig
    store: str


@dataclass(frozen=True)
class SetUp:
    """Build a runner by the plan. Without one: measure, and reply with the room for a KV cache."""

    plan: RunnerPlan | None = None


@dataclass(frozen=True)
class AskAttention:
    """Reply with why the plan's attention backend does not support the model on this rank."""

    plan: RunnerPlan


@dataclass(frozen=True)
class Run:
    """Run an operation (`engine.execution.operations`).

    Attributes:
        operation: pickled, with numbers in the places of tensors.
        tensors: shape and dtype of each of them.
        on_cache: it is an operation of the KV cache, not of the runner.
        reply: with its result.
    """

    operation: bytes
    tensors: Sequence[tuple[tuple[int, ...], torch.dtype]]
    on_cache: bool
    reply: bool


Message = SetUp | AskAttention | Run


@dataclass(frozen=True)
class Reply:
    """The result of a message."""

    value: Any = None


@dataclass(frozen=True)
class Failed:
    """The error with which a worker ends."""

    why: str
    out_of_memory: bool


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        self.tensors.append(obj.contiguous())
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._tensors[pid]
        return tensor


def packed(operation: object) -> tuple[bytes, list[torch.Tensor]]:
    """An operation without its tensors, and the tensors."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(operation)
    return file.getvalue(), packer.tensors


def unpacked(operation: bytes, tensors: Sequence[torch.Tensor]) -> Any:
    """The operation that `packed` was given, with other tensors in their places."""
    return _Unpacker(io.BytesIO(operation), tensors).load()
