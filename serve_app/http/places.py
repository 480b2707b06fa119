"""The places of a request: it has one, and takes another for each further task that it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from starlette.types import Scope

_KEY = "serve_app.places"


class FurtherPlaces(Protocol):
    """What admission gives to a request beside its own place."""

    def count(self, num_tasks: int) -> None:
        """Count so many further tasks as requests of its key's minute.

        They are not refused for that: the key's next requests are, until the minute allows them.
        """
        ...

    def take(self) -> AbstractContextManager[None] | None:
        """A further place, which leaving the ``with`` block frees; None if there is none now."""
        ...


def give_places(scope: Scope, places: FurtherPlaces) -> None:
    """Let the handler of a request have further places."""
    scope[_KEY] = places


def places_of(scope: Scope) -> FurtherPlaces:
    """What `give_places` gave."""
    places: FurtherPlaces = scope[_KEY]
    return places
