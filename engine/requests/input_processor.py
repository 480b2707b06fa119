"""From a task to a `Request`: validated, rendered and tokenized, on its caller's thread."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from json import dumps
from typing import Any

from engine.config import EngineConfig
from engine.loading.adapters.adapter import Adapter
from engine.loading.loaded_model import LoadedModel
from engine.loading.snapshot import is_local
from engine.requests.chunks import ChunkBuilder
from engine.requests.outputs import Sink
from engine.requests.prompt import Prompt, PromptRenderer
from engine.requests.prompt_report import PromptReport
from engine.requests.record import Recorder
from engine.requests.request import Request, SequenceState
from engine.requests.stats import Meter
from engine.requests.verification.claimed_tokens import ClaimCheck
from engine.sampling.grammar import Grammar, GrammarCompiler
from engine.sampling.logprobs import TokenTexts
from engine.sampling.settings import SamplingParams, resolve_settings
from engine.sampling.task_grammar import task_grammar
from engine.text.detect import MessageFormats
from engine.text.detokenizer import Detokenizer
from engine.text.message import MessageParser, message_parsers, stop_watch
from engine.vision.preprocessor import ImageInputs, ImagePreprocessor, image_params
from schema.answers.verification import Claim
from schema.errors import ModelInvalid, TaskArgsInvalid
from schema.generation import MAX_ANSWER_LOGPROBS
from schema.model_variant import unknown_adapter
from schema.task import Task


class InputProcessor:
    """Makes requests of the tasks for one model. Thread safe."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel,
        renderer: PromptRenderer,
        formats: MessageFormats,
        *,
        recorder: Recorder,
        card: Mapping[str, Any],
        adapters: Mapping[str, Adapter],
        continuous_batching: bool,
        long_after: int | None,
        check_fits: Callable[[Request], None],
        meter: Meter,
    ) -> None:
        """Keep the parts of the model that tasks need.

        Args:
            config: of the engine.
            loaded: the model.
            renderer: of its prompts.
            formats: of its messages.
            recorder: of its answers.
            card: of the engine: what its answers carry as ``system_fingerprint``.
            adapters: that tasks may name, by name.
            continuous_batching: whether its tasks can run together.
            long_after: see `engine.sampling.settings.resolve_settings`.
            check_fits: raises `TaskError` for a request that could never run.
            meter: watches every request.
        """
        self._config = config
        self._loaded = loaded
        self._renderer = renderer
        self._formats = formats
        self._recorder = recorder
        self._card = card
        self._adapters = adapters
        self._continuous_batching = continuous_batching
        self._long_after = long_after
        self._check_fits = check_fits
        self._meter = meter
        self._token_texts = TokenTexts(loaded.tokenizer)
        self._preprocessor: ImagePreprocessor | None = None
        self._grammars: GrammarCompiler | None = None
        self._lock = threading.Lock()  # tokenizers are not safe to share between threads

    def prepare(
        self,
        task: Task,
        images: ImageInputs | None,
        sink: Sink,
        known: Sequence[Sequence[int]] = (),
        claim: Claim | None = None,
    ) -> tuple[Request, ChunkBuilder]:
        """Validate, render and tokenize a task.

        Args:
            task: the task.
            images: its prepared images; None to prepare them here.
            sink: takes the outputs of the request.
            known: what the answers' first tokens are expected to be, see `Engine.submit`.
            claim: what is claimed to be the answer, if it is only to be verified.

        Returns:
            The request, and the builder of its chunks.

        Raises:
            TaskError: the task is refused.
        """
        try:
            return self._prepared(task, images, sink, known, claim)
        except TaskArgsInvalid as error:
            if task.prompt_token_ids is None:
                raise
            raise _about_token_ids(error) from error

    def _prepared(
        self,
        task: Task,
        images: ImageInputs | None,
        sink: Sink,
        known: Sequence[Sequence[int]],
        claim: Claim | None,
    ) -> tuple[Request, ChunkBuilder]:
        arrived = time.monotonic()
        self._refuse_another(task)
        adapter = self._adapter(task)
        params = image_params(task)
        if images is None:
            images = self._prepare_images(task, params) if params else ()
        with self._lock:
            prompt = self._renderer.render(task, images)
            settings = self._settings(task, prompt)
        if claim is not None:
            known = [choice.token_ids for choice in claim.response.choices]
            settings = _for_claims(settings, known)
        texts = self._token_texts
        report = None
        tells_ids = task.return_token_ids or claim is not None
        if task.echo or tells_ids or settings.prompt_logprobs is not None:
            report = PromptReport(
                prompt,
                texts,
                echo=task.echo,
                token_ids=tells_ids,
                num_top=settings.prompt_logprobs,
            )
        formats = self._formats
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
                num_choices=settings.num_sequences * settings.copies,
                stop_strings=settings.stop_strings,
            )
            if task.use_chat_template:
                hidden = formats.hidden_tokens(with_tools=bool(task.tools))
        watch = stop_watch(formats, task, prompt.text_end, settings.stop_strings)
        answers = [
            SequenceState(index, Detokenizer(self._loaded.tokenizer, watch.fork(), hidden))
            for index in range(settings.num_rows if settings.batched else settings.num_sequences)
        ]
        for answer, expected in zip(answers, known, strict=False):
            answer.known = tuple(expected)
        sink = self._meter.watch(
            sink,
            prompt_tokens=len(prompt.token_ids),
            num_answers=settings.num_sequences,
            arrived=arrived,
            verifies=claim is not None,
        )
        request = Request(
            prompt, settings, task.seed, answers, sink, adapter, report=report, token_texts=texts
        )
        request.reports_token_ids = tells_ids
        request.is_traced = task.receipt if claim is None else claim.response.receipt is not None
        if claim is not None and settings.batched and settings.num_beams == 1:
            for index, answer in enumerate(answers):
                claimed = known[index] if index < len(known) else ()
                answer.check = ClaimCheck(claimed, claim.tolerance)
        self._check_fits(request)
        if (grammar := task_grammar(task, formats, prompt.text_end)) is not None:
            self._constrain(request, grammar)
        response = ChunkBuilder(
            task.model,
            (self._card["adapters"][adapter.name] if adapter else self._card)["system_fingerprint"],
            request.prompt_tokens,
            parsers,
            settings.copies,
            partial(self._recorder.of, request) if request.is_traced else None,
        )
        return request, response

    def _settings(self, task: Task, prompt: Prompt) -> SamplingParams:
        settings = resolve_settings(
            task.generation_config,
            self._loaded.model,
            prompt_tokens=len(prompt.token_ids),
            context_length=self._loaded.context_length,
            cut_to_context=self._config.cut_to_context,
            default_max_new_tokens=self._config.default_max_new_tokens,
            continuous_batching=self._continuous_batching,
            long_after=self._long_after,
        )
        if not settings.batched and self._config.tensor_parallel:
            raise TaskArgsInvalid(
                "generation_config, or the model's own settings, ask for a task that runs alone "
                f"through generate; this model is split over {self._config.num_devices} devices, "
                "where tasks run in the batch only: leave guidance_scale out"
            )
        _refuse_too_many_logprobs(settings)
        return settings

    def _refuse_another(self, task: Task) -> None:
        """Refuse a task for another model, or for another variant of this one.

        A directory or file without ``model_id`` has no name that a task could use.
        """
        config, wanted = self._config, task.variant
        if wanted.id != config.name:  # which may hold a colon, as `org/repository:file.gguf`
            wanted = wanted.base
        own = replace(config.variant, dtype=self._recorder.dtype)
        if wanted.id != own.id and (config.model_id or not is_local(config)):
            raise ModelInvalid(
                f"model {wanted.id!r} is not served here; served: {own.id}", param="model"
            )
        if wanted.quantize_bits != own.quantize_bits:
            raise TaskArgsInvalid(
                f"{wanted.id} is not served with quantize_bits {dumps(wanted.quantize_bits)}, but "
                f"with {dumps(own.quantize_bits)}",
                param="quantize_bits",
            )
        if wanted.dtype not in ("auto", own.dtype):
            raise TaskArgsInvalid(
                f"{wanted.id} is not served with dtype {wanted.dtype!r}, but with {own.dtype!r}",
                param="dtype",
            )

    def _adapter(self, task: Task) -> Adapter | None:
        """The adapter that a task names."""
        name = None if task.model == self._config.name else task.variant.adapter
        if name is not None and name not in self._adapters:
            raise unknown_adapter(task.variant, self._adapters)
        return None if name is None else self._adapters[name]

    def _constrain(self, request: Request, grammar: Grammar) -> None:
        """Constrain all answers of a request by a grammar."""
        _refuse_beams(request.settings, grammar)
        with self._lock:
            if self._grammars is None:
                eos = request.settings.eos_token_ids
                self._grammars = GrammarCompiler(self._loaded.tokenizer, eos, grammar.param)
        matcher = self._grammars.compile(grammar)
        for answer in request.sequences:
            answer.matcher = matcher.fork()

    def _prepare_images(self, task: Task, params: Sequence[str]) -> ImageInputs:
        with self._lock:
            if self._preprocessor is None:
                self._preprocessor = ImagePreprocessor(self._config)
            return self._preprocessor(task.split_images()[1], params)


def _for_claims(settings: SamplingParams, claimed: Sequence[Sequence[int]]) -> SamplingParams:
    """Settings under which each claim is checked: different ones of equal answers one by one."""
    if settings.copies == 1 or all(one == claimed[0] for one in claimed):
        return settings
    return replace(settings, num_sequences=settings.copies, copies=1)


def _refuse_too_many_logprobs(settings: SamplingParams) -> None:
    """Refuse an answer whose log probabilities would not fit into a response."""
    if settings.logprobs is None:
        return
    # Copies are computed once, but told as often as they are asked for.
    choices, tokens = settings.num_sequences * settings.copies, settings.max_new_tokens
    count = choices * tokens * (1 + settings.logprobs)
    if count > MAX_ANSWER_LOGPROBS:
        raise TaskArgsInvalid(
            f"generation_config.logprobs: {choices} choices of up to {tokens} tokens, with "
            f"{settings.logprobs} alternatives each, are {count} log probabilities, and an answer "
            f"may have at most {MAX_ANSWER_LOGPROBS}: ask for fewer choices, tokens or "
            "alternatives",
            param="generation_config.logprobs",
        )


def _about_token_ids(error: TaskArgsInvalid) -> TaskArgsInvalid:
    """The same error for a task whose prompt is token ids: they take the place of messages."""
    message = re.sub(r"\bmessages\b", "prompt_token_ids", error.message)
    param = "prompt_token_ids" if error.param == "messages" else error.param
    return type(error)(message, param, error.retry_after_s)


def _refuse_beams(settings: SamplingParams, grammar: Grammar) -> None:
    """Refuse beams that come from the model's own settings; those of a task are refused earlier."""
    if settings.num_beams > 1:
        raise TaskArgsInvalid(
            f"{grammar.param} cannot be kept to by a beam search, which this model's own settings "
            "ask for: set generation_config.num_beams to 1",
            param=grammar.param,
        )
