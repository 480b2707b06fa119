"""From logits to the next tokens: transformers' processors and the task's own generator.

``torch.multinomial`` with one sample is an exponential race, ``argmax(probs / q)`` with ``q ~
Exp(1)`` drawn in the shape of ``probs``. A task that draws ``[num_return_sequences, vocab]`` in
each step from its own generator samples the tokens that ``set_seed(seed); model.generate(...)``
samples, while it shares its forwards with other requests in the batch.

The part that depends on a task's settings or its random state (`Sampler.candidates`) runs task by
task; the rest (`sample`) runs once for all rows of a step. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from engine.platform.platforms import platform_of
from engine.platform.transfer import upload
from engine.sampling.draws import exponential, race
from engine.sampling.draws.noise import Noise, Place, max_steps_ahead
from engine.sampling.draws.race import UNCERTAIN, RowToSample, Rule
from engine.sampling.draws.top_p import QuickTopP
from engine.sampling.grammar import Matcher
from engine.sampling.grammar_mask import GrammarMask
from engine.sampling.logprobs import Logprobs, aligned
from engine.sampling.penalties import TokenBias, own_processors
from engine.sampling.settings import SamplingParams
from schema.errors import TaskArgsInvalid, TaskExecutionError

INVALID_LOGITS = -1
"""In place of a token: the model's logits, or what processors made of them, are not numbers."""

_NO_HISTORY = torch.empty(0, 0, dtype=torch.int64)
_READ_NO_HISTORY = (
    GrammarMask,
    TokenBias,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
"""Processors that make of a row of scores the same whatever tokens came before."""


@dataclass
class Candidates:
    """What the next tokens of some sequences are sampled from.

    Attributes:
        scores: float32 [sequences, vocab], before ``tail``.
        noise: Exp(1) in the same shape, to sample; None to take the largest score.
        logprobs: of the model's own logits, where the task asks for them.
        logits: the model's own, float32 [sequences, vocab], where a trace is kept.
        tail: processors that have not been applied to the scores.
        rule: what these do, where `engine.sampling.draws.race` computes it; else None.
    """

    scores: torch.Tensor
    noise: torch.Tensor | None
    logprobs: Logprobs | None = None
    logits: torch.Tensor | None = None
    tail: Sequence[LogitsProcessor] = ()
    rule: Rule | None = None

    def prepared(self, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Scores after all processors, of some rows or all: float32 [rows, vocab]."""
        scores = self.scores if rows is None else self.scores[list(rows)]
        return _apply(self.tail, _NO_HISTORY, scores)


class Sampler:
    """Scores tokens for the sequences of one task; owns its random state.

    A place may be computed before the tokens before it are certain (`expect`). What is computed
    there is a function of the task and of these tokens; if they turn out to be others, it is
    computed again.
    """

    def __init__(
        self,
        model: Any,
        settings: SamplingParams,
        prompt_ids: Sequence[int],
        seed: int,
        device: torch.device,
        *,
        constrained: bool = False,
        traced: bool = False,
    ) -> None:
        """``constrained``: a grammar forbids tokens, before the processors that choose among them,
        such as top_k. ``traced``: the logits of the tokens are kept, for a trace."""
        self._traced = traced
        self._num_sequences = settings.num_sequences
        self._num_top = settings.logprobs
        self._prompt_tokens = len(prompt_ids)
        vocab_size = model.config.get_text_config().vocab_size
        self._noise: Noise | None = None
        self.max_steps_ahead = settings.max_new_tokens
        if settings.hf.do_sample:
            self._noise = Noise(settings.num_sequences, seed, device)
            self.max_steps_ahead = max_steps_ahead(settings.num_sequences, vocab_size)
        self._matchers: Sequence[Matcher | None] = ()
        mask = GrammarMask(lambda: self._matchers) if constrained else None
        prompt = upload(prompt_ids, device)[None]
        processors = list(logits_processors(model, settings, prompt, mask))
        reading = [n for n, p in enumerate(processors) if not isinstance(p, _READ_NO_HISTORY)]
        first_alike = reading[-1] + 1 if reading else 0
        first_of_tail = len(processors)
        self._rule: Rule | None = None
        if settings.hf.do_sample and platform_of(device).shares_host_memory:
            first_of_tail, self._rule = _tail(processors, first_alike)
        # The first ones, up to the last that reads earlier tokens, take rows with equally many of
        # them; the others take all rows at once. Those of the tail may not have to be applied.
        self._by_history = processors[:first_alike]
        self._row_by_row = processors[first_alike:first_of_tail]
        if self._rule is not None:
            self._row_by_row = [
                QuickTopP(each) if type(each) is TopPLogitsWarper else each
                for each in self._row_by_row
            ]
        self._tail = processors[first_of_tail:]
        # [num_sequences, tokens]: what processors read. Rows are filled as far as tokens are known
        # or expected.
        self._ids = prompt.repeat(self._num_sequences, 1)
        if self._by_history:
            self._ids = pad(self._ids, (0, settings.max_new_tokens))

    def candidates(
        self,
        logits: torch.Tensor,
        places: Sequence[Place],
        matchers: Sequence[Matcher | None] = (),
    ) -> Candidates:
        """What the next tokens are sampled from; draws from the task's generator.

        Args:
            logits: float32 [places, vocab].
            places: at least one; each sequence and step at most once.
            matchers: at each place, of a constrained task.
        """
        logprobs = None if self._num_top is None else Logprobs(logits, self._num_top)
        # A copy, because processors may write into what they get.
        processed = bool(self._by_history or self._row_by_row)
        own = (logits.clone() if processed else logits) if self._traced else None
        scores = self._with_history(logits, places, matchers) if self._by_history else logits
        self._matchers = matchers
        scores = _apply(self._row_by_row, self._ids, scores)
        noise = None if self._noise is None else self._noise.of(places, logits.shape[1])
        return Candidates(scores, noise, logprobs, own, self._tail, self._rule)

    def noise_for(self, places: Sequence[Place]) -> list[tuple[Noise, Sequence[Place]]]:
        """What `draw_noise` takes, to draw for several tasks at once before `candidates`."""
        return [] if self._noise is None else [(self._noise, places)]

    def _with_history(
        self, logits: torch.Tensor, places: Sequence[Place], matchers: Sequence[Matcher | None]
    ) -> torch.Tensor:
        """Scores [places, vocab] after the processors that read earlier tokens."""
        groups: dict[int, list[int]] = {}
        for row, place in enumerate(places):
            groups.setdefault(place.step, []).append(row)
        parts: list[torch.Tensor] = []
        for step, rows in groups.items():
            self._matchers = [matchers[row] for row in rows] if matchers else ()
            ids = self._rows_of([places[row].sequence for row in rows])
            part = logits
            if len(groups) > 1:
                part = logits.index_select(0, upload(rows, logits.device))
            parts.append(_apply(self._by_history, ids[:, : self._prompt_tokens + step], part))
        if len(parts) == 1:
            return parts[0]
        order = [row for rows in groups.values() for row in rows]
        if order == sorted(order):
            return torch.cat(parts)
        where = upload(order, logits.device)
        return torch.empty_like(logits).index_copy_(0, where, torch.cat(parts))

    def _rows_of(self, indices: Sequence[int]) -> torch.Tensor:
        if list(indices) == list(range(self._num_sequences)):
            return self._ids
        if len(indices) == 1:
            return self._ids[indices[0] : indices[0] + 1]
        return self._ids.index_select(0, upload(indices, self._ids.device))

    def expect(self, place: Place, tokens: Sequence[int]) -> None:
        """Say which tokens probably come at a place and after it."""
        if self._by_history and tokens:
            start = self._prompt_tokens + place.step
            self._ids[place.sequence, start : start + len(tokens)] = upload(
                tokens, self._ids.device
            )

    def advance(self, tokens: Sequence[tuple[Place, torch.Tensor]]) -> None:
        """Say which tokens, scalars, come at places, for processors that read earlier tokens."""
        if not self._by_history:
            return
        for place, token in tokens:
            # `INVALID_LOGITS` ends the task, but later: until then it must not be an index.
            self._ids[place.sequence, self._prompt_tokens + place.step] = token.clamp(min=0)

    def forget(self, step: int) -> None:
        """Say that no place before this step is computed any more."""
        if self._noise is not None:
            self._noise.forget(step)


def prepare_sampling(device: torch.device) -> None:
    """Compile what samples on this device, so that no task waits for it."""
    if platform_of(device).shares_host_memory:
        exponential.prepare()
        race.prepare()


def _tail(processors: Sequence[LogitsProcessor], first: int) -> tuple[int, Rule]:
    """From which processor on, not before ``first``, they are a rule, and which."""
    for start in range(first, len(processors)):
        if (rule := Rule.of(processors[start:])) is not None:
            return start, rule
    return len(processors), Rule()


def _apply(
    processors: Sequence[LogitsProcessor], ids: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """As transformers' list of them does, which asks each of them for its signature first."""
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def sample(batch: Sequence[Candidates]) -> torch.Tensor:
    """Sample a token for every row of a batch.

    Every row is computed by itself, so that its bits do not depend on the others.

    Returns:
        int64 [rows of all], in order; `INVALID_LOGITS` where a row has no largest score: NaN,
        overflow, or everything forbidden.
    """
    sampled: dict[int, torch.Tensor] = {}
    greedy = [i for i, one in enumerate(batch) if one.noise is None]
    ruled = [i for i, one in enumerate(batch) if one.noise is not None and one.rule is not None]
    others = [i for i, one in enumerate(batch) if one.noise is not None and one.rule is None]
    for members, sampling in ((greedy, _best), (ruled, _by_rule), (others, _by_race)):
        if members:
            own = [batch[i] for i in members]
            tokens = sampling(own).split([len(one.scores) for one in own])
            sampled.update(zip(members, tokens, strict=True))
    return _rows([sampled[i] for i in range(len(batch))])


def _best(batch: Sequence[Candidates]) -> torch.Tensor:
    return _largest(_rows([one.prepared() for one in batch]))


def _by_race(batch: Sequence[Candidates]) -> torch.Tensor:
    noise = [one.noise for one in batch if one.noise is not None]
    return _race(_rows([one.prepared() for one in batch]), _rows(noise))


def _by_rule(batch: Sequence[Candidates]) -> torch.Tensor:
    """By one call for all rows; torch's operations decide what it leaves open."""
    rows = [
        RowToSample(scores, noise, one.rule)
        for one in batch
        if one.noise is not None and one.rule is not None
        for scores, noise in zip(one.scores.contiguous(), one.noise, strict=True)
    ]
    tokens = race.race(rows)
    if np.any(tokens.numpy() == UNCERTAIN):  # on the host already, so nothing waits for it
        for one, own in zip(batch, tokens.split([len(one.scores) for one in batch]), strict=True):
            open_rows = np.flatnonzero(own.numpy() == UNCERTAIN).tolist()
            if open_rows and one.noise is not None:
                own[open_rows] = _race(one.prepared(open_rows), one.noise[open_rows])
    return tokens


def _rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _largest(scores: torch.Tensor) -> torch.Tensor:
    best = scores.argmax(dim=-1, keepdim=True)
    return torch.where(scores.gather(1, best).isfinite(), best, INVALID_LOGITS)[:, 0]


def _race(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    probabilities = torch.softmax(aligned(scores), dim=-1)[:, : scores.shape[1]]
    winners = probabilities.div_(noise).argmax(dim=-1)
    return torch.where(scores.amax(dim=-1).isfinite(), winners, INVALID_LOGITS)


def margins(one: Candidates, winners: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """By how much tokens lost to those that were sampled: float64 [rows].

    In the units of the race: of scores, or of log(probability) - log(noise). Infinity or NaN if a
    token is forbidden.

    Args:
        one: what the winners were sampled from.
        winners: int64 [rows].
        others: int64 [rows].
    """
    pairs = torch.stack([winners, others], dim=1).clamp(min=0)
    of_pairs = one.prepared().gather(1, pairs).double()
    if one.noise is not None:
        of_pairs -= one.noise.gather(1, pairs).double().log()
    return (of_pairs[:, 0] - of_pairs[:, 1]).clamp(min=0)


def check_numbers(scores: torch.Tensor) -> None:
    """Raise unless every row has a largest score.

    Raises:
        TaskExecutionError: the scores are not numbers.
    """
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise invalid_logits()


def invalid_logits() -> TaskExecutionError:
    """The error of a task whose logits are not numbers."""
    return TaskExecutionError("the model produced logits that are not numbers (NaN or infinity)")


def logits_processors(
    model: Any,
    settings: SamplingParams,
    prompt: torch.Tensor,
    mask: LogitsProcessor | None = None,
) -> Any:
    """The `LogitsProcessorList` that `generate` would use for a prompt [1, tokens].

    First transformers' own, such as the repetition penalty, then ``mask`` and those of
    `penalties`, then those that prepare sampling: temperature, top_k and so on. Adds to
    ``settings.hf`` what `generate` derives from the prompt and the model.

    Raises:
        TaskArgsInvalid: a setting has a value that transformers' processors refuse. The task's own
            values have been checked, so it is one of the model's ``generation_config.json``.
    """
    hf, device, num_tokens = settings.hf, prompt.device, prompt.shape[1]
    hf.max_length = num_tokens + hf.max_new_tokens
    if hf.min_new_tokens is not None:
        hf.min_length = num_tokens + hf.min_new_tokens
    model._prepare_special_tokens(hf, kwargs_has_attention_mask=True, device=device)
    masks = [] if mask is None else [mask]
    own = own_processors(settings.penalties, num_tokens)
    try:
        # transformers' own factory: which processors, with which defaults, in which order.
        return model._get_logits_processor(
            generation_config=hf,
            input_ids_seq_length=num_tokens,
            encoder_input_ids=prompt,
            device=str(device),
            model_kwargs={},
            logits_processor=LogitsProcessorList([*masks, *own]),
        )
    except (ValueError, TypeError, IndexError) as error:
        raise TaskArgsInvalid(
            f"generation_config: the model's own generation_config.json has a value that cannot be "
            f"used with this task ({error}): set that value in the task",
            param="generation_config",
        ) from error
