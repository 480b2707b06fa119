"""Images of several tasks in one forward of the vision tower: the same bits as alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Engine, EngineConfig
from engine.execution.kv_cache import bits_of
from engine.execution.measuring import tile_counts
from engine.execution.measuring.tile_counts import find_tile_counts
from engine.loading.families.processors import PIXELS
from engine.platform.measurements import DIRECTORY_VARIABLE
from engine.vision.features import Features, Vision
from engine.vision.preprocessor import ImagePreprocessor, PreparedImage
from engine.vision.tiles import TileCounts
from schema import Task, TaskExecutionError
from schema.answers.response import collect
from tests.engine.conftest import TinyModel
from tests.engine.models.tiny_internvl import save_original
from tests.engine.sampling.test_generate_oracle import drawing
from tests.engine.vision.vision_oracle import text, user

DEMO = Path(__file__).parents[3] / "demo" / "model"
WAIT_S = 60
MODELS = ("demo", "internvl", "aya_vision")


@pytest.fixture(scope="session")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiles") / "internvl"
    save_original(directory, "qwen2", "300M")
    return directory


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, internvl: Path, tiny_model: TinyModel) -> Path:
    """The directory of a model whose images become tiles."""
    if request.param == "aya_vision":
        return tiny_model("aya_vision")
    return {"demo": DEMO, "internvl": internvl}[request.param]


@pytest.fixture
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers of tiles that agree are used, however long they take."""
    monkeypatch.setattr(tile_counts, "_CLEARLY", float("inf"))
    monkeypatch.setattr(tile_counts, "_SLOW_S", float("inf"))


def config(model: Path, **options: Any) -> EngineConfig:
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "max_sequences": 8}
    return EngineConfig(model=str(model), model_id="tiny", **settings | options)


def picture(seed: int, size: tuple[int, int] = (40, 40)) -> dict[str, str]:
    return {"type": "image", "base64": drawing(*size, seed=seed)}


def task(*images: dict[str, str], seed: int = 0) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[user(*images, text("What is it?"))],
        generation_config={"max_new_tokens": 12, "do_sample": True},
        seed=seed,
    )


class Forwards:
    """The forwards of a vision tower; none begins before so many tasks are there.

    Attributes:
        tiles: of each forward.
        before: called with the arguments of each forward.
    """

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch, *, tasks: int) -> None:
        self.tiles: list[int] = []
        self.before: Callable[[Mapping[str, np.ndarray]], object] = lambda arrays: None
        self._engine = engine
        self._tasks = tasks
        vision, scheduler = vision_of(engine), engine._loop.scheduler
        encode, admit = vision.features_of, scheduler.admit

        def features_of(arrays: Mapping[str, np.ndarray]) -> Features:
            self.tiles.append(len(arrays[PIXELS]))
            self.before(arrays)
            return encode(arrays)

        def admit_all() -> Any:
            if not self.tiles:
                self._wait()
            return admit()

        patch.setattr(vision, "features_of", features_of)
        patch.setattr(scheduler, "admit", admit_all)

    def _wait(self) -> None:
        """Until all tasks are there; on the engine's thread."""
        until = time.monotonic() + WAIT_S
        while num_tasks(self._engine) < self._tasks and time.monotonic() < until:
            time.sleep(0.001)
        self._engine._loop._take_submissions(wait=False)


def num_tasks(engine: Engine) -> int:
    """Tasks that an engine has."""
    stats = engine.stats()
    return stats["waiting"] + stats["running"]


def vision_of(engine: Engine) -> Vision:
    return engine._loop.assembly.batching.runner.vision


def tiles_of(engine: Engine) -> TileCounts:
    tiles = engine._loop.assembly.batching.tiles
    assert tiles is not None
    return tiles


async def outcome(engine: Engine, one: Task) -> Any:
    try:
        return collect([chunk async for chunk in engine.stream(one)])["choices"]
    except Exception as error:  # noqa: BLE001 - it is compared
        return error


async def alone_on(model: Path, tasks: list[Task], **options: Any) -> list[Any]:
    """What becomes of tasks that run one after the other, in an engine of their own."""
    with closing(Engine(config(model, **options))) as engine:
        return [await outcome(engine, one) for one in tasks]


async def together(engine: Engine, tasks: list[Task]) -> list[Any]:
    """What becomes of tasks that come in this order and begin together (`Forwards`)."""
    begun = []
    for one in tasks:
        before = num_tasks(engine)
        begun.append(asyncio.create_task(outcome(engine, one)))
        while num_tasks(engine) == before and not begun[-1].done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return await asyncio.gather(*begun)


@pytest.mark.usefixtures("always_worth_it")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_same_bits_alone_and_among_five_others(
    dtype: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task(picture(n, (80, 30)), seed=n) for n in range(6)]
    alone = await alone_on(model, tasks, dtype=dtype)
    with closing(Engine(config(model, dtype=dtype))) as engine:
        forwards = Forwards(engine, monkeypatch, tasks=6)
        assert await together(engine, tasks) == alone
        assert len(forwards.tiles) < 6  # some share one
        assert set(forwards.tiles) <= set(tiles_of(engine).counts)
        assert engine.stats()["images_encoded"] == 6


@pytest.mark.usefixtures("always_worth_it")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_features_of_an_image_are_the_same_bits(dtype: str, model: Path) -> None:
    settings = config(model, dtype=dtype, image_cache_bytes=0)
    prepare = ImagePreprocessor(settings)
    images = prepare([drawing(80, 30, seed=n) for n in range(6)], ["image"] * 6)
    with closing(Engine(settings)) as engine:
        vision = vision_of(engine)
        found = vision.encode_together(images, tiles_of(engine))
        assert len(found) > 1
        for image in images:
            if image.digest in found:
                alone = vision.features_of(image.arrays).tokens
                assert bits_of(found[image.digest].tokens) == bits_of(alone)
                assert len(alone) == image.num_tokens


@pytest.fixture
def engine(internvl: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine that encodes up to four images together."""

    def counts(vision: Vision, shape: tuple[int, ...], device: torch.device) -> TileCounts:
        return TileCounts(shape, (1, 2, 3, 4))

    monkeypatch.setattr("engine.execution.measuring.measurement.find_tile_counts", counts)
    with closing(Engine(config(internvl, keep_measurements=False))) as made:
        yield made


async def test_more_images_than_a_forward_holds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = Forwards(engine, monkeypatch, tasks=6)
    await together(engine, [task(picture(2 * n), picture(2 * n + 1)) for n in range(6)])
    assert forwards.tiles == [4, 4, 4]


async def test_an_image_that_fails_ends_its_task_only(
    engine: Engine, internvl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task(picture(n), seed=n) for n in range(3)]
    alone = await alone_on(internvl, tasks)
    guilty = ImagePreprocessor(config(internvl))([picture(9)["base64"]], ["image"])[0]
    forwards = Forwards(engine, monkeypatch, tasks=4)

    def fail(arrays: Mapping[str, np.ndarray]) -> None:
        if any((tile == guilty.arrays[PIXELS][0]).all() for tile in arrays[PIXELS]):
            raise RuntimeError("a picture that the tower cannot take")

    forwards.before = fail
    first, error, *others = await together(engine, [tasks[0], task(picture(9)), *tasks[1:]])
    assert isinstance(error, TaskExecutionError)
    assert [first, *others] == alone
    assert forwards.tiles == [4, 1, 1, 1, 1]


async def test_a_task_that_is_cancelled_disturbs_no_other(
    engine: Engine, internvl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task(picture(n), seed=n) for n in range(3)]
    alone = await alone_on(internvl, tasks)
    forwards = Forwards(engine, monkeypatch, tasks=4)
    loop = asyncio.get_running_loop()
    leaving = loop.create_task(outcome(engine, task(picture(9))))

    def leave(arrays: Mapping[str, np.ndarray]) -> None:
        if len(arrays[PIXELS]) > 1:
            asyncio.run_coroutine_threadsafe(left(), loop).result(WAIT_S)

    async def left() -> None:
        leaving.cancel()
        await asyncio.wait([leaving])

    forwards.before = leave
    assert await together(engine, tasks) == alone
    assert leaving.cancelled()
    assert forwards.tiles == [4]


async def test_an_image_is_encoded_once_for_tasks_that_wait_together(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task with no further image waits a step, and finds what the others have computed."""
    forwards = Forwards(engine, monkeypatch, tasks=6)
    seen = [[0], [0, 1, 0], [1, 0], [2], [0], [3]]
    await together(engine, [task(*map(picture, seeds)) for seeds in seen])
    assert forwards.tiles == [2, 1, 1]
    assert engine.stats()["images_encoded"] == 4


def prepared(tiles: int, *, side: int = 4, more: bool = False, name: str = "") -> PreparedImage:
    arrays: dict[str, np.ndarray] = {PIXELS: np.zeros((tiles, 3, side, side), np.float32)}
    arrays |= {"image_sizes": np.zeros((1, 2))} if more else {}
    return PreparedImage(arrays, "", f"{tiles} {side} {more} {name}".encode(), tiles)


def test_which_images_share_a_forward() -> None:
    tiles = TileCounts((3, 4, 4), (1, 2, 4, 6))
    one, two, four = prepared(1), prepared(2), prepared(4)
    of_three, other, gridded = prepared(3), prepared(1, side=8), prepared(1, more=True)
    assert tiles.forwards([one, of_three, two, other, one, gridded]) == [[one, two, one]]
    assert tiles.forwards([four, two, two, four]) == [[four, two], [two, four]]
    assert tiles.forwards([two, one, four]) == []  # not in this order: 3 and 7, 5
    assert tiles.forwards([one]) == tiles.forwards([]) == []
    assert tiles.fit([four, one])
    assert not any(map(tiles.fit, ([four, two, one], [of_three], [other], [gridded])))


def test_a_tower_that_mixes_tiles_encodes_them_one_by_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision, shape = vision_of(engine), (3, 32, 32)
    own = vision.features_of

    def mixed(arrays: Mapping[str, np.ndarray]) -> Features:
        pixels = arrays[PIXELS]
        return own({PIXELS: pixels + np.float32(1e-3) * pixels.mean()})

    monkeypatch.setattr(vision, "features_of", mixed)
    assert find_tile_counts(vision, shape, torch.device("cpu")) is None

    def failing(arrays: Mapping[str, np.ndarray]) -> Features:
        raise RuntimeError("several tiles are too many")

    monkeypatch.setattr(vision, "features_of", failing)
    assert find_tile_counts(vision, shape, torch.device("cpu")) is None


@pytest.mark.usefixtures("always_worth_it")
def test_counts_are_kept_and_a_sample_of_them_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))

    def counts() -> tuple[int, ...]:
        with closing(Engine(config(DEMO))) as made:
            return tiles_of(made).counts

    measured = counts()
    (file,) = (tmp_path / "measurements").iterdir()
    kept = json.loads(file.read_text())
    kept["result"]["tiles"]["counts"] = [1, 2]
    file.write_text(json.dumps(kept))
    assert counts() == (1, 2) != measured
    kept["result"]["tile_bits"] = "0" * 64
    file.write_text(json.dumps(kept))
    assert counts() == measured
