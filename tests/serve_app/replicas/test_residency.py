"""Which models are loaded: events in any order, against a loader that only pretends.

The real loader is tested in test_pool.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema import Cancelled, ModelInvalid, OutOfMemory, Overloaded
from serve_app.replicas.residency import Calls, Loaded, Residency

SIZES = {"a": 3, "b": 4, "c": 5, "giant": 11, "liar": 2}
TRUE_SIZES = SIZES | {"liar": 9}
BUDGET = 10


class Loader:
    """Loads names at once, or when `gate` is opened; notes what is in memory."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.in_memory: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.faults: dict[str, Exception] = {}

    async def size(self, key: str) -> int:
        await asyncio.sleep(0)
        if key == "missing":
            raise ModelInvalid("missing")
        return SIZES[key]

    async def load(self, key: str) -> Loaded[list[str]]:
        self.loads[key] += 1
        self.in_memory.append(key)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if key in self.faults:
                raise self.faults[key]
        except BaseException:
            self.in_memory.remove(key)
            raise
        return Loaded([key], TRUE_SIZES[key])

    async def unload(self, model: list[str]) -> None:
        await asyncio.sleep(0)
        self.in_memory.remove(model[0])

    def residency(self, **options: Any) -> Residency[str, list[str]]:
        calls = Calls(self.size, self.load, self.unload)
        defaults: dict[str, Any] = {"budget": BUDGET, "max_waiting": 100, "max_wait_s": 20.0}
        return Residency(calls, **defaults | options)


async def _use(models: Residency[str, list[str]], key: str) -> str:
    async with models.use(key) as model:
        return model[0]


async def _settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_one_load_for_all_waiting_tasks() -> None:
    loader = Loader()
    models = loader.residency()
    loader.gate.clear()
    waiting = [asyncio.create_task(_use(models, "a")) for _ in range(8)]
    await _settle()
    loader.gate.set()
    assert await asyncio.gather(*waiting) == ["a"] * 8
    assert await _use(models, "a") == "a"
    assert loader.loads == {"a": 1}


async def test_the_least_recently_used_goes_first() -> None:
    loader = Loader()
    models = loader.residency()
    for key in ("a", "b", "a", "c"):
        await _use(models, key)
    assert list(models.loaded()) == ["a", "c"]
    assert loader.in_memory == ["a", "c"]
    assert models.used_bytes == 8


async def test_a_fault_reaches_all_waiting_tasks_and_is_then_forgotten() -> None:
    loader = Loader()
    loader.faults["a"] = ModelInvalid("broken")
    models = loader.residency()
    loader.gate.clear()
    waiting = [asyncio.create_task(_use(models, "a")) for _ in range(3)]
    await _settle()
    loader.gate.set()
    said = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in said] == [ModelInvalid] * 3
    assert (loader.loads["a"], models.used_bytes, loader.in_memory) == (1, 0, [])
    del loader.faults["a"]
    assert await _use(models, "a") == "a"
    with pytest.raises(ModelInvalid, match="missing"):
        await _use(models, "missing")


async def test_a_model_that_never_fits_is_refused_at_once() -> None:
    loader = Loader()
    models = loader.residency()
    await _use(models, "a")
    with pytest.raises(OutOfMemory, match=r"giant needs about 1.1e-08 GB, .* share 1e-08 GB"):
        await _use(models, "giant")
    assert list(models.loaded()) == ["a"]
    assert loader.loads["giant"] == 0


async def test_a_model_that_is_larger_than_estimated_makes_room() -> None:
    loader = Loader()
    models = loader.residency()
    await _use(models, "a")
    await _use(models, "liar")
    assert list(models.loaded()) == ["liar"]
    assert models.used_bytes == 9


async def test_a_task_waits_instead_of_unloading_a_model_in_use() -> None:
    loader = Loader()
    models = loader.residency()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(models.use("a"))
        await stack.enter_async_context(models.use("c"))
        waiting = asyncio.create_task(_use(models, "b"))
        await _settle()
        assert not waiting.done()
        assert loader.in_memory == ["a", "c"]
    assert await waiting == "b"
    assert list(models.loaded()) == ["c", "b"]


async def test_waiting_is_bounded_in_time_and_number() -> None:
    loader = Loader()
    models = loader.residency(max_wait_s=0.05, max_waiting=2)
    async with models.use("a"), models.use("c"):
        waiting = [asyncio.create_task(_use(models, "b")) for _ in range(3)]
        said = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in said] == [Overloaded] * 3
    assert "2 tasks wait" in str(said[2])
    assert all(isinstance(error, Overloaded) and error.retry_after_s for error in said)
    assert await _use(models, "b") == "b"  # there is room now


async def test_a_load_without_waiting_tasks_is_cancelled() -> None:
    loader = Loader()
    models = loader.residency()
    async with models.use("a"), models.use("c"):
        waiting = asyncio.create_task(_use(models, "b"))
        await _settle()
        waiting.cancel()
        await _settle()
    assert loader.loads["b"] == 0
    assert list(models.loaded()) == ["a", "c"]


async def test_cancelling_one_task_does_not_stop_the_load_for_others() -> None:
    loader = Loader()
    models = loader.residency()
    loader.gate.clear()
    first, second = (asyncio.create_task(_use(models, "a")) for _ in range(2))
    await _settle()
    first.cancel()
    await _settle()
    loader.gate.set()
    assert await second == "a"
    assert loader.loads["a"] == 1


async def test_a_failed_model_is_dropped_and_loaded_again() -> None:
    loader = Loader()
    models = loader.residency()
    async with models.use("a") as model:
        await models.discard("a", model)
        await models.discard("a", model)  # several tasks notice
    assert loader.in_memory == []
    async with models.use("a") as again:
        await models.discard("a", model)  # one notices late
        assert models.loaded() == {"a": again}


EVENTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["use", "cancel", "fail", "pause"])),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_in_any_order_of_events(events: list[tuple[str, str]]) -> None:
    """Memory stays in the budget, models in use stay loaded, and every task is answered."""

    async def user(models: Residency[str, list[str]], loader: Loader, key: str, turns: int) -> None:
        async with models.use(key) as model:
            for _ in range(turns):
                await asyncio.sleep(0)
                assert model[0] in loader.in_memory
                assert sum(TRUE_SIZES[name] for name in loader.in_memory) <= BUDGET

    async def scenario() -> None:
        loader = Loader()
        models = loader.residency()
        tasks: list[asyncio.Task[None]] = []
        for number, (key, act) in enumerate(events):
            if act == "fail":
                loader.faults[key] = ModelInvalid("broken")
            elif act == "pause":
                loader.faults.pop(key, None)
                for _ in range(number):
                    await asyncio.sleep(0)
            elif act == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            tasks.append(asyncio.create_task(user(models, loader, key, number % 7)))
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in said if not _allowed(error)]
        assert sorted(loader.in_memory) == sorted(models.loaded())
        assert models.used_bytes == sum(TRUE_SIZES[name] for name in loader.in_memory)
        await models.close()
        assert loader.in_memory == []

    asyncio.run(asyncio.wait_for(scenario(), timeout=10))


def _allowed(outcome: object) -> bool:
    return outcome is None or isinstance(outcome, asyncio.CancelledError | ModelInvalid | Cancelled)
