"""Which models are loaded: a memory budget, one load for each model, least recently used out first.

This is bookkeeping without Ray and engines: the size of a model, loading and unloading are
functions that it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from schema.errors import Cancelled, OutOfMemory, Overloaded

logger = logging.getLogger("ray.serve")

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")

RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """A model and the memory that it takes."""

    model: M
    num_bytes: int


@dataclass(frozen=True)
class Calls(Generic[K, M]):
    """The functions for models; all are called on the event loop."""

    size: Callable[[K], Awaitable[int]]
    """Bytes that the model will take. Raises if there is no such model."""
    load: Callable[[K], Awaitable[Loaded[M]]]
    unload: Callable[[M], Awaitable[None]]
    """Returns when the memory is free."""


@dataclass
class _Slot(Generic[M]):
    """One model that is loaded, or is being loaded."""

    loading: asyncio.Task[M]
    users: int = 0  # tasks that run on it or wait for it
    num_bytes: int = 0

    @property
    def idle(self) -> bool:
        return self.loading.done() and not self.users


class Residency(Generic[K, M]):
    """The loaded models of one process. Not thread safe: it belongs to one event loop.

    * A key is loaded once, however many tasks wait for it. If that fails, all of them get the
      error, and the next task tries again.
    * Loads run one after another, in the order in which they were asked for, so that small models
      do not keep a large one waiting for ever.
    * A model in use is not unloaded. A load without room waits until a model becomes idle, and not
      longer than ``max_wait_s``.
    """

    def __init__(
        self, calls: Calls[K, M], *, budget: int, max_waiting: int, max_wait_s: float
    ) -> None:
        self._calls = calls
        self._budget = budget
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._slots: dict[K, _Slot[M]] = {}  # the least recently used first
        self._num_waiting = 0
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()

    @asynccontextmanager
    async def use(self, key: K) -> AsyncIterator[M]:
        """The model of a key, which stays loaded in the body.

        Raises:
            OutOfMemory: it is larger than the whole budget.
            Overloaded: it was not loaded in time, or too many tasks wait.
            TaskError: any other error of loading.
        """
        slot = self._slots.pop(key, None) or self._start(key)
        self._slots[key] = slot  # last in the order
        slot.users += 1
        try:
            if not slot.loading.done():
                await self._wait(key, slot)
            yield slot.loading.result()
        finally:
            slot.users -= 1
            self._released.set()

    def loaded(self) -> dict[K, M]:
        """The models that are loaded now, the least recently used first."""
        return {key: slot.loading.result() for key, slot in self._slots.items() if _is_up(slot)}

    @property
    def used_bytes(self) -> int:
        """Memory of the loaded models, and what is reserved for the load that runs."""
        return sum(slot.num_bytes for slot in self._slots.values())

    async def discard(self, key: K, model: M) -> None:
        """Drop a model that has failed; tasks that still use it fail by themselves."""
        slot = self._slots.get(key)
        if slot is not None and _is_up(slot) and slot.loading.result() is model:
            del self._slots[key]
            await self._calls.unload(model)
            self._released.set()

    # --- Loading ---------------------------------------------------------------------------------

    def _start(self, key: K) -> _Slot[M]:
        # The task needs its slot, which holds the task.
        slot: _Slot[M] = _Slot(asyncio.create_task(self._load(key), name=f"load {key}"))
        # All waiting tasks may be gone when it fails; asyncio would complain.
        slot.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return slot

    async def _wait(self, key: K, slot: _Slot[M]) -> None:
        """Wait until it is loaded. Cancelling this does not stop the load: others wait too."""
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._num_waiting} tasks wait for models to be loaded",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                await asyncio.shield(slot.loading)
        except TimeoutError:
            raise Overloaded(
                f"the model was not loaded within {self._max_wait_s:g} seconds; it goes on loading",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        finally:
            self._num_waiting -= 1

    async def _load(self, key: K) -> M:
        slot = self._slots[key]
        try:
            size = await self._calls.size(key)
            self._refuse_giants(key, size)
            async with self._turn:
                await self._make_room(slot, size)
                slot.num_bytes = size
                loaded = await self._calls.load(key)
                slot.num_bytes = loaded.num_bytes
                await self._correct(key, loaded)
                return loaded.model
        except BaseException:
            slot.num_bytes = 0
            if self._slots.get(key) is slot:
                del self._slots[key]
            self._released.set()
            raise

    def _refuse_giants(self, key: K, size: int) -> None:
        if size > self._budget:
            raise OutOfMemory(
                f"{key} needs about {size / 1e9:.3g} GB, and all models that are loaded on demand "
                f"share {self._budget / 1e9:.3g} GB here (max_memory_gb)"
            )

    async def _make_room(self, slot: _Slot[M], size: int) -> None:
        """Unload idle models until ``size`` bytes are free."""
        deadline = asyncio.get_running_loop().time() + self._max_wait_s
        while self.used_bytes + size > self._budget:
            if not slot.users:
                raise Cancelled("no task waits for the model any more")
            self._released.clear()
            if await self._unload_one():
                continue
            try:
                async with asyncio.timeout_at(deadline):
                    await self._released.wait()
            except TimeoutError:
                raise Overloaded(
                    "there is no room for the model: all loaded models have been in use for "
                    f"{self._max_wait_s:g} seconds",
                    retry_after_s=RETRY_AFTER_S,
                ) from None

    async def _unload_one(self) -> bool:
        """Unload the idle model that was used longest ago; False if none is idle."""
        for key, slot in self._slots.items():
            if slot.idle:
                # Removed first: a task that comes now loads it again.
                del self._slots[key]
                logger.info("unloading %s", key)
                await self._calls.unload(slot.loading.result())
                return True
        return False

    async def _correct(self, key: K, loaded: Loaded[M]) -> None:
        """Keep to the budget if the model turned out larger than estimated."""
        if loaded.num_bytes > self._budget:
            await self._calls.unload(loaded.model)
            self._refuse_giants(key, loaded.num_bytes)
        while self.used_bytes > self._budget and await self._unload_one():
            pass
        if self.used_bytes > self._budget:
            logger.warning(
                "models take %.3g GB, more than max_memory_gb, until one is idle",
                self.used_bytes / 1e9,
            )

    async def close(self) -> None:
        """Unload everything; loads that run are cancelled."""
        for key, slot in list(self._slots.items()):
            slot.loading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._calls.unload(await slot.loading)
            self._slots.pop(key, None)


def _is_up(slot: _Slot[M]) -> bool:
    task = slot.loading
    return task.done() and not task.cancelled() and task.exception() is None
