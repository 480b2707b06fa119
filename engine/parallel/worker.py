"""The other ranks: a process that holds its part of the model and runs what rank 0 tells it.

It has no loop, no scheduler and no sampler: it runs the same forwards as rank 0, on its parts of
the weights and of the KV cache, and forgets the logits.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from engine.config import EngineConfig
from engine.execution.attention.packing import ScheduledTokens
from engine.execution.attention.paged import UnsupportedAttentionError
from engine.execution.kv_cache import KVCache, KVShape
from engine.execution.model_runner import Runner
from engine.loading.loader import load_model
from engine.parallel.coordinator import Call, Failed, Reply, WorkerInit
from engine.parallel.group import expect_step, join_group, leave_group
from engine.platform.determinism import make_deterministic
from engine.platform.platforms import best_platform
from engine.vision.features import FeatureLayout, Features

logger = logging.getLogger(__name__)

FeatureShapes = Sequence[tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of the tensors of a piece's features; none where it has no image."""


class Worker:
    """A rank's runner. Its methods are what `engine.parallel.runner` tells it to run."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._shapes: dict[int, KVShape] = {}
        self._cache = KVCache({}, num_pages=0, page_size=1, device=runner.device)

    def kv_shapes(self) -> None:
        """Learn the shapes of this rank's part of the cache."""
        self._shapes = self._runner.kv_shapes()

    def make_cache(self, num_pages: int, page_size: int) -> None:
        """Allocate this rank's part of the cache."""
        device = self._runner.device
        self._cache = KVCache(self._shapes, num_pages=num_pages, page_size=page_size, device=device)

    def use_cache(self) -> None:
        """As `Runner.use_cache`."""
        self._runner.use_cache(self._cache)

    def use_paged_kernel(self, max_pages: int, max_rows: int) -> None:
        """As `Runner.use_paged_kernel`."""
        self._runner.use_paged_kernel(self._cache, max_pages=max_pages, max_rows=max_rows)

    def set_attention(self, implementation: str) -> None:
        """As `Runner.set_attention`."""
        self._runner.set_attention(implementation)

    def kv_room(self) -> int | None:
        """As `Runner.kv_room`."""
        return self._runner.kv_room(self._runner.device)

    def plain_logits(self, token_ids: Sequence[int]) -> None:
        """As `Runner.plain_logits`."""
        self._runner.plain_logits(token_ids)

    def forward(
        self,
        num_tokens: int,
        pieces: Sequence[ScheduledTokens],
        shapes: Sequence[FeatureShapes],
        layout: FeatureLayout,
        options: dict[str, Any],
    ) -> None:
        """As `Runner.forward`; tokens and features come from rank 0's device."""
        device = self._runner.device
        token_ids = torch.empty(num_tokens, dtype=torch.long, device=device)
        dist.broadcast(token_ids, 0)
        received: list[ScheduledTokens] = []
        for piece, parts in zip(pieces, shapes, strict=True):
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in parts]
            for tensor in tensors:
                dist.broadcast(tensor, 0)
            features = Features(tensors[0], tuple(tensors[1:])) if tensors else None
            received.append(replace(piece, features=features))
        self._runner.vision.layout = layout
        self._runner.forward(token_ids, received, **options)

    def copy(self, source: list[int], target: list[int], start: int, stop: int) -> None:
        """As `KVCache.copy`."""
        self._cache.copy(source, target, start, stop)

    def fill_randomly(self, pages: list[int], seed: int) -> None:
        """As `KVCache.fill_randomly`."""
        self._cache.fill_randomly(pages, seed)

    def bits(self, pages: list[int], start: int, stop: int) -> bytes:
        """As `KVCache.bits`."""
        return self._cache.bits(pages, start, stop)


def follow(address: str, rank: int) -> None:
    """Be a rank of the engine that listens at ``address``, until it closes.

    Ends the whole process when rank 0 is gone, or when a call fails: what the ranks exchange cannot
    be completed then, and this thread may wait in it for ever.
    """
    connection = _connect(address)
    try:
        invitation = connection.recv()
        assert isinstance(invitation, WorkerInit)
        calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        listener = threading.Thread(target=_listen, args=(connection, calls), daemon=True)
        listener.start()
        follower = Worker(_load(invitation, rank, connection))
        connection.send(Reply(None))  # it has its weights
        while (call := calls.get()) is not None:
            with suppress(UnsupportedAttentionError):  # rank 0 gets it too, and goes on
                value = getattr(follower, call.name)(*call.args)
                if call.reply:
                    connection.send(Reply(value))
        leave_group()
    except BaseException as error:
        logger.exception("rank %d failed", rank)
        out_of_memory = isinstance(error.__cause__ or error, torch.OutOfMemoryError)
        connection.send(Failed(str(error) or repr(error), out_of_memory))
        os._exit(1)
    connection.close()


def _connect(address: str) -> Connection:
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(address)
    return Connection(connected.detach())


def _listen(connection: Connection, calls: queue.SimpleQueue[Call | None]) -> None:
    """Pass calls on; None is the last one."""
    while True:
        try:
            call = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # rank 0 is gone; the other thread may wait for it on the device
        calls.put(call)
        if call is None:
            return


def _load(invitation: WorkerInit, rank: int, connection: Connection) -> Runner:
    config = invitation.config
    make_deterministic(config.threads)
    best_platform().use_device(int(os.environ.get("LOCAL_RANK", "0")))

    def join(_: EngineConfig, device: torch.device) -> None:
        connection.send(Reply(None))
        join_group(invitation.store, rank, config.num_devices, device)

    loaded = load_model(config, join)
    expect_step(loaded.model)
    return Runner(loaded)


if __name__ == "__main__":
    follow(sys.argv[1], int(sys.argv[2]))
