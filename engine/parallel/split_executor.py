"""Rank 0 of a split model: the other ranks run the same operations of runner and KV cache.

The engine's loop, its scheduler and its sampler do not know of the ranks. Images are encoded on
rank 0, and their features are sent.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from engine.execution.executor import Executor, RunnerPlan
from engine.execution.kv_cache import KVCache
from engine.execution.model_runner import ModelRunner, Shapes
from engine.execution.operations import Operation, R, T
from engine.loading.loaded_model import LoadedModel
from engine.parallel.coordinator import Coordinator
from engine.parallel.group import expect_step
from engine.parallel.messages import AskAttention, Run, SetUp, packed


class SplitExecutor(Executor):
    """All ranks of a model that is split tensor by tensor. Belongs to the engine's thread."""

    def __init__(
        self, loaded: LoadedModel, image_cache_bytes: int, coordinator: Coordinator
    ) -> None:
        super().__init__(loaded, image_cache_bytes)
        self._coordinator = coordinator
        self._rooms: list[int | None] = []
        coordinator.wait_until_loaded()
        expect_step(loaded.model)

    def measure(self) -> Shapes:
        """As `Executor.measure`: the shapes of this rank's part."""
        self._coordinator.send(SetUp())
        with self._coordinator.together():
            shapes = super().measure()
        self._rooms = self._coordinator.take_replies()
        return shapes

    def kv_room(self, device: torch.device) -> int | None:
        """The smallest room on any rank's device."""
        rooms = [super().kv_room(device), *self._rooms]
        return min((room for room in rooms if room is not None), default=None)

    def attention_problem(self, plan: RunnerPlan) -> str | None:
        """As `Executor.attention_problem`, of the first rank that has one.

        Each is asked before any tries it: a rank that refused it alone would leave the others
        waiting for it.
        """
        self._coordinator.send(AskAttention(plan))
        own = super().attention_problem(plan)
        others = enumerate(self._coordinator.take_replies(), start=1)
        theirs = [f"on rank {rank}, {problem}" for rank, problem in others if problem is not None]
        return next(iter(theirs), None) if own is None else own

    def build(self, plan: RunnerPlan) -> ModelRunner:
        """As `Executor.build`, on all ranks."""
        self._coordinator.send(SetUp(plan))
        with self._coordinator.together():
            return super().build(plan)

    def run(self, operation: Operation[T, R], target: T) -> R:
        """On all ranks; the tensors of the operation are this rank's."""
        tensors = self._send(operation, target, reply=False)
        with self._coordinator.together():
            for tensor in tensors:
                dist.broadcast(tensor, 0)
            return operation.run(target)

    def gather(self, operation: Operation[T, R], target: T) -> list[R]:
        """On all ranks; the operation has no tensors of its own."""
        self._send(operation, target, reply=True)
        with self._coordinator.together():
            own = operation.run(target)
        return [own, *self._coordinator.take_replies()]

    def _send(self, operation: Operation[T, R], target: T, *, reply: bool) -> list[torch.Tensor]:
        """Send an operation to the other ranks; returns the tensors that they wait for."""
        bare, tensors = packed(operation)
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
        self._coordinator.send(Run(bare, shapes, isinstance(target, KVCache), reply))
        return tensors

    def check_health(self) -> None:
        """Raise `RanksLostError` if a rank is gone; on any thread."""
        self._coordinator.check()

    def close(self) -> None:
        """End the other ranks."""
        self._coordinator.close()
