"""Model caches: what is kept, under which key, and that what is dropped is freed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from gpt_task.cache import MemoryModelCache, ModelCache
from gpt_task.inference import run_task
from gpt_task.inference.key import generate_model_key
from gpt_task.models import GPTTaskArgs

MESSAGES = [{"role": "user", "content": "one task"}]


class OwnCache(ModelCache[Any]):
    """A cache as a user may write it: only what the protocol requires."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.loads: list[str] = []

    def load(self, key: str, model_loader: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.loads.append(key)
            self.kept[key] = model_loader()
        return self.kept[key]

    def clear(self) -> None:
        self.kept.clear()


def run(model: str, cache: ModelCache[Any] | None, **fields: Any) -> Any:
    fields = {"dtype": "float32", "generation_config": {"max_new_tokens": 4}} | fields
    return run_task(model=model, messages=MESSAGES, model_cache=cache, **fields)


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


def test_a_model_is_loaded_once(text_model: str) -> None:
    cache = OwnCache()
    first = run(text_model, cache)
    (model,) = cache.kept.values()
    assert run(text_model, cache) == first
    assert run(text_model, cache, generation_config={"max_new_tokens": 4}, seed=3) == first
    assert len(cache.loads) == 1
    assert list(cache.kept.values()) == [model]
    assert run(text_model, None) == first


def test_the_key_is_what_the_model_is_loaded_by(text_model: str) -> None:
    cache = OwnCache()
    run(text_model, cache)
    run(text_model, cache, dtype="bfloat16")
    assert len(set(cache.loads)) == 2

    def key(**fields: Any) -> str:
        return generate_model_key(GPTTaskArgs(**({"model": "m", "messages": MESSAGES} | fields)))

    others: list[dict[str, Any]] = [
        {"model": "n"},
        {"dtype": "float16"},
        {"quantize_bits": 4},
        {"quantize_bits": 8},
    ]
    assert len({key(), *(key(**other) for other in others)}) == 5
    assert key(seed=1) == key(messages=[]) == key()


def test_memory_model_cache_keeps_the_last_ones() -> None:
    cache = MemoryModelCache(max_size=2)
    loaded: list[str] = []

    def load(key: str) -> str:
        def loader() -> str:
            loaded.append(key)
            return f"model {key}"

        kept: str = cache.load(key, loader)
        return kept

    assert [load(key) for key in "abab"] == ["model a", "model b"] * 2
    assert loaded == ["a", "b"]
    load("c")  # a goes: it was loaded first
    load("b")
    load("a")
    assert loaded == ["a", "b", "c", "a"]
    cache.clear()
    load("a")
    assert loaded[-1] == "a"
    assert len(loaded) == 5
    with pytest.raises(ValueError, match="max_size"):
        MemoryModelCache(max_size=0)


def test_room_is_made_before_the_next_model_is_loaded(text_model: str) -> None:
    before = engine_threads()
    cache = MemoryModelCache()
    run(text_model, cache)
    (first,) = engine_threads() - before
    alive: list[bool] = []

    def load() -> str:
        alive.append(first.is_alive())
        return "another"

    cache.load("another", load)
    assert alive == [False]


def models() -> list[object]:
    """All models of this process; other tests may have left some."""
    return [thing for thing in gc.get_objects() if type(thing).__name__ == "Qwen2ForCausalLM"]


@pytest.mark.parametrize("kind", [MemoryModelCache, OwnCache])
def test_a_dropped_model_is_freed(text_model: str, kind: Callable[[], ModelCache[Any]]) -> None:
    before = engine_threads()
    others = {id(model) for model in models()}
    cache = kind()
    run(text_model, cache)
    weights = [weakref.ref(model) for model in models() if id(model) not in others]
    assert weights
    assert engine_threads() - before
    cache.clear()
    assert engine_threads() == before
    assert all(weight() is None for weight in weights)


def test_without_a_cache_nothing_stays(text_model: str) -> None:
    before = engine_threads()
    run(text_model, None)
    with pytest.raises(ValueError, match="top_p"):
        run(text_model, None, generation_config={"top_p": 3})
    assert engine_threads() == before
