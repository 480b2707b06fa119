"""What a replica sends to the ingress about a task: that it has begun, is alive, and chunks.

A replica's `stream` yields these and nothing else: first `Started`, then any number of `Alive` and
`Chunk`. It ends after the task's last chunk, or raises a `TaskError`. Where an answer is verified,
the last message is the only `Judged`, and there are no chunks. They are small, because one is
pickled for every chunk of every stream.

`Alive` and `Chunk` bring the ids of the tokens that have been generated since the last message, so
that another replica can read them if this one is lost. They never reach a client: what a task with
``return_token_ids`` reports is a part of its chunks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schema.answers.response import StreamChunk
from schema.answers.verification import Claim, Verdict
from schema.task import Task

HEARTBEAT_S = 2.0
"""A replica that has nothing else to say about a task says `Alive` this often."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first message: a replica has taken the task.

    Attributes:
        replica: by which name the routers know it; empty for a process of the pool.
    """

    replica: str

    def __reduce__(self) -> tuple[Any, ...]:
        return Started, (self.replica,)


TokenIds = Sequence[Sequence[int]]
"""The ids of some tokens of each answer that a task's engine generates. Where several choices tell
the same answer (`generation_config.num_return_sequences` of greedy ones), it is one answer."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The replica's process still runs; there is no new text.

    Attributes:
        token_ids: generated since the last message; of a text that is not told yet.
    """

    token_ids: TokenIds = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Alive, (self.token_ids,)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of the answer, JSON-ready; at least one choice has grown or ended.

    Attributes:
        chunk: the part.
        token_ids: generated since the last message; they may be ahead of the text, and the last
            chunk has none.
    """

    chunk: StreamChunk
    token_ids: TokenIds = ()

    # What a slotted dataclass inherits takes twice the time.
    def __reduce__(self) -> tuple[Any, ...]:
        return Chunk, (self.chunk, self.token_ids)


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on a claimed answer, JSON-ready."""

    verdict: Verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return Judged, (self.verdict,)


Message = Started | Alive | Chunk | Judged


class TaskReplica(Protocol):
    """What the ingress may ask of a replica that runs tasks."""

    def stream(
        self,
        task: Task,
        images: Any,
        caller: str = "",
        *,
        streamed: bool = True,
        known: TokenIds = (),
        claim: Claim | None = None,
    ) -> AsyncGenerator[Message, None]:
        """Run a task, or verify an answer to it. Closing the iterator cancels the task.

        An async generator, because Ray cannot cancel a plain method.

        Args:
            task: without its images.
            images: its prepared images (`engine.vision.preprocessor.ImageInputs`), or None.
            caller: `actor_name` of the ingress that asks; when it dies, the task is cancelled.
            streamed: whether the client reads the answer while it grows. If not, it comes as one
                chunk at the end.
            known: what the answers are expected to begin with, because a replica that was lost has
                begun them. A hint: it makes the task quicker and never changes its answer.
            claim: what is claimed to be the answer, if it is to be verified.

        Raises:
            TaskError: see `schema.errors`; also after the first chunk.
        """
        ...
