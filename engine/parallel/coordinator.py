"""Rank 0's side: starts the other ranks, sends them operations, notices when one has ended.

Ranks communicate over Unix sockets in a directory that only this user can enter: messages one way,
a few replies the other (`engine.parallel.messages`). Tensors go through the process group instead.
When a rank ends, its socket closes, so that the other side notices it at once.
"""

from __future__ import annotations

import logging
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.execution.attention.interface import UnsupportedAttentionError
from engine.parallel.group import abort_group, check_can_join, join_group, leave_group
from engine.parallel.launcher import Launcher, WorkerProcess
from engine.parallel.messages import Failed, Message, Reply, WorkerInit
from schema.errors import OutOfMemory, TaskError, TaskExecutionError

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 300.0  # a process imports torch and transformers, maybe from a slow disk
_POLL_S = 0.5
_REPLY_TIMEOUT_S = 300.0
_LOAD_TIMEOUT_S = 3600.0  # a slow disk; a rank that ends is noticed at once
_CLOSE_TIMEOUT_S = 10.0
_REPORT_TIMEOUT_S = 1.0


class RanksLostError(torch.AcceleratorError):
    """The ranks are out of step: as with a lost device, the engine has to be replaced."""


class Coordinator:
    """The workers of one engine. The engine's thread sends; a thread of its own listens.

    Attributes:
        failure: why the ranks cannot go on; None while they can. Set once, by any thread.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.failure: str | None = None
        self._out_of_memory = False
        self._launcher = launcher
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[WorkerProcess] = []
        self._connections: list[Connection] = []
        self._replies: list[queue.SimpleQueue[Reply | None]] = []
        self._failing = threading.Lock()
        self._closing = False
        self._listener = threading.Thread(target=self._listen, name="ranks", daemon=True)

    # --- The beginning and the end ---------------------------------------------------------------

    def start(self, config: EngineConfig, device: torch.device) -> None:
        """Start the workers and form the group with them.

        Args:
            config: of the engine, with the model as a directory that holds all files.
            device: this rank's.

        Raises:
            TaskError: they cannot be started.
        """
        check_can_join(device)
        self._directory = tempfile.TemporaryDirectory(prefix="gpt-task-ranks-")
        store = str(Path(self._directory.name, "store"))
        with socket.socket(socket.AF_UNIX) as server:
            address = str(Path(self._directory.name, "lead"))
            server.bind(address)
            server.listen()
            server.settimeout(_POLL_S)
            for rank in range(1, config.num_devices):
                self._processes.append(self._launcher.start(address, rank))
            deadline = time.monotonic() + _START_TIMEOUT_S
            while len(self._connections) < len(self._processes):
                self._accept(server, deadline)
        for connection in self._connections:
            try:
                connection.send(WorkerInit(config, store))
            except OSError as error:
                raise TaskExecutionError(f"a rank has ended while it started: {error}") from None
        self._replies = [queue.SimpleQueue() for _ in self._connections]
        self._listener.start()
        self.take_replies()  # they have looked at their devices, and join now
        join_group(store, 0, config.num_devices, device)

    def _accept(self, server: socket.socket, deadline: float) -> None:
        try:
            accepted, _ = server.accept()
        except TimeoutError:
            for rank, process in enumerate(self._processes, start=1):
                if why := process.ended():
                    raise TaskExecutionError(f"rank {rank} could not be started: {why}") from None
            if time.monotonic() > deadline:
                raise TaskExecutionError(
                    f"the ranks did not come up within {_START_TIMEOUT_S:g} s"
                ) from None
            return
        accepted.setblocking(True)
        self._connections.append(Connection(accepted.detach()))

    def wait_until_loaded(self) -> None:
        """Wait until all ranks have their weights; from then on they are in step.

        Raises:
            RanksLostError: one could not load them.
        """
        self.take_replies(_LOAD_TIMEOUT_S)

    def close(self) -> None:
        """End the workers; one that does not answer is not waited for. Idempotent."""
        self._closing = True
        for connection in self._connections:
            with suppress(OSError):
                connection.send(None)
        if self.failure is None and self._listener.is_alive():
            self._listener.join(_CLOSE_TIMEOUT_S)
        for process in self._processes:
            process.stop()
        if self._listener.is_alive():
            self._listener.join()  # all have closed their connections
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        if self._directory is not None:
            leave_group()
            self._directory.cleanup()
            self._directory = None

    # --- Messages --------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message to all workers. Raises `RanksLostError`."""
        self.check()
        for rank, connection in enumerate(self._connections, start=1):
            try:
                connection.send(message)
            except OSError as error:
                self._fail(f"rank {rank} has ended ({error})")
                self.check()

    def take_replies(self, timeout_s: float = _REPLY_TIMEOUT_S) -> list[Any]:
        """Wait for each worker's reply to the last message. Raises `RanksLostError`."""
        values = []
        for rank, replies in enumerate(self._replies, start=1):
            with suppress(queue.Empty):
                reply = replies.get(timeout=timeout_s)
                if reply is not None:
                    values.append(reply.value)
                    continue
            self._fail(f"rank {rank} does not answer")
            self.check()
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """The body runs on this rank the operation that was just sent to the workers.

        An error in it leaves the ranks out of step, except for unsupported attention, which all of
        them refuse at the same place.

        Raises:
            RanksLostError: it failed, here or elsewhere.
        """
        try:
            yield
        except (RanksLostError, UnsupportedAttentionError):
            raise
        except Exception as error:
            self._wait_for_report()
            self._fail(f"rank 0 failed: {error}", isinstance(error, torch.OutOfMemoryError))
            raise RanksLostError(self.failure) from error

    def check(self) -> None:
        """Raise `RanksLostError` if the ranks cannot go on."""
        if self.failure is not None:
            raise RanksLostError(self.failure)

    def _wait_for_report(self) -> None:
        """If another rank has failed and broken an exchange, wait for its report of the cause."""
        deadline = time.monotonic() + _REPORT_TIMEOUT_S
        while self._replies and self.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def load_error(self) -> TaskError | None:
        """Why a model could not be loaded, if another rank failed; waits for its report."""
        self._wait_for_report()
        if self.failure is None:
            return None
        if self._out_of_memory:
            return OutOfMemory(f"the model does not fit into its devices' memory: {self.failure}")
        return TaskExecutionError(f"the model could not be loaded on all devices: {self.failure}")

    # --- On the listening thread -----------------------------------------------------------------

    def _listen(self) -> None:
        ranks = {connection: rank for rank, connection in enumerate(self._connections, start=1)}
        while ranks:
            for ready in wait(list(ranks)):
                assert isinstance(ready, Connection)
                rank = ranks[ready]
                try:
                    message = ready.recv()
                except (EOFError, OSError):
                    del ranks[ready]
                    if not self._closing:
                        self._fail(f"the process of rank {rank} has ended")
                    continue
                if isinstance(message, Failed):
                    self._fail(f"rank {rank} failed: {message.why}", message.out_of_memory)
                else:
                    self._replies[rank - 1].put(message)

    def _fail(self, why: str, out_of_memory: bool = False) -> None:
        with self._failing:
            if self.failure is not None:
                return
            self._out_of_memory = out_of_memory
            self.failure = why
        logger.error("a model over several devices is lost: %s", why)
        for replies in self._replies:
            replies.put(None)
        abort_group()
