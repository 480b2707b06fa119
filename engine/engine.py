"""The engine: one model, and the ways in.

`Engine.submit`, `Engine.stream` and `Engine.run` serve many tasks on an event loop;
`Engine.run_blocking` runs one on a thread.
A task is validated, rendered and tokenized on its caller's thread; `engine.core.loop` runs it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from json import dumps
from typing import Any

from engine.config import EngineConfig
from engine.core.loop import EngineLoop
from engine.loading.snapshot import is_directory
from engine.parallel.launcher import Launcher
from engine.requests.chunks import ChunkBuilder
from engine.requests.handle import RequestHandle
from engine.requests.output_collector import RequestOutputCollector
from engine.requests.outputs import RequestOutput, Sink
from engine.requests.request import Request, SequenceState
from engine.requests.stats import Meter, TaskTimes
from engine.sampling.grammar import Grammar, GrammarCompiler
from engine.sampling.logprobs import TokenTexts
from engine.sampling.settings import SamplingParams, resolve_settings
from engine.sampling.task_grammar import task_grammar
from engine.text.detokenizer import Detokenizer
from engine.text.message import MessageParser, message_parsers
from engine.vision.preprocessor import ImageInputs, ImagePreprocessor, image_params
from schema.errors import ModelInvalid, TaskArgsInvalid
from schema.response import StreamChunk, TaskResponse, collect
from schema.task import Task


class Engine:
    """Serves one model. Construction loads it, and blocks; `close` stops the thread.

    Attributes:
        load_seconds: how long that took, downloads included.
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
        self._loaded = self._loop.assembly.loaded
        self._card = self._loop.assembly.card
        self._renderer = self._loop.assembly.renderer
        self._token_texts = TokenTexts(self._loaded.tokenizer)
        self._preprocessor: ImagePreprocessor | None = None
        self._grammars: GrammarCompiler | None = None
        self._prepare_lock = threading.Lock()  # tokenizers are not safe to share between threads

    # --- The ways in -----------------------------------------------------------------------------

    async def submit(
        self, task: Task, images: ImageInputs | None = None, log_id: str | None = None
    ) -> RequestHandle:
        """Begin a task; its chunks come from the handle, which has to be cancelled at the end.

        Args:
            task: the task.
            images: its prepared images; None to prepare them here.
            log_id: what the task is called in the engine's log lines.

        Raises:
            TaskError: the task is refused.
        """
        outputs = RequestOutputCollector()
        with self._loop.place():
            request, builder = await asyncio.to_thread(self._prepare, task, images, outputs.put)
            request.log_id = log_id or request.log_id
            self._loop.submit(request)
        return RequestHandle(request, builder, outputs)

    async def stream(
        self, task: Task, images: ImageInputs | None = None, log_id: str | None = None
    ) -> AsyncGenerator[StreamChunk, None]:
        """Run a task and yield its chunks; closing the iterator cancels the task.

        A chunk carries whatever has been generated since the last one was taken. Arguments as
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

    def run_blocking(
        self, task: Task, stream_callback: Callable[[StreamChunk], None] | None = None
    ) -> TaskResponse:
        """Run a task from a thread without an event loop.

        Args:
            task: the task.
            stream_callback: called with every chunk, on this thread; an exception in it cancels the
                task and is raised here.
        """
        news: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        with self._loop.place():
            request, response = self._prepare(task, None, news.put)
            self._loop.submit(request)
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
        """What this engine is: see `engine.core.model_info`. JSON-able."""
        return dict(self._card)

    def stats(self) -> dict[str, int]:
        """What it does now, and what it has done since it was loaded; tokens: see `stats`.

        Read from any thread; the numbers may be a step old.
        """
        return {
            **self._loop.stats(),
            "prompt_tokens": self._meter.prompt_tokens,
            "generated_tokens": self._meter.generated_tokens,
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

    # --- On the caller's thread ------------------------------------------------------------------

    def _prepare(
        self, task: Task, images: ImageInputs | None, sink: Sink
    ) -> tuple[Request, ChunkBuilder]:
        """Validate, render and tokenize a task."""
        arrived = time.monotonic()
        self._refuse_another(task)
        params = image_params(task)
        if images is None:
            images = self._prepare_images(task, params) if params else ()
        with self._prepare_lock:
            prompt = self._renderer.render(task, images)
            settings = resolve_settings(
                task.generation_config,
                self._loaded.model,
                prompt_tokens=len(prompt.token_ids),
                context_length=self._loaded.context_length,
                cut_to_context=self.config.cut_to_context,
                continuous_batching=self._loop.assembly.batching.problem is None,
            )
        if not settings.batched and self.config.tensor_parallel:
            raise TaskArgsInvalid(
                "generation_config, or the model's own settings, ask for a task that runs alone "
                f"through generate; this model is split over {self.config.num_devices} devices, "
                "where tasks run in the batch only: leave guidance_scale out"
            )
        formats = self._loop.assembly.formats
        if task.forces_calls:
            formats = formats.that_can_be_forced()
        hidden = None
        parsers: Sequence[MessageParser] = ()
        if task.answer_format == "message":
            parsers = message_parsers(
                formats,
                task,
                prompt.token_ids,
                prompt.text_end,
                num_choices=settings.num_sequences,
                stop_strings=settings.stop_strings,
            )
            if task.use_chat_template:
                hidden = formats.hidden_tokens(with_tools=bool(task.tools))
        answers = [
            SequenceState(index, Detokenizer(self._loaded.tokenizer, settings.stop_strings, hidden))
            for index in range(settings.num_rows if settings.batched else settings.num_sequences)
        ]
        sink = self._meter.watch(
            sink,
            prompt_tokens=len(prompt.token_ids),
            num_answers=settings.num_sequences,
            arrived=arrived,
        )
        request = Request(prompt, settings, task.seed, answers, sink, token_texts=self._token_texts)
        self._loop.scheduler.check_fits(request)
        if (grammar := task_grammar(task, formats, prompt.text_end)) is not None:
            self._constrain(request, grammar)
        response = ChunkBuilder(
            task.model, self._card["system_fingerprint"], request.prompt_tokens, parsers
        )
        return request, response

    def _refuse_another(self, task: Task) -> None:
        """Refuse a task for another model, or for this one in another form.

        A directory without ``model_id`` has no name that a task could give.
        """
        config, dtype = self.config, self._card["dtype"]
        if task.model != config.name and (config.model_id or not is_directory(config)):
            raise ModelInvalid(
                f"model {task.model!r} is not served here; served: {config.name}", param="model"
            )
        if task.quantize_bits != config.quantize_bits:
            raise TaskArgsInvalid(
                f"{task.model} is not served with quantize_bits {dumps(task.quantize_bits)}, but "
                f"with {dumps(config.quantize_bits)}",
                param="quantize_bits",
            )
        if task.dtype not in ("auto", dtype):
            raise TaskArgsInvalid(
                f"{task.model} is not served with dtype {task.dtype!r}, but with {dtype!r}",
                param="dtype",
            )

    def _constrain(self, request: Request, grammar: Grammar) -> None:
        """Have all answers of a request keep to a grammar."""
        _refuse_beams(request.settings, grammar)
        with self._prepare_lock:
            if self._grammars is None:
                eos = request.settings.eos_token_ids
                self._grammars = GrammarCompiler(self._loaded.tokenizer, eos, grammar.param)
        matcher = self._grammars.compile(grammar)
        for answer in request.sequences:
            answer.matcher = matcher.fork()

    def _prepare_images(self, task: Task, params: Sequence[str]) -> ImageInputs:
        with self._prepare_lock:
            if self._preprocessor is None:
                self._preprocessor = ImagePreprocessor(self.config)
            return self._preprocessor(task.split_images()[1], params)


def _refuse_beams(settings: SamplingParams, grammar: Grammar) -> None:
    """The task has no beams, or it would have been refused; a model's own settings may."""
    if settings.num_beams > 1:
        raise TaskArgsInvalid(
            f"{grammar.param} cannot be kept to by a beam search, which this model's own settings "
            "ask for: set generation_config.num_beams to 1",
            param=grammar.param,
        )
