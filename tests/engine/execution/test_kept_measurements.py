"""A model that was measured on this machine is not measured again, and never wrongly so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine import Engine, EngineConfig
from engine.platform.measurements import DIRECTORY_VARIABLE, KeptMeasurement
from schema import Task
from tests.engine.conftest import TinyModel

TASK = Task.from_fields(
    model="tiny",
    messages=[{"role": "user", "content": "a task of which the answer is kept nowhere"}],
    generation_config={"max_new_tokens": 12, "do_sample": True},
    seed=5,
)
MARK = 16  # a size that is taken out of the kept file, so that its use shows


class Measured(NamedTuple):
    """A model that was measured, and the engine's card and answer then."""

    model: Path
    cache: Path
    card: dict[str, Any]
    answer: Any

    @property
    def file(self) -> Path:
        """What was kept of it."""
        (file,) = (self.cache / "measurements").iterdir()
        return file


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Measured:
    root = tmp_path_factory.mktemp("measured")
    model = Path(shutil.copytree(tiny_model("qwen2"), root / "model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DIRECTORY_VARIABLE, str(root / "cache"))
        return Measured(model, root / "cache", *started(model))


@pytest.fixture
def measured(once: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The same, with a copy of what was kept."""
    cache = Path(shutil.copytree(once.cache, tmp_path / "cache"))
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(cache))
    return once._replace(cache=cache)


def started(model: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """The card of an engine, and the answer to a task."""
    settings = {"dtype": "float32", "threads": 1, "prefill_chunk": 16, "max_sequences": 8}
    config = EngineConfig(model=str(model), model_id="tiny", **settings | options)  # type: ignore[arg-type]
    with closing(Engine(config)) as engine:
        return engine.card(), engine.run_blocking(TASK)["choices"]


def change(file: Path, how: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    how(data)
    file.write_text(json.dumps(data))


def mark(data: dict[str, Any]) -> None:
    for kind in ("decode", "prefill"):
        data["result"]["batch_sizes"][kind].remove(MARK)


def is_marked(card: dict[str, Any]) -> bool:
    return MARK not in card["batch_sizes"]["decode"]


def test_a_second_start_takes_what_the_first_has_measured(measured: Measured) -> None:
    assert measured.file.suffix == ".json"  # and no part of one is left
    assert not is_marked(measured.card)
    change(measured.file, mark)
    card, answer = started(measured.model)
    assert is_marked(card)
    assert answer == measured.answer


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"threads": 2}])
def test_other_settings_are_measured(options: dict[str, Any], measured: Measured) -> None:
    change(measured.file, mark)
    assert not is_marked(started(measured.model, **options)[0])
    assert len(list((measured.cache / "measurements").iterdir())) == 2


def test_other_files_are_measured(measured: Measured) -> None:
    change(measured.file, mark)
    weights = measured.model / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # of the same size
        assert not is_marked(started(measured.model)[0])
    finally:
        weights.write_bytes(before)


def test_another_environment_is_measured(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(measured.file, mark)
    monkeypatch.setenv("ONEDNN_SOMETHING", "1")
    assert not is_marked(started(measured.model)[0])


def _wrong_bits(data: dict[str, Any]) -> None:
    mark(data)
    data["result"]["bits"] = "0" * 64


def _no_sizes(data: dict[str, Any]) -> None:
    data["result"]["batch_sizes"]["decode"] = "many"


@pytest.mark.parametrize("how", [_wrong_bits, _no_sizes])
def test_what_is_not_right_is_measured_again(
    how: Callable[[dict[str, Any]], None], measured: Measured
) -> None:
    right = json.loads(measured.file.read_text())["result"]["bits"]
    change(measured.file, how)
    assert started(measured.model) == (measured.card, measured.answer)
    assert json.loads(measured.file.read_text())["result"]["bits"] == right


def test_nothing_is_kept_where_it_is_switched_off(measured: Measured) -> None:
    measured.file.unlink()
    assert started(measured.model, keep_measurements=False)[1] == measured.answer
    assert not list((measured.cache / "measurements").iterdir())


# --- The files, without a model ------------------------------------------------------------------


def kept(directory: Path, digest: str = "of the files", **depends_on: Any) -> KeptMeasurement:
    return KeptMeasurement(depends_on, lambda: digest, directory)


def test_it_is_recalled_for_exactly_the_same_only(tmp_path: Path) -> None:
    result = {"sizes": (1, 2), "seconds": {4: 0.5}}
    kept(tmp_path, cpu="one", threads=2).keep(result)
    assert kept(tmp_path, cpu="one", threads=2).recall() == {
        "sizes": [1, 2],
        "seconds": {"4": 0.5},
    }
    assert kept(tmp_path, cpu="another", threads=2).recall() is None
    assert kept(tmp_path, cpu="one", threads=1).recall() is None
    assert kept(tmp_path, cpu="one").recall() is None
    assert kept(tmp_path, "of others", cpu="one", threads=2).recall() is None


def test_a_name_that_is_the_same_by_accident_is_not_enough(tmp_path: Path) -> None:
    kept(tmp_path, cpu="one").keep(1)
    (file,) = (tmp_path / "measurements").iterdir()
    change(file, lambda data: data["depends_on"].update(cpu="another"))
    assert kept(tmp_path, cpu="one").recall() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b'{"depends_on": 1}'])
def test_a_damaged_file_counts_as_none(content: bytes, tmp_path: Path) -> None:
    kept(tmp_path, cpu="one").keep(1)
    (file,) = (tmp_path / "measurements").iterdir()
    file.write_bytes(content)
    assert kept(tmp_path, cpu="one").recall() is None
    kept(tmp_path, cpu="one").keep(2)
    assert kept(tmp_path, cpu="one").recall() == 2


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    kept(blocked, cpu="one").keep(1)
    assert kept(blocked, cpu="one").recall() is None


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    for number in range(300):
        kept(tmp_path, number=number).keep(number)
    assert len(list((tmp_path / "measurements").iterdir())) < 300
    assert kept(tmp_path, number=299).recall() == 299
