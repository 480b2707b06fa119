"""The generate fallback: a whole task through transformers' ``generate``, alone on the device.

It serves what continuous batching does not cover: models whose layers keep another kind of state,
and settings that need another kind of forward. A task that runs alone has shapes, and so bits, that
depend on this task only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from engine.execution.prompt_scores import ScoredRows, body_runs_once
from engine.loading.loaded_model import LoadedModel
from engine.platform.platforms import platform_of
from engine.platform.transfer import upload
from engine.requests.outputs import ChoiceDelta
from engine.requests.request import Request
from engine.sampling.grammar import Matcher
from engine.sampling.grammar_mask import GrammarMask
from engine.sampling.logprobs import LastLogits, Logprobs
from engine.sampling.penalties import own_processors
from engine.sampling.sampler import check_numbers
from engine.sampling.trace import logits_of
from schema.errors import TaskExecutionError

_HEAD_ROWS = 32
"""Rows of a prompt whose logits are computed at once, to bound their memory."""


class _Watch(StoppingCriteria):
    """Called by `generate` after every token: streams plain decoding, stops a cancelled task.

    It also stops at stop strings. `generate`'s own criterion compares tokens and not the text, and
    takes the bytes of byte-level tokenizers for letters.

    Attributes:
        last: the deltas of the last token. They are the caller's to report, after `generate`.
    """

    def __init__(self, request: Request, logits: LastLogits, *, stream: bool) -> None:
        self._request = request
        self._logits = logits
        self._stream = stream
        self.last: list[ChoiceDelta] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        request = self._request
        if self._stream and not request.cancel_requested:
            tokens = input_ids[:, -1]
            deltas = [
                delta
                for sequence, token_id, (report, logit) in zip(
                    request.sequences, tokens.tolist(), self._reports(tokens), strict=True
                )
                if not sequence.finished
                and (delta := request.accept(sequence, token_id, report, logit))
            ]
            if request.running:
                request.emit(deltas)
            else:
                self.last = deltas
        if request.cancel_requested:
            stop = [True] * len(input_ids)
        elif self._stream:
            stop = [sequence.finished for sequence in request.sequences]
        else:
            stop = self._beams_stopped(input_ids[:, request.prompt_tokens :].tolist())
        return torch.tensor(stop, device=input_ids.device)

    def _reports(self, tokens: torch.Tensor) -> list[tuple[Any, Any]]:
        """Log probabilities and logits of tokens [sequences], as `Request.accept` takes them."""
        reports: list[Any] = [None] * len(tokens)
        logits: list[Any] = [None] * len(tokens)
        if _needs_logits(self._request):
            of_model = self._logits.take()
            if (num_top := self._request.settings.logprobs) is not None:
                reports = Logprobs(of_model, num_top).of(tokens).tolist()
            if self._request.is_traced:
                logits = logits_of(tokens, of_model).tolist()
        return list(zip(reports, logits, strict=True))

    def _beams_stopped(self, beams: list[list[int]]) -> list[bool]:
        if not self._request.settings.stop_strings:
            return [False] * len(beams)
        fresh = self._request.sequences[0].detokenizer
        return [fresh.stops_in(beam) for beam in beams]


def _needs_logits(request: Request) -> bool:
    """Whether something is reported of the model's own logits."""
    return request.settings.logprobs is not None or request.is_traced


class _NumbersOnly(LogitsProcessor):
    """Ends the task where `generate` would go on with NaN."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        check_numbers(scores)
        return scores


def _matchers(request: Request) -> list[Matcher | None]:
    """Of the rows of `generate`, which goes on with sequences that are finished."""
    return [None if answer.finished else answer.matcher for answer in request.sequences]


@torch.inference_mode()
def _score_prompt(loaded: LoadedModel, request: Request, inputs: dict[str, Any]) -> None:
    """Report the log probabilities of the prompt's tokens, from the model's own forward."""
    report = request.report
    assert report is not None
    assert report.num_top is not None
    targets = report.targets(0, request.prompt_tokens)
    chooses_rows = loaded.model._supports_logits_to_keep()

    def logits_of(rows: Sequence[int]) -> torch.Tensor:
        keep = upload(rows, loaded.device)
        chosen = {"logits_to_keep": keep} if chooses_rows else {}
        logits: torch.Tensor = loaded.model(**inputs, **chosen, use_cache=False).logits[0]
        return (logits if chooses_rows else logits[keep]).float()

    with body_runs_once(loaded.model):
        for start in range(0, len(targets), _HEAD_ROWS):
            part = targets[start : start + _HEAD_ROWS]
            rows = ScoredRows(start, part, report.num_top, num_keep=len(part))
            report.add(rows.scores(logits_of, loaded.device).tolist())


def run_generate_fallback(loaded: LoadedModel, request: Request, images: dict[str, Any]) -> None:
    """Run a request to its end and report its text. The model's own attention must be on.

    ``images`` are the arguments of `generate` for the request's images.
    """
    settings = request.settings
    beams = settings.num_beams > 1
    logits = LastLogits()
    watch = _Watch(request, logits, stream=not beams)
    constrained = request.sequences[0].matcher is not None
    mask = [GrammarMask(lambda: _matchers(request))] if constrained else []
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([request.prompt.token_ids], device=loaded.device),
        **images,
    }
    own = own_processors(settings.penalties, request.prompt_tokens)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if request.scores_prompt:
        _score_prompt(loaded, request, inputs)
    if not settings.max_new_tokens:
        request.answer([()] * settings.num_sequences)
        return
    random_state_kept = platform_of(loaded.device).random_state_kept(loaded.device)
    # `generate` draws from the global generator; give it the task's seed, then put it back. Only
    # then is the end told: whoever waits for it may be another thread that sets a seed of its own.
    with random_state_kept, torch.inference_mode(), ExitStack() as hooks:
        if _needs_logits(request):
            hooks.callback(loaded.model.register_forward_hook(logits).remove)
        torch.manual_seed(request.seed)
        output = loaded.model.generate(
            **inputs,
            generation_config=settings.hf,
            logits_processor=LogitsProcessorList([*mask, _NumbersOnly(), *own]),
            stopping_criteria=StoppingCriteriaList([watch]),
            return_dict_in_generate=beams,
        )
    if request.cancel_requested:
        return  # the engine ends it
    if beams:
        # An answer that is shorter than the longest is padded at its end.
        lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
        rows = output.sequences[:, request.prompt_tokens :].tolist()
        request.answer([row[:length] for row, length in zip(rows, lengths, strict=True)])
    if request.running:
        raise TaskExecutionError("generate ended before the answer was complete")
    if not beams:
        request.emit(watch.last)
