"""Whether, when and over which transport a task runs again whose replica was lost."""

from __future__ import annotations

from typing import Literal

from schema.errors import EngineStopped, Overloaded, TaskError
from schema.task import Task
from serve_app.graph.ejection import EJECTED
from serve_app.protocol.failures import ProcessLost

PAUSE_S = 1.0

LOST_PAUSE_S = 0.25
"""By how much the pause after a lost process grows with each loss, up to `PAUSE_S`."""

MAX_MESSAGE = 1_000_000
"""Bytes of a request whose task is sent as a message. gRPC takes 4 MiB, and a pickled task has at
most 2.3 times the bytes of its JSON. A larger task goes by reference."""

Transport = Literal["plain", "by_reference"]


class RetryPolicy:
    """The decisions about one task.

    Where it runs again is up to the request router, which leaves out the replicas that were ejected
    here.

    Attributes:
        losses: how often the task has lost its replica.
    """

    def __init__(self, task: Task, num_bytes: int, max_replays: int) -> None:
        """Begin with a task that has not been sent.

        Args:
            task: the task.
            num_bytes: of the request that the task was made of.
            max_replays: how often it runs again at the most.
        """
        # Chunks are small unless each token brings twenty others with it, or all of the prompt, or
        # token ids become text: four bytes may stand for a hundred characters.
        config = task.generation_config
        reports = config.logprobs is not None or config.prompt_logprobs is not None
        spells = task.echo and task.prompt_token_ids is not None
        self._is_small = num_bytes <= MAX_MESSAGE and not reports and not spells
        self._max_replays = max_replays
        self.losses = 0

    def transport(self, *, with_images: bool) -> Transport:
        """How the next attempt sends the task.

        A task that runs again goes by reference, because the reason for the loss may have been an
        answer that is too large for a message. So do prepared images, which must not pass through
        the ingress.
        """
        plain = self._is_small and not with_images and self.losses == 0
        return "plain" if plain else "by_reference"

    def pause_after(self, error: TaskError, silent_replica: str | None = None) -> float | None:
        """Seconds to wait before the next attempt; None if there is none and the error stands.

        Args:
            error: how the last attempt ended.
            silent_replica: the one that was given up because it was silent, if that was the reason.
        """
        if silent_replica:
            EJECTED.add(silent_replica)
        if isinstance(error, EngineStopped):
            if self.losses == self._max_replays:
                return None
            # At first at once: Ray knows already which replica has died, and its router waits until
            # there is another. A pause only keeps a connection that breaks again and again from
            # using up all replays. A replica whose process lives while its engine has stopped is
            # replaced after three health checks, which the pauses together have to outlast.
            gone = isinstance(error, ProcessLost)
            pause_s = (
                min(LOST_PAUSE_S * self.losses, PAUSE_S) if gone else 2 * PAUSE_S * self.losses
            )
            self.losses += 1
            return pause_s
        if isinstance(error, Overloaded) and self.losses:
            return PAUSE_S  # it had a place; the deadline bounds the wait for another
        return None
