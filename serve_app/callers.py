"""Ingresses that have died: nobody reads what they have asked for, and Ray does not end it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import ray

from schema.errors import Cancelled

LOOK_EVERY_S = 2.0


@dataclass
class _Caller:
    """What is known of one: whether it has died, and when to look again."""

    look_at: float
    dead: bool = False


class Callers:
    """The actors whose tasks a replica works on, by their names among Serve's."""

    def __init__(self) -> None:
        self._known: dict[str, _Caller] = {}
        self._looks: set[asyncio.Task[None]] = set()  # or they might be collected as garbage

    def check(self, name: str) -> None:
        """Raise if the caller has died: at most some seconds ago. Costs next to nothing.

        Args:
            name: `serve_app.own_name.own_actor` of the caller; "" is never dead.

        Raises:
            Cancelled: the task is not wanted any more.
        """
        now = time.monotonic()
        caller = self._known.get(name)
        if caller is None:
            caller = self._known[name] = _Caller(now + LOOK_EVERY_S)
        if caller.dead:
            raise Cancelled("the ingress that sent the task has died")
        if name and now >= caller.look_at:
            caller.look_at = now + LOOK_EVERY_S
            look = asyncio.get_running_loop().create_task(self._look(name))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def _look(self, name: str) -> None:
        if await asyncio.to_thread(_has_died, name):
            self._known[name].dead = True


def _has_died(name: str) -> bool:
    try:
        ray.get_actor(name, namespace="serve")
    except ValueError:  # Ray knows of no such actor any more
        return True
    return False
