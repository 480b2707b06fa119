"""Which files the kernel is asked to read; whether it reads them is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import EngineConfig
from engine.loading.reading.read_ahead import read_ahead


def test_the_weights_of_a_directory(tmp_path: Path) -> None:
    for name, size in {"model-1.safetensors": 5000, "model-2.safetensors": 70, "x.bin": 9}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert read_ahead(EngineConfig(model=str(tmp_path))) == 5070


def test_more_than_fits_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(1 << 43)  # 8 TiB, none of which is on the disk
    assert read_ahead(EngineConfig(model=str(tmp_path))) == 0


@pytest.mark.parametrize("model", ["somebody/has-never-been-downloaded", "plain-name"])
def test_what_is_not_here(model: str) -> None:
    assert read_ahead(EngineConfig(model=model)) == 0
