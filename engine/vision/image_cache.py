"""A bounded cache of what has been made of images: least recently used goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What knows how much memory it takes."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the cache is charged for it."""
        ...


Item = TypeVar("Item", bound=Sized)


class ImageCache(Generic[Item]):
    """Items by key, together of at most so many bytes. Thread safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._items: OrderedDict[Hashable, Item] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Item | None:
        """The item of a key, which counts as used; None if it is not here."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def put(self, key: Hashable, item: Item) -> None:
        """Keep an item, unless it is larger than the whole cache."""
        with self._lock:
            if key in self._items or item.num_bytes > self._max_bytes:
                return
            self._items[key] = item
            self._num_bytes += item.num_bytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._items.popitem(last=False)
                self._num_bytes -= oldest.num_bytes
