"""Starts the processes of the other ranks: as children here, by Ray in `serve_app`."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Protocol

from engine.platform.platforms import best_platform
from schema.errors import ModelInvalid


class WorkerProcess(Protocol):
    """A process that runs `engine.parallel.worker.follow`."""

    def ended(self) -> str | None:
        """Why it has ended; None while it runs."""
        ...

    def stop(self) -> None:
        """End it now, and do not return before it has ended. Idempotent."""
        ...


class Launcher(Protocol):
    """Starts workers on this machine, each with a device of its own."""

    def start(self, address: str, rank: int) -> WorkerProcess:
        """Start the process of a rank from 1 up, which calls ``follow(address, rank)``.

        Its environment variable ``LOCAL_RANK`` is the index of its device among those it sees.
        """
        ...


class Subprocesses:
    """Workers as children of this process, on the devices after its own."""

    def start(self, address: str, rank: int) -> WorkerProcess:
        """Start a child.

        Raises:
            ModelInvalid: there is no such device here.
        """
        devices = best_platform().num_devices()
        if devices is not None and rank >= devices:
            raise ModelInvalid(
                f"num_devices is more than {rank}, but {devices} GPUs are visible here: take at "
                f"most {devices}"
            )
        return _Child(address, rank)


class _Child:
    def __init__(self, address: str, rank: int) -> None:
        # Not by `multiprocessing`, which would run the main module of the caller's program again.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.parallel.worker", address, str(rank)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
        )

    def ended(self) -> str | None:
        status = self._process.poll()
        return None if status is None else f"its process ended with status {status}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
