"""The engine's thread: the step loop, and the queue in front of it.

A step prefills a chunk of every new prompt, then decodes one token of every running sequence. All
that touches the model or the cache happens on this thread; callers hand requests over through
`EngineLoop.submit` and hear of them through their sink.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from engine.config import EngineConfig
from engine.determinism import make_deterministic
from engine.exclusive import run_exclusive
from engine.lanes import BatchedLane
from engine.loader import LoadedModel
from engine.outputs import ChoiceDelta
from engine.probe import plain_attention
from engine.runner import PrefillChunk, RowCounts, Runner
from engine.sampler import Sampler
from engine.scheduler import Scheduler, overloaded
from engine.sequence import Request, Status
from schema.errors import OutOfMemory, TaskError, TaskExecutionError

logger = logging.getLogger(__name__)

Item = TypeVar("Item", PrefillChunk, Request)


class EngineLoop:
    """Runs requests. Construction starts the thread, `close` stops it."""

    def __init__(
        self, config: EngineConfig, loaded: LoadedModel, runner: Runner, lane: BatchedLane
    ) -> None:
        self._config = config
        self._loaded = loaded
        self._runner = runner
        self._row_counts = lane.row_counts
        self._cache = lane.cache
        self.scheduler = Scheduler(
            lane.cache,
            max_sequences=config.max_sequences,
            prefill_chunk=config.prefill_chunk,
            max_prefill_rows=lane.row_counts.prefill[-1] if lane.row_counts else 0,
            max_exclusive_tokens=config.max_exclusive_tokens,
        )
        self._submissions: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._submit_lock = threading.Lock()  # nothing is submitted behind the loop's last look
        self._num_preparing = 0
        self._death: BaseException | None = None
        self.thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self.thread.start()

    # --- For other threads -----------------------------------------------------------------------

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for a task while it is prepared, so that a full engine says so at once.

        Raises:
            Overloaded: as many tasks are here as may run and wait.
            TaskExecutionError: the loop has ended.
        """
        with self._submit_lock:
            self.check_health()
            num_tasks = self._num_preparing + self._num_waiting() + len(self.scheduler.running)
            if num_tasks >= self._config.max_sequences + self._config.max_waiting:
                raise overloaded(self._num_preparing + self._num_waiting())
            self._num_preparing += 1
        try:
            yield
        finally:
            with self._submit_lock:
                self._num_preparing -= 1

    def submit(self, request: Request) -> None:
        """Hand over a request that has a `place`.

        Raises:
            TaskExecutionError: the loop has ended.
        """
        with self._submit_lock:
            self.check_health()
            self._submissions.put(request)

    def stats(self) -> dict[str, int]:
        """What the loop is doing now; the numbers may be a step old."""
        running = list(self.scheduler.running)
        return {
            "waiting": self._num_waiting(),
            "running": len(running),
            "running_sequences": sum(len(request.running) for request in running),
            "kv_pages": self._cache.num_pages,
            "kv_pages_free": self._cache.num_free_pages,
            "kv_pages_kept": self.scheduler.prefixes.num_kept_pages,
            "prefix_tokens_reused": self.scheduler.prefixes.reused_tokens,
        }

    def check_health(self) -> None:
        """Raise if the loop has ended."""
        if self._death is not None:
            raise TaskExecutionError(f"the engine has stopped: {self._death}")

    def close(self) -> None:
        """Stop the thread; what is running ends with an error. Idempotent."""
        self._submissions.put(None)
        while self.thread.is_alive():
            for request in tuple(self.scheduler.running):
                request.cancel_requested = True  # the exclusive lane looks at every token
            self.thread.join(timeout=0.1)

    def _num_waiting(self) -> int:
        return len(self.scheduler.waiting) + self._submissions.qsize()

    # --- On the engine's thread ------------------------------------------------------------------

    def _loop(self) -> None:
        make_deterministic(self._config.threads)
        busy = False
        try:
            while self._take_submissions(wait=not busy):
                busy = self.step()
        except BaseException as error:
            self._death = error
            logger.exception("the engine's loop died")
        finally:
            with self._submit_lock:
                self._death = self._death or RuntimeError("closed")
            self._fail_everything()

    def _take_submissions(self, *, wait: bool) -> bool:
        """Move submitted requests to the queue; with ``wait``, sleep until there is one.

        Returns False when the engine is to stop.
        """
        while wait or not self._submissions.empty():
            request = self._submissions.get()
            if request is None:
                return False
            self.scheduler.waiting.append(request)
            wait = False
        return True

    def step(self) -> bool:
        """One step of everything; False when there was nothing to do."""
        self._drop_cancelled()
        self._admit()
        self._isolated(self.scheduler.prefill_chunks(), self._prefill)
        self._isolated(self.scheduler.decoding(), self._decode)
        self.scheduler.drop_finished()
        return bool(self.scheduler.running or self.scheduler.waiting)

    def _drop_cancelled(self) -> None:
        for request in (*self.scheduler.waiting, *self.scheduler.running):
            if request.cancel_requested:
                request.cancel()
        self.scheduler.drop_finished()

    def _admit(self) -> None:
        """Start the waiting requests that there is room for.

        After one that keeps the device busy by itself the others get their step first.
        """
        busy = False
        while not busy and (request := self.scheduler.admit()):
            with self._blame([request]):
                busy = not request.settings.batched or bool(request.prompt.images)
                self._start(request)

    def _start(self, request: Request) -> None:
        if not request.settings.batched:
            with plain_attention(self._runner):
                run_exclusive(self._loaded, request)
            return
        if request.prompt.images:
            request.image_features = self._runner.encode_images(request.prompt.images)
        request.sampler = Sampler(
            self._loaded.model,
            request.settings,
            request.prompt.token_ids,
            request.seed,
            self._loaded.device,
        )

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """Prefill chunks, of different requests, in one forward."""
        logits = iter(self._runner.prefill(chunks, self.row_counts))
        for chunk in chunks:
            chunk.request.num_prefilled = chunk.stop
            if chunk.is_last:
                self._first_tokens(chunk.request, next(logits))

    def _first_tokens(self, request: Request, logits: torch.Tensor) -> None:
        """From a complete prompt to the first token of every sequence; ``logits`` [vocab]."""
        with self._blame([request]):
            self.scheduler.prefilled(request)
            self._fork(request)
            self._sample(request, logits.repeat(len(request.sequences), 1))

    def _fork(self, request: Request) -> None:
        """Give every further sequence its copy of the prompt's keys and values."""
        first, *others = request.sequences
        for other in others:
            self._cache.copy(first.pages, other.pages, request.prompt_tokens)
        request.status = Status.DECODE

    def _decode(self, requests: Sequence[Request]) -> None:
        """One token for every running sequence of some requests, in one forward."""
        batch = [(request, sequence) for request in requests for sequence in request.running]
        logits = self._runner.decode(batch, self.row_counts)
        row = 0
        for request in requests:
            rows = len(request.running)
            self._sample(request, logits[row : row + rows])
            row += rows

    def _isolated(self, items: Sequence[Item], run: Callable[[Sequence[Item]], None]) -> None:
        """Run a batch; if that fails, run its members one by one, so that only the guilty ends.

        A forward that failed has changed no request: what it wrote to their pages is written again.
        """
        if len(items) <= 1:  # nobody to tell apart, and no second try of the same forward
            for item in items:
                with self._blame([_request_of(item)]):
                    run(items)
            return
        try:
            run(items)
        except torch.AcceleratorError:
            with self._blame([_request_of(item) for item in items]):
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it has one cause or many
            logger.warning("a batch of %d failed, its members follow alone: %r", len(items), error)
            for item in items:
                with self._blame([_request_of(item)]):
                    run([item])

    def _sample(self, request: Request, logits: torch.Tensor) -> None:
        """Append a token to each running sequence of a request and report the new text."""
        with self._blame([request]):
            assert request.sampler is not None
            running = request.running
            tokens = request.sampler.next_tokens(logits, [answer.index for answer in running])
            deltas: list[ChoiceDelta] = []
            for answer, token in zip(running, tokens, strict=True):
                if delta := request.accept(answer, token):
                    deltas.append(delta)
            request.tell(deltas)

    @contextmanager
    def _blame(self, requests: Sequence[Request]) -> Iterator[None]:
        """End these requests, and only these, when the body raises."""
        try:
            yield
        except TaskError as error:
            self._fail(requests, error)
        except torch.OutOfMemoryError as error:
            logger.warning("out of memory: %s", error)
            self._fail(requests, OutOfMemory(f"the device ran out of memory: {error}"))
        except torch.AcceleratorError as error:
            # The CUDA context is lost, and with it the process: let the replica be replaced.
            self._fail(requests, TaskExecutionError(f"the device failed: {error}"))
            raise
        except Exception as error:
            logger.exception("a task failed")
            self._fail(requests, TaskExecutionError(f"the task failed: {error!r}"))

    @property
    def row_counts(self) -> RowCounts:
        """Where forwards may run; only requests for the batched lane ask."""
        assert self._row_counts is not None
        return self._row_counts

    @staticmethod
    def _fail(requests: Sequence[Request], error: TaskError) -> None:
        for request in requests:
            request.fail(error)

    def _fail_everything(self) -> None:
        while not self._submissions.empty():
            if (request := self._submissions.get()) is not None:
                self.scheduler.waiting.append(request)
        for request in (*self.scheduler.waiting, *self.scheduler.running):
            request.fail(TaskExecutionError(f"the engine has stopped: {self._death}"))
        self.scheduler.drop_finished()


def _request_of(item: PrefillChunk | Request) -> Request:
    return item if isinstance(item, Request) else item.request
