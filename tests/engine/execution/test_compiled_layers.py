"""Compiled layers: the tokens of `generate`, the same bits alone and under load, and ways out."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from engine import Engine, EngineConfig
from engine.execution.modules import int8_kernel
from engine.execution.modules.compiled_layers import packages
from tests.engine.core.test_generate_fallback import (
    SETTINGS,
    TEXT,
    answers,
    generated,
    save_architecture,
)
from tests.engine.execution.test_experts import check_under_load, tasks

# One kind of layer; windows and caps in every second one; norms of heads, and biases.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 3.0,
    },
    "qwen3": {"head_dim": 16, "attention_bias": True},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache directory."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_TASK_SERVE_CACHE", str(directory))
        yield directory


def engine_of(directory: Path, **options: Any) -> Engine:
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    return Engine(EngineConfig(model=str(directory), **settings | {"compile": "on"} | options))


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_what_generate_writes(kind: str, tmp_path: Path) -> None:
    save_architecture(kind, KINDS[kind], tmp_path)
    with closing(engine_of(tmp_path)) as engine:
        card = engine.card()
        assert card["compiled"]["layers"] == 2
        for text in ("Hi", TEXT):
            for settings in SETTINGS:
                assert answers(engine, text, settings) == generated(tmp_path, text, settings)
    with closing(engine_of(tmp_path, compile="off")) as engine:
        assert engine.card()["compiled"] is None
        assert engine.card()["system_fingerprint"] != card["system_fingerprint"]


@pytest.mark.parametrize("bits", [None, 8])
async def test_alone_and_under_load(bits: int | None, tmp_path: Path) -> None:
    save_architecture("llama", KINDS["llama"], tmp_path)
    options = {"dtype": "bfloat16", "threads": 2, "quantize_bits": bits}
    with closing(engine_of(tmp_path, **options)) as engine:
        if bits is None or int8_kernel.has_kernel():
            assert engine.card()["compiled"]
        await check_under_load(engine, tasks(12, bits))


def test_the_next_start_compiles_nothing(tmp_path: Path, cache: Path) -> None:
    """Nor does a model with the same layers and other weights."""
    save_architecture("llama", KINDS["llama"], tmp_path)
    with closing(engine_of(tmp_path)) as engine:
        fingerprint = engine.card()["system_fingerprint"]
    found = {path: path.stat().st_mtime_ns for path in cache.rglob("*.pt2")}
    with closing(engine_of(tmp_path)) as engine:
        assert engine.card()["system_fingerprint"] == fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.pt2")} == found


def test_a_closed_engine_leaves_nothing(tmp_path: Path) -> None:
    """Of a model that is unloaded no layer stays in memory."""
    save_architecture("llama", KINDS["llama"], tmp_path)
    engine = engine_of(tmp_path)
    seen = ref(engine._loop.assembly.loaded.model.get_decoder().layers[0].self_attn)
    engine.close()
    del engine
    gc.collect()
    assert seen() is None


def test_a_damaged_file_is_made_again(tmp_path: Path, cache: Path) -> None:
    save_architecture("llama", KINDS["llama"], tmp_path)
    engine_of(tmp_path).close()
    for path in cache.rglob("*.pt2"):
        path.write_bytes(path.read_bytes()[:1000])
    with closing(engine_of(tmp_path)) as engine:
        assert engine.card()["compiled"]["layers"] == 2
        assert answers(engine, TEXT, SETTINGS[0]) == generated(tmp_path, TEXT, SETTINGS[0])


def test_code_that_computes_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here that of a layer with another activation, in the place of the layer's own."""
    other, own, cache = (tmp_path / name for name in ("other", "own", "cache"))
    monkeypatch.setenv("GPT_TASK_SERVE_CACHE", str(cache))
    for directory, activation in ((other, "gelu"), (own, "silu")):
        directory.mkdir()
        save_architecture("llama", {"hidden_act": activation}, directory)
    engine_of(other).close()
    (wrong,) = cache.rglob("*.pt2")
    engine_of(own).close()
    (right,) = set(cache.rglob("*.pt2")) - {wrong}
    shutil.copy(wrong, right)
    with closing(engine_of(own)) as engine:
        assert engine.card()["compiled"] is None
        assert answers(engine, TEXT, SETTINGS[0]) == generated(own, TEXT, SETTINGS[0])


def test_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPT_TASK_SERVE_CACHE", str(tmp_path / "file"))
    save_architecture("llama", KINDS["llama"], tmp_path)
    with closing(engine_of(tmp_path)) as engine:
        assert engine.card()["compiled"]["layers"] == 2
        assert answers(engine, TEXT, SETTINGS[0]) == generated(tmp_path, TEXT, SETTINGS[0])


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packages.compiler_version.cache_clear()
    try:
        save_architecture("llama", KINDS["llama"], tmp_path)
        with closing(engine_of(tmp_path)) as engine:
            card = engine.card()
            assert card["continuous_batching"]
            assert card["compiled"] is None
            text = TEXT[: random.Random(0).randrange(1, len(TEXT))]
            assert answers(engine, text, SETTINGS[0]) == generated(tmp_path, text, SETTINGS[0])
    finally:
        packages.compiler_version.cache_clear()
