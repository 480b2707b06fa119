"""The engine: one model, and the methods that run tasks on it.

`Engine.submit`, `Engine.stream` and `Engine.run` serve many tasks on an event loop;
`Engine.run_blocking` runs one on a thread. A task is validated, rendered and tokenized on its
caller's thread (`input_processor`), and `engine.core.loop` runs it. `run_task` runs one task
without an engine of the caller's.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.core.loop import EngineLoop
from engine.parallel.launcher import Launcher
from engine.requests.handle import RequestHandle, VerificationHandle
from engine.requests.input_processor import InputProcessor
from engine.requests.output_collector import RequestOutputCollector
from engine.requests.outputs import RequestOutput
from engine.requests.record import Recorder
from engine.requests.stats import Meter, TaskTimes
from engine.requests.verification.claimed_tokens import Loss
from engine.requests.verification.verdict import verdict
from engine.vision.preprocessor import ImageInputs
from schema.answers.response import StreamChunk, TaskResponse, collect
from schema.answers.verification import Claim, ClaimedResponse, Verdict, claim_of
from schema.errors import ModelInvalid
from schema.model_variant import is_path
from schema.task import Task


class Engine:
    """Serves one model. Construction loads it, and blocks; `close` stops the thread.

    Attributes:
        load_seconds: how long loading took, downloads included.
    """

    def __init__(self, config: EngineConfig, launcher: Launcher | None = None) -> None:
        """Load the model and start the thread.

        Args:
            config: the model and what it may use.
            launcher: starts processes for the other devices of a model that is split tensor by
                tensor; None starts them from this one.

        Raises:
            TaskError: see `engine.loading.loader.load_model`.
        """
        self.config = config
        begun = time.monotonic()
        self._loop = EngineLoop(config, launcher)
        self.load_seconds = round(time.monotonic() - begun, 3)
        self._meter = Meter()
        assembly = self._loop.assembly
        self._loaded = assembly.loaded
        card = self._card = assembly.card
        self._inputs = InputProcessor(
            config,
            assembly.loaded,
            assembly.renderer,
            assembly.formats,
            recorder=Recorder(card["dtype"], card["quantize_bits"], card["layout"]),
            card=card,
            adapters=assembly.adapters.adapters,
            continuous_batching=assembly.batching.problem is None,
            long_after=assembly.batching.long_after,
            check_fits=self._loop.scheduler.check_fits,
            meter=self._meter,
        )

    # --- The ways in -----------------------------------------------------------------------------

    async def submit(
        self,
        task: Task,
        images: ImageInputs | None = None,
        log_id: str | None = None,
        known: Sequence[Sequence[int]] = (),
    ) -> RequestHandle:
        """Begin a task; its chunks come from the handle, which has to be cancelled at the end.

        Args:
            task: the task.
            images: its prepared images; None to prepare them here.
            log_id: what the task is called in the engine's log lines.
            known: what the first tokens of each answer are expected to be, because another engine
                has begun it. As far as they are right they are read, which takes less time than to
                generate them; they never change what the answer is.

        Raises:
            TaskError: the task is refused.
        """
        return await self._submit(task, images, log_id, known)

    async def submit_verification(
        self,
        task: Task,
        claim: Claim,
        images: ImageInputs | None = None,
        log_id: str | None = None,
    ) -> VerificationHandle:
        """Begin to verify a claimed answer; the handle has to be cancelled at the end.

        The arguments but ``claim`` are those of `submit`.

        Raises:
            TaskError: the task is refused.
        """
        return VerificationHandle(await self._submit(task, images, log_id, (), claim), claim)

    async def _submit(
        self,
        task: Task,
        images: ImageInputs | None,
        log_id: str | None,
        known: Sequence[Sequence[int]],
        claim: Claim | None = None,
    ) -> RequestHandle:
        outputs = RequestOutputCollector()
        with self._loop.place():
            request, builder = await asyncio.to_thread(
                self._inputs.prepare, task, images, outputs.put, known, claim
            )
            request.log_id = log_id or request.log_id
            self._loop.submit(request)
        return RequestHandle(request, builder, outputs)

    async def stream(
        self, task: Task, images: ImageInputs | None = None, log_id: str | None = None
    ) -> AsyncGenerator[StreamChunk, None]:
        """Run a task and yield its chunks; closing the iterator cancels the task.

        A chunk carries what has been generated since the last one was taken. The arguments are
        those of `submit`.

        Raises:
            TaskError: at the first chunk if the task is refused, later if it fails.
        """
        handle = await self.submit(task, images, log_id)
        try:
            while not handle.done:
                if (chunk := await handle.next()) is not None:
                    yield chunk
        finally:
            handle.cancel()

    async def run(self, task: Task, images: ImageInputs | None = None) -> TaskResponse:
        """Run a task and return its response; cancelling the coroutine cancels the task."""
        return collect([chunk async for chunk in self.stream(task, images)])

    async def verify(
        self,
        task: Task,
        response: TaskResponse | ClaimedResponse | Mapping[str, Any],
        tolerance: float = 0.0,
        images: ImageInputs | None = None,
    ) -> Verdict:
        """Whether a response is this engine's answer to a task, which is read and not generated.

        Args:
            task: the task.
            response: what is claimed to be its answer, with token ids.
            tolerance: see `schema.answers.verification.VerificationRequest`.
            images: the task's prepared images; None to prepare them here.

        Raises:
            TaskError: the task is refused or fails, or the response has not the form of one.
        """
        handle = await self.submit_verification(task, claim_of(response, tolerance), images)
        try:
            while (found := await handle.next()) is None:
                pass
            return found
        finally:
            handle.cancel()

    def verify_blocking(
        self,
        task: Task,
        response: TaskResponse | ClaimedResponse | Mapping[str, Any],
        tolerance: float = 0.0,
        render: Callable[[TaskResponse], TaskResponse] | None = None,
    ) -> Verdict:
        """`verify` from a thread without an event loop.

        Args:
            task: the task.
            response: what is claimed to be its answer, with token ids.
            tolerance: see `schema.answers.verification.VerificationRequest`.
            render: makes of this engine's response what the claimed one is compared with; None
                leaves it as it is.
        """
        claim = claim_of(response, tolerance)
        expected, losses = self._run_blocking(task, claim=claim)
        return verdict(claim, expected if render is None else render(expected), losses)

    def run_blocking(
        self, task: Task, stream_callback: Callable[[StreamChunk], None] | None = None
    ) -> TaskResponse:
        """Run a task from a thread without an event loop.

        Args:
            task: the task.
            stream_callback: called with every chunk, on this thread; an exception in it cancels the
                task and is raised here.
        """
        return self._run_blocking(task, stream_callback)[0]

    def _run_blocking(
        self,
        task: Task,
        stream_callback: Callable[[StreamChunk], None] | None = None,
        claim: Claim | None = None,
    ) -> tuple[TaskResponse, dict[int, Sequence[Loss]]]:
        """The response, and by choice the claimed tokens that lost."""
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        with self._loop.place():
            request, response = self._inputs.prepare(task, None, outputs.put, claim=claim)
            self._loop.submit(request)
        chunks: list[StreamChunk] = []
        try:
            while True:
                progress = outputs.get()
                if progress.error is not None:
                    raise progress.error
                chunks.append(response.chunk(progress))
                if stream_callback is not None:
                    stream_callback(chunks[-1])
                if progress.done:
                    return collect(chunks), response.by_choice(request.losses)
        finally:
            request.cancel_requested = True

    def card(self) -> dict[str, Any]:
        """A description of this engine: see `engine.core.model_info`. JSON-able."""
        return dict(self._card)

    def stats(self) -> dict[str, int]:
        """Its current state, and totals since it was loaded; for tokens see `Meter`.

        Read from any thread; the numbers may be a step old.
        """
        return {
            **self._loop.stats(),
            "prompt_tokens": self._meter.prompt_tokens,
            "generated_tokens": self._meter.generated_tokens,
            "verified_tokens": self._meter.verified_tokens,
        }

    def take_times(self) -> list[TaskTimes]:
        """How long the tasks took that have ended since the last call; for one caller."""
        return self._meter.take_times()

    def check_health(self) -> None:
        """Raise if the engine can serve no more and has to be replaced."""
        self._loop.check_health()

    def close(self) -> None:
        """Stop the thread; what is running ends with an error. Idempotent."""
        self._loop.close()


def run_task(
    task: Task | None = None,
    *,
    stream_callback: Callable[[StreamChunk], None] | None = None,
    engine: Engine | None = None,
    **fields: Any,
) -> TaskResponse:
    """Run one task and return its response.

    Args:
        task: the task; or give its fields instead: ``run_task(model=..., messages=...)``.
        stream_callback: called with every stream chunk as it comes.
        engine: a loaded engine to run on. Without one, the task's model is loaded in the task's
            dtype and quantization, and dropped again.
        fields: as those of a task; but without an engine ``model`` may also be a directory, which
            is then known by its own name. A `Task` never names one: tasks come from clients.

    Raises:
        TaskError: the task is invalid, the model cannot be loaded, or the run failed.
    """
    if (task is None) == (not fields):
        raise TypeError("run_task takes either a Task or the fields of one")
    source = fields.get("model")
    if engine is None and isinstance(source, str) and Path(source).is_dir():
        fields["model"] = Path(source).resolve().name
    elif engine is None and isinstance(source, str) and is_path(source):
        raise ModelInvalid(f"model: there is no directory {source!r} here", param="model")
    else:
        source = None
    if task is None:
        task = Task.from_fields(**fields)
    if engine is not None:
        return engine.run_blocking(task, stream_callback)
    own = Engine(
        EngineConfig(
            model=source or task.model,
            model_id=task.model,
            dtype=task.dtype,
            quantize_bits=task.quantize_bits,
        )
    )
    try:
        return own.run_blocking(task, stream_callback)
    finally:
        own.close()
