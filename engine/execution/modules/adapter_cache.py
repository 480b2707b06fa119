"""Which adapters are loaded: within a bound of bytes, the least recently used one out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from engine.execution.modules.lora import Loras
from engine.loading.adapters.adapter import Adapter


@dataclass
class _Place:
    """One adapter's: for how many running tasks it is there, and whether it is loaded yet."""

    users: int = 0
    loaded: bool = False


class AdapterCache:
    """The adapters of a model. Belongs to the engine's thread.

    A task reserves its adapter when it is admitted, and releases it at its end. In between it is
    not unloaded.

    Attributes:
        adapters: all that tasks may name, by name; read by other threads too.
        num_loads: how often one was loaded.
    """

    def __init__(self, adapters: Mapping[str, Adapter], loras: Loras, max_bytes: int) -> None:
        self.adapters = adapters
        self._loras = loras
        self._max_bytes = max_bytes
        self._places: OrderedDict[Adapter, _Place] = OrderedDict()  # the last used one at the end
        self.num_loads = 0

    @property
    def num_loaded(self) -> int:
        """How many have a place."""
        return len(self._places)

    @property
    def used_bytes(self) -> int:
        """What they take."""
        return sum(adapter.num_bytes for adapter in tuple(self._places))

    def reserve(self, adapter: Adapter | None) -> bool:
        """Make room for a task's adapter; False while adapters of running tasks take it all."""
        if adapter is None:
            return True
        if adapter not in self._places:
            free = self._max_bytes - self.used_bytes
            unused = [each for each, place in self._places.items() if not place.users]
            if free + sum(each.num_bytes for each in unused) < adapter.num_bytes:
                return False
            for each in unused:
                if free >= adapter.num_bytes:
                    break
                free += each.num_bytes
                self._drop(each)
            self._places[adapter] = _Place()
        self._places[adapter].users += 1
        self._places.move_to_end(adapter)
        return True

    def load(self, adapter: Adapter | None) -> None:
        """Load a reserved adapter, if it is not. Raises `ModelCorrupt`."""
        if adapter is not None and not self._places[adapter].loaded:
            self._loras.load(adapter)
            self._places[adapter].loaded = True
            self.num_loads += 1

    def release(self, adapter: Adapter | None) -> None:
        """Undo one `reserve`."""
        if adapter is not None:
            place = self._places[adapter]
            place.users -= 1
            if not place.users and not place.loaded:  # it could not be loaded
                self._drop(adapter)

    def _drop(self, adapter: Adapter) -> None:
        if self._places.pop(adapter).loaded:
            self._loras.unload(adapter)
