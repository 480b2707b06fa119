"""The engine: one model, one thread that runs its steps, and the ways in.

`Engine.stream` and `Engine.run` serve many tasks on an event loop; `Engine.run_blocking` runs one.
A step prefills a chunk of every new prompt, then decodes one token of every running sequence. All
that touches the model or the cache happens on the engine's thread; callers hand requests over
through `_submit` and hear of them through their sink.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from engine.card import model_card
from engine.config import EngineConfig
from engine.determinism import make_deterministic
from engine.detokenizer import Detokenizer
from engine.exclusive import run_exclusive
from engine.generation import resolve_settings
from engine.images import ImageInputs, ImagePreprocessor, image_params
from engine.lanes import build_batched_lane
from engine.loader import load_model
from engine.outputs import ChoiceDelta, Mailbox, Progress, ResponseFormat, Sink, collect
from engine.probe import plain_attention
from engine.prompt import PromptRenderer
from engine.runner import Runner
from engine.sampler import Sampler
from engine.scheduler import Scheduler, overloaded
from engine.sequence import Request, Status
from engine.sequence import Sequence as Answer
from schema.errors import OutOfMemory, TaskError, TaskExecutionError
from schema.response import StreamChunk, TaskResponse
from schema.task import Task

logger = logging.getLogger(__name__)


class Engine:
    """Serves one model. Construction loads it, and blocks; `close` stops the thread."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the model and start the thread.

        Raises:
            TaskError: see `engine.loader.load_model`.
        """
        make_deterministic(config.threads)
        self.config = config
        self._loaded = load_model(config)
        self._runner = Runner(self._loaded)
        lane = build_batched_lane(self._runner, self._loaded, config)
        self._row_counts = lane.row_counts
        self._cache = lane.cache
        self._scheduler = Scheduler(
            lane.cache,
            max_sequences=config.max_sequences,
            prefill_chunk=config.prefill_chunk,
            max_prefill_rows=lane.row_counts.prefill[-1] if lane.row_counts else 0,
        )
        self._card = model_card(
            config,
            self._loaded,
            lane.row_counts,
            exclusive_reason=lane.problem,
            kv_cache_tokens=lane.cache.capacity_tokens,
        )
        self._renderer = PromptRenderer(self._loaded)
        self._preprocessor: ImagePreprocessor | None = None
        self._prepare_lock = threading.Lock()  # tokenizers are not safe to share between threads
        self._submissions: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # --- The ways in -----------------------------------------------------------------------------

    async def stream(
        self, task: Task, images: ImageInputs | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Run a task and yield its chunks; closing the iterator cancels the task.

        A chunk carries whatever has been generated since the last one was taken.

        Args:
            task: the task; its ``model``, ``dtype`` and ``quantize_bits`` have been matched
            already. images: its prepared images; None to prepare them here.

        Raises:
            TaskError: at the first chunk if the task is refused, later if it fails.
        """
        mailbox = Mailbox()
        request, response = await asyncio.to_thread(self._prepare, task, images, mailbox.put)
        self._submit(request)
        try:
            while True:
                progress = await mailbox.get()
                if progress.error is not None:
                    raise progress.error
                yield response.chunk(progress)
                if progress.done:
                    return
        finally:
            request.cancel_requested = True

    async def run(self, task: Task, images: ImageInputs | None = None) -> TaskResponse:
        """Run a task and return its response; cancelling the coroutine cancels the task."""
        return collect([chunk async for chunk in self.stream(task, images)])

    def run_blocking(
        self, task: Task, stream_callback: Callable[[StreamChunk], None] | None = None
    ) -> TaskResponse:
        """Run a task from a thread without an event loop.

        Args:
            task: the task.
            stream_callback: called with every chunk, on this thread; an exception in it cancels the
                task and is raised here.
        """
        news: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        request, response = self._prepare(task, None, news.put)
        self._submit(request)
        chunks: list[StreamChunk] = []
        try:
            while True:
                progress = news.get()
                if progress.error is not None:
                    raise progress.error
                chunks.append(response.chunk(progress))
                if stream_callback is not None:
                    stream_callback(chunks[-1])
                if progress.done:
                    return collect(chunks)
        finally:
            request.cancel_requested = True

    def card(self) -> dict[str, Any]:
        """What this engine is: see `engine.card`. JSON-able."""
        return dict(self._card)

    def stats(self) -> dict[str, int]:
        """What it is doing now. Read from any thread; the numbers may be a step old."""
        running = list(self._scheduler.running)
        return {
            "waiting": len(self._scheduler.waiting) + self._submissions.qsize(),
            "running": len(running),
            "running_sequences": sum(len(request.running) for request in running),
            "kv_pages_free": self._cache.num_free_pages,
            "kv_pages": self._cache.num_pages,
        }

    def check_health(self) -> None:
        """Raise if the engine can serve no more and has to be replaced."""
        if self._death is not None:
            raise TaskExecutionError(f"the engine has stopped: {self._death}")

    def close(self) -> None:
        """Stop the thread; what is running ends with an error. Idempotent."""
        self._submissions.put(None)
        self._thread.join()

    # --- On the caller's thread ------------------------------------------------------------------

    def _prepare(
        self, task: Task, images: ImageInputs | None, sink: Sink
    ) -> tuple[Request, ResponseFormat]:
        """Validate, render and tokenize a task."""
        params = image_params(task)
        if images is None and params:
            images = self._prepare_images(task, params)
        with self._prepare_lock:
            prompt = self._renderer.render(task, images)
            settings = resolve_settings(
                task.generation_config,
                self._loaded.model,
                prompt_tokens=len(prompt.token_ids),
                context_length=self._loaded.context_length,
                batched_lane=self._row_counts is not None,
            )
        answers = [
            Answer(index, Detokenizer(self._loaded.tokenizer, settings.stop_strings))
            for index in range(settings.num_sequences)
        ]
        request = Request(prompt, settings, task.seed, answers, sink)
        self._scheduler.check_fits(request)
        response = ResponseFormat(
            task.model, self._card["system_fingerprint"], request.prompt_tokens
        )
        return request, response

    def _prepare_images(self, task: Task, params: Sequence[str]) -> ImageInputs:
        with self._prepare_lock:
            if self._preprocessor is None:
                self._preprocessor = ImagePreprocessor(self.config)
            return self._preprocessor(task.split_images()[1], params)

    def _submit(self, request: Request) -> None:
        """Hand a request to the engine's thread; raises when the queue is full or the engine is
        dead.
        """
        self.check_health()
        num_waiting = len(self._scheduler.waiting) + self._submissions.qsize()
        if num_waiting >= self.config.max_waiting:
            raise overloaded(num_waiting)
        self._submissions.put(request)

    # --- On the engine's thread ------------------------------------------------------------------

    def _loop(self) -> None:
        busy = False
        try:
            while self._take_submissions(wait=not busy):
                busy = self.step()
        except BaseException as error:
            self._death = error
            logger.exception("the engine's loop died")
        finally:
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
            self._scheduler.waiting.append(request)
            wait = False
        return True

    def step(self) -> bool:
        """One step of everything; False when there was nothing to do."""
        self._drop_cancelled()
        self._admit()
        self._prefill()
        self._decode()
        self._scheduler.drop_finished()
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _drop_cancelled(self) -> None:
        for request in (*self._scheduler.waiting, *self._scheduler.running):
            if request.cancel_requested:
                request.cancel()
        self._scheduler.drop_finished()

    def _admit(self) -> None:
        while request := self._scheduler.admit():
            with self._blame([request]):
                if not request.settings.batched:
                    with plain_attention(self._runner):
                        run_exclusive(self._loaded, request)
                    continue
                if request.prompt.images is not None:
                    request.image_features = self._runner.encode_images(request.prompt.images)
                request.sampler = Sampler(
                    self._loaded.model,
                    request.settings,
                    request.prompt.token_ids,
                    request.seed,
                    self._loaded.device,
                )

    def _prefill(self) -> None:
        chunks = self._scheduler.prefill_chunks()
        if not chunks:
            return
        assert self._row_counts is not None
        with self._blame([chunk.request for chunk in chunks]):
            logits = iter(self._runner.prefill(chunks, self._row_counts))
            for chunk in chunks:
                chunk.request.num_prefilled = chunk.stop
                if chunk.is_last:
                    self._fork(chunk.request)
                    self._sample(
                        chunk.request, next(logits).repeat(len(chunk.request.sequences), 1)
                    )

    def _fork(self, request: Request) -> None:
        """Give every further sequence its copy of the prompt's keys and values."""
        first, *others = request.sequences
        for other in others:
            self._cache.copy(first.pages, other.pages, request.prompt_tokens)
        request.status = Status.DECODE

    def _decode(self) -> None:
        batch = self._scheduler.decode_batch()
        if not batch:
            return
        assert self._row_counts is not None
        requests = list(dict.fromkeys(request for request, _ in batch))
        with self._blame(requests):
            logits = self._runner.decode(batch, self._row_counts)
            row = 0
            for request in requests:
                rows = len(request.running)
                self._sample(request, logits[row : row + rows])
                row += rows

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

    @staticmethod
    def _fail(requests: Sequence[Request], error: TaskError) -> None:
        for request in requests:
            request.fail(error)

    def _fail_everything(self) -> None:
        while not self._submissions.empty():
            if (request := self._submissions.get()) is not None:
                self._scheduler.waiting.append(request)
        for request in (*self._scheduler.waiting, *self._scheduler.running):
            request.fail(TaskExecutionError(f"the engine has stopped: {self._death}"))
        self._scheduler.drop_finished()
