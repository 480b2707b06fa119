"""The other ranks: a process that holds its part of the model and runs what rank 0 sends.

It has no loop, no scheduler and no sampler: it runs the same forwards as rank 0, on its parts of
the weights and of the KV cache, and drops the logits.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from engine.config import EngineConfig
from engine.execution.attention.interface import UnsupportedAttentionError
from engine.execution.executor import Executor
from engine.execution.model_runner import ModelRunner
from engine.loading.loaded_model import LoadedModel
from engine.loading.loader import load_model
from engine.parallel.group import expect_step, join_group, leave_group
from engine.parallel.messages import AskAttention, Failed, Message, Reply, Run, WorkerInit, unpacked
from engine.platform.determinism import make_deterministic
from engine.platform.platforms import best_platform

logger = logging.getLogger(__name__)


class Worker:
    """A rank: does what the messages of rank 0 say."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._executor = Executor(loaded)
        self._runner: ModelRunner | None = None

    def handle(self, message: Message) -> Reply | None:
        """Do what a message says; returns the reply if rank 0 waits for one."""
        if isinstance(message, Run):
            return self._run(message)
        if isinstance(message, AskAttention):
            return Reply(self._executor.attention_problem(message.plan))
        if message.plan is None:
            self._executor.measure()
            return Reply(self._executor.kv_room(self._executor.loaded.device))
        self._runner = None  # its KV cache makes room for the next one's
        self._runner = self._executor.build(message.plan)
        return None

    def _run(self, message: Run) -> Reply | None:
        """Run an operation; its tensors come from rank 0's device."""
        assert self._runner is not None
        tensors = [
            torch.empty(shape, dtype=dtype, device=self._runner.device)
            for shape, dtype in message.tensors
        ]
        for tensor in tensors:
            dist.broadcast(tensor, 0)
        operation = unpacked(message.operation, tensors)
        result = operation.run(self._runner.cache if message.on_cache else self._runner)
        return Reply(result) if message.reply else None


def follow(address: str, rank: int) -> None:
    """Be a rank of the engine that listens at ``address``, until it closes.

    Ends the whole process when rank 0 has ended, or when a message fails: the exchange between the
    ranks cannot be completed then, and this thread may wait in it for ever.
    """
    connection = _connect(address)
    try:
        init = connection.recv()
        assert isinstance(init, WorkerInit)
        messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        listener = threading.Thread(target=_listen, args=(connection, messages), daemon=True)
        listener.start()
        worker = Worker(_load(init, rank, connection))
        connection.send(Reply())  # it has its weights
        while (message := messages.get()) is not None:
            with suppress(UnsupportedAttentionError):  # rank 0 gets it too, and continues
                if (reply := worker.handle(message)) is not None:
                    connection.send(reply)
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


def _listen(connection: Connection, messages: queue.SimpleQueue[Message | None]) -> None:
    """Pass messages on; None is the last one."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # rank 0 is gone; the other thread may wait for it on the device
        messages.put(message)
        if message is None:
            return


def _load(init: WorkerInit, rank: int, connection: Connection) -> LoadedModel:
    config = init.config
    make_deterministic(config.threads)
    best_platform().use_device(int(os.environ.get("LOCAL_RANK", "0")))

    def join(_: EngineConfig, device: torch.device) -> None:
        connection.send(Reply())
        join_group(init.store, rank, config.num_devices, device)

    loaded = load_model(config, join)
    expect_step(loaded.model)
    return loaded


if __name__ == "__main__":
    follow(sys.argv[1], int(sys.argv[2]))
