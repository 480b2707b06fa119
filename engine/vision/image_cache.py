"""A bounded cache of prepared or encoded images; the least recently used one is evicted first."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from cachetools import LRUCache


class Sized(Protocol):
    """An object that knows how much memory it takes."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the cache is charged for it."""
        ...


Item = TypeVar("Item", bound=Sized)


class ImageCache(Generic[Item]):
    """Items by key, of at most ``max_bytes`` together. Thread safe."""

    def __init__(self, max_bytes: int) -> None:
        self._items: LRUCache[Hashable, Item] = LRUCache(max_bytes, getsizeof=_num_bytes)
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        """Whether it has an item of a key, which does not count as used."""
        with self._lock:
            return key in self._items

    def get(self, key: Hashable) -> Item | None:
        """The item of a key, which then counts as used; None if it is not in the cache."""
        with self._lock:
            return self._items.get(key)

    def put(self, key: Hashable, item: Item) -> None:
        """Keep an item, unless it is larger than the whole cache."""
        with self._lock:
            if key not in self._items and item.num_bytes <= self._items.maxsize:
                self._items[key] = item


def _num_bytes(item: Sized) -> int:
    return item.num_bytes
