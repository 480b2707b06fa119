"""The effective generation settings of a task.

Order of precedence, as in transformers' ``generate``: the task's own settings, then the model's
``generation_config.json``, then transformers' defaults. Settings that transformers does not have
come from the task alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig as HFGenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from engine.sampling.penalties import Penalties, resolve_penalties
from schema.errors import ContextLengthExceeded, TaskArgsInvalid
from schema.generation import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_NUM_RETURN_SEQUENCES,
    GenerationConfig,
)

_BATCHED_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
_NOT_OF_TRANSFORMERS = {
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "prompt_logprobs"),
}


@dataclass(frozen=True)
class SamplingParams:
    """What the engine needs to know to generate.

    Attributes:
        hf: the effective transformers config, for processors and for the generate fallback.
        max_new_tokens: tokens to generate at most, per sequence.
        num_sequences: answers to compute.
        copies: how often to tell each of them: greedy answers are equal, and one is computed.
        eos_token_ids: tokens that end a sequence.
        stop_strings: texts that end a sequence; they are part of the answer, as in ``generate``.
        batched: whether continuous batching covers these settings; else `generate` runs them.
        penalties: settings that transformers does not have (`engine.sampling.penalties`).
        logprobs: alternatives to report with each token; None to report no log probabilities.
        prompt_logprobs: the same for the tokens of the prompt.
    """

    hf: HFGenerationConfig
    max_new_tokens: int
    num_sequences: int
    eos_token_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    batched: bool
    copies: int = 1
    penalties: Penalties = field(default_factory=Penalties)
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def num_beams(self) -> int:
        """Beams of a beam search; 1 where there is none."""
        return self.hf.num_beams or 1

    @property
    def num_rows(self) -> int:
        """Rows of a forward that the task takes: one for each answer, or for each beam."""
        return max(self.num_sequences, self.num_beams)


def resolve_settings(
    asked: GenerationConfig,
    model: Any,
    *,
    prompt_tokens: int,
    context_length: int,
    continuous_batching: bool,
    long_after: int | None = None,
    cut_to_context: bool = False,
    default_max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
) -> SamplingParams:
    """Overlay the task's settings on the model's own.

    Args:
        asked: the task's.
        model: which has its own.
        prompt_tokens: of the task.
        context_length: of the model.
        continuous_batching: whether its tasks can run together.
        long_after: after so many tokens the model computes a sequence otherwise, from its beginning
            (`engine.execution.modules.long_rope`); None if it does not.
        cut_to_context: see `engine.config`.
        default_max_new_tokens: of tasks that do not say it.

    Raises:
        TaskArgsInvalid: the prompt and the answer do not fit the context, or transformers refuses
            the combination of settings.
    """
    overrides: dict[str, Any] = asked.model_dump(
        exclude_none=True, exclude={"stop_strings", *_NOT_OF_TRANSFORMERS}
    )
    own = model.generation_config
    max_new_tokens = _max_new_tokens(
        asked.max_new_tokens,
        own.max_new_tokens or default_max_new_tokens,
        prompt_tokens,
        context_length,
        cut_to_context,
    )
    overrides["max_new_tokens"] = max(1, max_new_tokens)  # transformers refuses 0
    overrides.setdefault(
        "num_return_sequences", own.num_return_sequences or DEFAULT_NUM_RETURN_SEQUENCES
    )
    if asked.stop_strings is not None:
        overrides["stop_strings"] = list(asked.stop_strings)
    if asked.temperature == 0:  # transformers refuses 0; it means greedy
        overrides.update(temperature=1.0, do_sample=False)
    # Not through the constructor, which refuses values that only the model's own settings make
    # valid. The number of answers comes last, so that a wrong one gets our own error message.
    number = overrides.pop("num_return_sequences")
    wanted = HFGenerationConfig(num_return_sequences=1)
    for name, value in overrides.items():
        setattr(wanted, name, value)
    try:
        hf, _ = model._prepare_generation_config(wanted)
        hf.num_return_sequences = number
        hf.max_length = None  # max_new_tokens alone limits the length
        hf.max_time = None  # an answer must not depend on the machine's speed
        hf.return_dict_in_generate = False
        for name in ("num_beams", "num_return_sequences"):
            if not isinstance(getattr(hf, name), int | None):
                raise ValueError(f"{name} is {getattr(hf, name)!r} in the model's own settings")
        mode = hf.get_generation_mode()
        copies = 1
        if mode == GenerationMode.GREEDY_SEARCH:
            copies, hf.num_return_sequences = hf.num_return_sequences or 1, 1
        _refuse_logprobs_of_beams(hf, asked.logprobs)
        hf.validate(strict=False)
        stop_strings, hf.stop_strings = _stop_strings(hf), None  # the detokenizer watches for them
    except (ValueError, TypeError) as error:  # a TypeError comes from the model's own settings
        raise TaskArgsInvalid(f"generation_config: {error}", param="generation_config") from error
    return SamplingParams(
        hf=hf,
        max_new_tokens=max_new_tokens,
        num_sequences=hf.num_return_sequences,
        eos_token_ids=_eos_token_ids(hf),
        stop_strings=stop_strings,
        copies=copies,
        batched=continuous_batching
        and mode in _BATCHED_MODES
        and hf.guidance_scale in (None, 1)
        and not (long_after and prompt_tokens <= long_after < prompt_tokens + max_new_tokens),
        penalties=resolve_penalties(asked, model.config.get_text_config().vocab_size),
        logprobs=asked.logprobs,
        prompt_logprobs=asked.prompt_logprobs,
    )


def _refuse_logprobs_of_beams(hf: HFGenerationConfig, logprobs: int | None) -> None:
    if logprobs is not None and (hf.num_beams or 1) > 1:
        raise TaskArgsInvalid(
            "generation_config.logprobs are not reported for beams, and num_beams is "
            f"{hf.num_beams} in the model's own settings: leave it out, or set num_beams to 1",
            param="generation_config.logprobs",
        )


def _max_new_tokens(
    asked: int | None, default: int, prompt_tokens: int, context_length: int, cut: bool
) -> int:
    """The task's limit, checked or ``cut``; or the default, cut to what the context leaves."""
    left = context_length - prompt_tokens
    if left < (1 if asked is None else min(asked, 1)):
        answer = "" if asked == 0 else " and at least one token of answer"
        raise ContextLengthExceeded(
            f"messages: the prompt has {prompt_tokens} tokens, and this model's maximum context "
            f"length is {context_length} tokens, which must hold it{answer}: shorten the messages",
            param="messages",
        )
    if asked is None:
        return min(default, left)
    if cut:
        return min(asked, left)
    if asked > left:
        raise ContextLengthExceeded(
            f"generation_config.max_new_tokens is {asked}, but this model's maximum context length "
            f"is {context_length} tokens, of which the prompt takes {prompt_tokens}: ask for at "
            f"most {left}",
            param="generation_config.max_new_tokens",
        )
    return asked


def _stop_strings(hf: HFGenerationConfig) -> tuple[str, ...]:
    stop = hf.stop_strings
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _eos_token_ids(hf: HFGenerationConfig) -> frozenset[int]:
    eos = hf.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
