"""The cache of images: what it keeps, what it drops, and several threads at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from engine.vision.image_cache import ImageCache


@dataclass(frozen=True)
class _Item:
    num_bytes: int


def test_the_least_recently_used_items_go_until_a_new_one_has_room() -> None:
    cache: ImageCache[_Item] = ImageCache(100)
    for key in "abc":
        cache.put(key, _Item(30))
    cache.get("a")
    cache.put("d", _Item(60))
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, False, True]


def test_an_item_larger_than_the_cache_is_not_kept_and_drops_nothing() -> None:
    cache: ImageCache[_Item] = ImageCache(100)
    cache.put("a", _Item(100))
    cache.put("b", _Item(101))
    assert cache.get("a") == _Item(100)
    assert cache.get("b") is None


def test_the_first_item_of_a_key_stays() -> None:
    cache: ImageCache[_Item] = ImageCache(100)
    cache.put("a", _Item(1))
    cache.put("a", _Item(2))
    assert cache.get("a") == _Item(1)


def test_threads_share_a_cache() -> None:
    cache: ImageCache[_Item] = ImageCache(100)
    failures: list[Exception] = []

    def work(seed: int) -> None:
        try:
            for number in range(3_000):
                key = (number * seed) % 37
                cache.put(key, _Item(key))
                assert cache.get(key) in (None, _Item(key))
        except (AssertionError, LookupError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[seed]) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
