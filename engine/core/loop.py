"""The engine's thread: the step loop, and the queue in front of it.

A step prefills chunks of new prompts and decodes one token of every running sequence
(`engine.core.step`). All work with the model or the cache happens on this thread; callers hand
requests over through `EngineLoop.submit` and get the outputs through their sink.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from engine.config import EngineConfig
from engine.core.build import Assembly, assemble
from engine.core.in_flight import InFlight
from engine.core.scheduling.prompt_budget import PromptBudget, TimedStep
from engine.core.scheduling.scheduler import Scheduler, overloaded
from engine.core.step import Execution
from engine.parallel.launcher import Launcher, Subprocesses
from engine.platform.platforms import platform_of
from engine.requests.request import Request
from schema.errors import EngineStopped

logger = logging.getLogger(__name__)


class EngineLoop:
    """Runs requests. Construction starts the thread, `close` stops it."""

    def __init__(self, config: EngineConfig, launcher: Launcher | None = None) -> None:
        """Start the thread and wait until it has loaded the model.

        Args:
            config: of the engine.
            launcher: starts processes for further devices; None starts them from this one.

        Raises:
            TaskError: see `engine.loading.loader.load_model`.
        """
        self._config = config
        self._launcher = launcher or Subprocesses()
        self._submissions: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._submit_lock = threading.Lock()  # nothing is submitted after the loop's last look
        self._num_preparing = 0
        self._death: BaseException | None = None
        assembly: Future[Assembly] = Future()
        self.thread = threading.Thread(
            target=self._main, args=(assembly,), name="engine", daemon=True
        )
        self.thread.start()
        self.assembly = assembly.result()
        self._cache = self.assembly.batching.cache
        self.scheduler = _scheduler(config, self.assembly)
        self._lookahead = config.lookahead
        if self._lookahead is None:
            self._lookahead = platform_of(self.assembly.loaded.device).lookahead
        self._execution = Execution(self.assembly, self.scheduler, lookahead=self._lookahead)
        self._in_flight: tuple[TimedStep, list[InFlight]] | None = None

    # --- For other threads -----------------------------------------------------------------------

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve a place for a task that is being prepared; a full engine refuses it at once.

        Raises:
            Overloaded: the engine has as many tasks as may run and wait.
            EngineStopped: the loop has ended.
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
            EngineStopped: the loop has ended.
        """
        with self._submit_lock:
            self.check_health()
            self._submissions.put(request)

    def stats(self) -> dict[str, int]:
        """The current numbers of the loop; they may be a step old."""
        running = list(self.scheduler.running)
        vision = self.assembly.batching.runner.vision
        return {
            "waiting": self._num_waiting(),
            "running": len(running),
            "running_sequences": sum(len(request.running) for request in running),
            "kv_pages": self._cache.num_pages,
            "kv_pages_free": self._cache.num_free_pages,
            "kv_pages_kept": self.scheduler.prefixes.num_kept_pages,
            "prefix_tokens_reused": self.scheduler.prefixes.reused_tokens,
            "decode_steps": self._execution.num_decode_steps,
            "drafts_proposed": self._execution.speculation.num_proposed,
            "drafts_accepted": self._execution.speculation.num_accepted,
            "known_tokens_read": self._execution.speculation.num_known,
            "adapters_loaded": self.assembly.adapters.num_loaded,
            "adapter_bytes": self.assembly.adapters.used_bytes,
            "adapter_loads": self.assembly.adapters.num_loads,
            "images_encoded": vision.num_encoded,
            "images_reused": vision.num_reused,
        }

    def check_health(self) -> None:
        """Raise if the loop has ended."""
        if self._death is not None:
            raise EngineStopped(f"the engine has stopped: {self._death}")
        try:
            self.assembly.executor.check_health()
        except torch.AcceleratorError as error:
            raise EngineStopped(f"the engine has stopped: {error}") from error

    def close(self) -> None:
        """Stop the thread; what is running ends with an error. Idempotent."""
        self._submissions.put(None)
        while self.thread.is_alive():
            for request in tuple(self.scheduler.running):
                request.cancel_requested = True  # the generate fallback checks it at every token
            self.thread.join(timeout=0.1)

    def _num_waiting(self) -> int:
        return len(self.scheduler.waiting) + self._submissions.qsize()

    # --- On the engine's thread ------------------------------------------------------------------

    def _main(self, assembly: Future[Assembly]) -> None:
        """Load, then loop.

        Both on this thread: OpenMP keeps a team of threads for each thread that computes, and once
        there are more of them than cores they sleep between two operations instead of spinning,
        which made every step 20 % slower.
        """
        try:
            assembled = assemble(self._config, self._launcher)
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            assembly.set_exception(error)
            return
        assembly.set_result(assembled)
        try:
            self._loop()
        finally:
            assembled.executor.close()

    def _loop(self) -> None:
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
        """One step of all requests; False when there was nothing to do."""
        self._drop_cancelled()
        self._admit()
        timed = self.scheduler.budget.begin()
        launched = timed, self._execution.launch()
        if self._lookahead:
            self._settle()
            self._in_flight = launched
        else:
            self._in_flight = launched
            self._settle()
        self.scheduler.drop_finished()
        return bool(self.scheduler.running or self.scheduler.waiting)

    def _settle(self) -> None:
        """Finish the step that is in flight."""
        if self._in_flight is None:
            return
        (timed, in_flight), self._in_flight = self._in_flight, None
        for one in in_flight:
            self._execution.finish(one)
        self.scheduler.budget.end(timed)

    def _drop_cancelled(self) -> None:
        for request in (*self.scheduler.waiting, *self.scheduler.running):
            if request.cancel_requested:
                request.cancel()
        self.scheduler.drop_finished()

    def _admit(self) -> None:
        """Start the waiting requests that there is room for.

        After one that occupies the device alone, the running requests get a step first; so do they
        after images, of which as many as can be are encoded together.
        """
        busy = False
        while not busy and (request := self.scheduler.admit()):
            started = [request]
            busy = not request.settings.batched or bool(request.prompt.images)
            if busy:
                self._settle()
                while (waiting := self.scheduler.waiting) and (
                    self._execution.joins(started, waiting[0])
                ):
                    if (another := self.scheduler.admit()) is None:
                        break
                    started.append(another)
            self._execution.start(started)

    def _fail_everything(self) -> None:
        while not self._submissions.empty():
            if (request := self._submissions.get()) is not None:
                self.scheduler.waiting.append(request)
        for request in (*self.scheduler.waiting, *self.scheduler.running):
            request.fail(EngineStopped(f"the engine has stopped: {self._death}"))
        self.scheduler.drop_finished()


def _scheduler(config: EngineConfig, assembly: Assembly) -> Scheduler:
    batching = assembly.batching
    return Scheduler(
        batching.cache,
        assembly.adapters,
        max_sequences=config.max_sequences,
        prefill_chunk=batching.prefill_chunk,
        budget=PromptBudget(batching.batch_sizes, config.max_stream_wait_steps),
        max_exclusive_tokens=config.max_exclusive_tokens,
        long_after=batching.long_after,
        states=batching.states,
        num_kept_states=config.num_kept_states,
    )
