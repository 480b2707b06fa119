"""Tasks end: answered, refused, cancelled or failed; they release everything that they held."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import Engine, EngineConfig
from schema import GenerationConfig, StreamChunk, Task, TaskResponse
from schema.answers.response import collect
from schema.errors import EngineStopped, Overloaded, TaskArgsInvalid, TaskError, TaskExecutionError
from tests.engine.conftest import TinyModel

LONG = 100_000
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def endless_model(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that never ends an answer by itself, and has a long context."""
    directory = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(tiny_model("qwen2"), directory)
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        settings = json.loads(path.read_text()) | {"eos_token_id": None}
        if name == "config.json":
            settings["max_position_embeddings"] = 2 * LONG
        path.write_text(json.dumps(settings))
    return directory


@pytest.fixture
def make_engine(endless_model: Path) -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def make(**options: Any) -> Engine:
        settings: dict[str, Any] = {"model": str(endless_model), "dtype": "float32", "threads": 1}
        settings |= {"prefill_chunk": 16, "kv_cache_tokens": 3 * LONG, "max_sequences": 8}
        settings["max_exclusive_tokens"] = 10 * LONG
        engines.append(Engine(EngineConfig(**settings | options)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def task(text: str = "Hi", *, seed: int = 0, **settings: Any) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": 20, "do_sample": True} | settings,
        seed=seed,
    )


def content(response: TaskResponse) -> list[str]:
    return [choice["message"]["content"] for choice in response["choices"]]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def idle(engine: Engine) -> None:
    """Wait until nothing runs; then everything must have been released."""

    def nothing_runs() -> bool:
        stats = engine.stats()
        return not (stats["waiting"] or stats["running"] or stats["running_sequences"]) and (
            stats["kv_pages_free"] + stats["kv_pages_kept"] == stats["kv_pages"]
        )

    await until(nothing_runs)
    engine._loop.scheduler.check_integrity()


async def started(engine: Engine, wanted: Task) -> asyncio.Task[TaskResponse]:
    """A task in the background, on an engine without others, once it runs."""
    await idle(engine)
    running = asyncio.create_task(engine.run(wanted))
    await until(lambda: engine.stats()["running"] == 1)
    return running


# --- Refused --------------------------------------------------------------------------------


def test_a_task_that_can_never_fit_is_refused_with_the_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_cache_tokens=1024)
    too_much: list[dict[str, Any]] = [
        {"max_new_tokens": 2000},
        {"max_new_tokens": 300, "num_return_sequences": 4},
    ]
    for settings in too_much:
        with pytest.raises(TaskArgsInvalid) as caught:
            engine.run_blocking(task(**settings))
        assert caught.value.param == "generation_config.max_new_tokens"
        assert str(settings["max_new_tokens"]) in str(caught.value)
        assert "1024" in str(caught.value)
    assert len(content(engine.run_blocking(task(max_new_tokens=20, num_return_sequences=4)))) == 4


@pytest.mark.parametrize("name", ["num_return_sequences", "num_beams"])
def test_more_sequences_than_places(name: str, make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=3)
    settings: dict[str, Any] = {name: 4}
    with pytest.raises(TaskArgsInvalid, match="at most 3") as caught:
        engine.run_blocking(task(**settings))
    assert caught.value.param == f"generation_config.{name}"


def test_an_answer_longer_than_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine(context_length=100)
    with pytest.raises(TaskArgsInvalid, match="at most 98") as caught:
        engine.run_blocking(task("Hi", max_new_tokens=99))
    assert caught.value.param == "generation_config.max_new_tokens"
    with pytest.raises(TaskArgsInvalid) as caught:
        engine.run_blocking(task("x" * 100, max_new_tokens=1))
    assert caught.value.param == "messages"
    # Exactly full is allowed, and without max_new_tokens the answer takes what fits.
    asked = Task.from_fields(model="tiny", messages=[{"role": "user", "content": "x" * 80}])
    assert engine.run_blocking(asked)["usage"]["completion_tokens"] == 20
    assert engine.run_blocking(task("Hi", max_new_tokens=98))["usage"]["total_tokens"] == 100


def test_the_operators_default_of_an_answers_length(make_engine: MakeEngine) -> None:
    asked = Task.from_fields(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    usual, engine = make_engine(), make_engine(default_max_new_tokens=300)
    assert usual.run_blocking(asked)["usage"]["completion_tokens"] == 256
    assert engine.run_blocking(asked)["usage"]["completion_tokens"] == 300
    assert engine.run_blocking(task("Hi", max_new_tokens=9))["usage"]["completion_tokens"] == 9
    # Answers to the same task differ, so the fingerprints do.
    assert engine.card()["system_fingerprint"] != usual.card()["system_fingerprint"]


def test_several_greedy_answers_of_a_greedy_model(make_engine: MakeEngine) -> None:
    asked = Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        generation_config={"num_return_sequences": 2},
    )
    engine = make_engine(max_sequences=1)
    chunks: list[StreamChunk] = []
    response = engine.run_blocking(asked, chunks.append)
    one = engine.run_blocking(asked.model_copy(update={"generation_config": GenerationConfig()}))
    assert content(response) == content(one) * 2
    assert [choice["index"] for choice in response["choices"]] == [0, 1]
    tokens = one["usage"]["completion_tokens"]
    assert response["usage"]["completion_tokens"] == 2 * tokens
    assert collect(chunks) == response


async def test_a_full_queue(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=1, max_waiting=1)
    expected = content(engine.run_blocking(task("second", seed=2)))
    first = await started(engine, task(max_new_tokens=LONG))
    second = asyncio.create_task(engine.run(task("second", seed=2)))
    await until(lambda: engine.stats()["waiting"] == 1)
    with pytest.raises(Overloaded) as caught:
        await engine.run(task("third"))
    assert caught.value.retry_after_s
    first.cancel()
    assert content(await second) == expected
    await idle(engine)


# --- Cancelled --------------------------------------------------------------------------------


async def test_a_cancelled_stream_frees_its_pages_and_changes_no_other(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    other = task("the other", max_new_tokens=200, seed=3)
    expected = content(engine.run_blocking(other))
    doomed = [
        asyncio.create_task(engine.run(task(f"doomed {n}", max_new_tokens=LONG // 3, **settings)))
        for n, settings in enumerate(({}, {"num_return_sequences": 2}, {"num_beams": 3}))
    ]
    await until(lambda: engine.stats()["running"] == 3)
    running = asyncio.create_task(engine.run(other))
    await until(lambda: engine.stats()["running"] == 4)
    for one in doomed:
        one.cancel()
    assert content(await running) == expected
    await idle(engine)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2, "do_sample": False}])
async def test_leaving_a_stream_early(make_engine: MakeEngine, settings: dict[str, Any]) -> None:
    engine = make_engine()
    if settings:  # beams report nothing before the end: disconnect while they are searched
        searching = await started(engine, task(max_new_tokens=5000, **settings))
        searching.cancel()
    else:
        async with aclosing(engine.stream(task(max_new_tokens=LONG))) as stream:
            async for chunk in stream:
                assert chunk["choices"]
                break
    await idle(engine)
    assert content(await engine.run(task())) == content(engine.run_blocking(task()))


async def test_cancelled_while_waiting(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=1)
    first = await started(engine, task(max_new_tokens=LONG))
    second = asyncio.create_task(engine.run(task("second")))
    await until(lambda: engine.stats()["waiting"] == 1)
    second.cancel()
    await until(lambda: engine.stats()["waiting"] == 0)
    first.cancel()
    await idle(engine)


async def test_an_event_loop_that_ends_takes_its_tasks_along(make_engine: MakeEngine) -> None:
    """The engine outlives the loop whose tasks it runs."""
    engine = make_engine()

    async def leave() -> None:
        stream = engine.stream(task(max_new_tokens=LONG))
        await anext(aiter(stream))

    await asyncio.to_thread(asyncio.run, leave())
    await idle(engine)
    engine.check_health()


async def test_an_exception_in_the_callback_cancels_the_task(make_engine: MakeEngine) -> None:
    engine = make_engine()

    def callback(chunk: object) -> NoReturn:
        raise LookupError("the callback's own")

    with pytest.raises(LookupError, match="the callback's own"):
        await asyncio.to_thread(engine.run_blocking, task(max_new_tokens=LONG), callback)
    await idle(engine)


# --- Failed --------------------------------------------------------------------------------


def with_nan(source: Path, directory: Path, tensor: str, row: int) -> Path:
    """A copy of a model with one row of a weight broken."""
    shutil.copytree(source, directory)
    weights = load_file(directory / "model.safetensors")
    weights[tensor][row] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": False}, {"num_beams": 2, "do_sample": False}]
)
def test_logits_that_are_not_numbers(
    settings: dict[str, Any], make_engine: MakeEngine, endless_model: Path, tmp_path: Path
) -> None:
    broken = with_nan(endless_model, tmp_path / "model", "lm_head.weight", 7)
    engine = make_engine(model=str(broken))
    for _ in range(2):
        with pytest.raises(TaskExecutionError, match="not numbers"):
            engine.run_blocking(task(**settings))
    engine.check_health()


async def test_a_task_that_breaks_fails_alone(
    make_engine: MakeEngine, endless_model: Path, tmp_path: Path
) -> None:
    """One word makes the model overflow. Tasks that share its forwards must not be affected."""
    row = 57  # "Z" in the byte level alphabet
    broken = with_nan(endless_model, tmp_path / "model", "model.embed_tokens.weight", row)
    engine = make_engine(model=str(broken))
    assert engine.card()["continuous_batching"]
    assert engine._loaded.tokenizer("Z")["input_ids"] == [row]
    good = [task(f"good {i}", seed=i, top_k=3, num_beams=1 + i % 2) for i in range(5)]
    expected = [content(engine.run_blocking(one)) for one in good]
    bad = [task("Z"), task("a Z", num_return_sequences=2), task("bad Z", num_beams=2)]
    wanted = [good[0], bad[0], good[1], bad[1], *good[2:4], bad[2], *good[4:]]
    results = await asyncio.gather(*map(engine.run, wanted), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    assert [type(error) for error in failed] == [TaskExecutionError] * 3
    assert [content(r) for r in results if not isinstance(r, BaseException)] == expected
    await idle(engine)
    # Its pages hold NaN now; the next owner reads only what it has written.
    for _ in range(3):
        assert [content(engine.run_blocking(one)) for one in good] == expected


# --- Closed --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2, "do_sample": False}])
async def test_closing_ends_what_runs_and_what_waits(
    make_engine: MakeEngine, settings: dict[str, Any]
) -> None:
    engine = make_engine(max_sequences=settings.get("num_beams", 1))
    running = await started(engine, task(max_new_tokens=20_000, **settings))
    waiting = [asyncio.create_task(engine.run(task(f"waiting {i}"))) for i in range(3)]
    await until(lambda: engine.stats()["waiting"] == 3)
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(running, *waiting, return_exceptions=True)
    assert [type(result) for result in results] == [EngineStopped] * 4
    await idle(engine)
    engine.close()
    with pytest.raises(EngineStopped, match="stopped"):
        engine.check_health()
    with pytest.raises(EngineStopped, match="stopped"):
        await engine.run(task())


def test_every_submission_ends_when_the_engine_is_closed_under_it(
    make_engine: MakeEngine,
) -> None:
    for _ in range(3):
        engine = make_engine()
        ends: list[object] = []

        def client(engine: Engine = engine, ends: list[object] = ends) -> None:
            while not isinstance(ends[-1] if ends else None, TaskError):
                try:
                    ends.append(engine.run_blocking(task(max_new_tokens=3)))
                except TaskError as error:
                    ends.append(error)

        clients = [threading.Thread(target=client, daemon=True) for _ in range(4)]
        for thread in clients:
            thread.start()
        time.sleep(0.05)
        engine.close()
        for thread in clients:
            thread.join(timeout=60)
            assert not thread.is_alive()
        assert any(isinstance(end, TaskExecutionError) for end in ends)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_the_death_of_the_loop_is_reported(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    running = await started(engine, task(max_new_tokens=LONG))
    broken = RuntimeError("no such page")
    monkeypatch.setattr(engine._loop.scheduler, "decoding", lambda: (_ for _ in ()).throw(broken))
    with pytest.raises(TaskExecutionError, match="no such page"):
        await running
    await until(lambda: not engine._loop.thread.is_alive())
    with pytest.raises(TaskExecutionError, match="no such page"):
        engine.check_health()
    with pytest.raises(TaskExecutionError, match="no such page"):
        await engine.run(task())
    await idle(engine)
    engine.close()
