"""The models of these tests, and engines whose drafts a test chooses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from shutil import copytree
from typing import Any, cast

from transformers import AutoConfig, AutoTokenizer

from engine import Engine, EngineConfig
from engine.core.speculation.guesser import Guess, Guesser
from engine.requests.request import Request, SequenceState
from tests.engine.core.speculation.drafts import DRAFTS, Place
from tests.engine.core.speculation.random_tasks import Vocabulary
from tests.engine.models.tiny_models import IMAGE

# Hermes' calls and reasoning between <think> and </think>, both spelled in bytes.
TEMPLATE = (
    "{%- if tools -%}[tools]{%- for tool in tools -%}{{ tool.function.name }} {%- endfor -%}"
    '<tool_call>{"name", "arguments"}</tool_call>{%- endif -%}'
    "{%- for message in messages -%}[{{ message.role }}]"
    "{%- if message.reasoning_content -%}<think>{{ message.reasoning_content }}</think>"
    "{%- endif -%}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- elif message.content -%}{%- for block in message.content -%}"
    "{%- if block.type == 'image' -%}" + IMAGE + "{%- else -%}{{ block.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- for call in message.tool_calls or [] -%}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{%- endfor -%}"
    "{%- endfor -%}[assistant]{%- if enable_thinking -%}<think>{%- endif -%}"
)

A, E = 64, 68  # ids of "a" and "e" in the tiny models' vocabularies

# What a model's own generation_config.json may ask for beside the settings of a task.
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "short": {
        "eos_token_id": [256, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80],
        "min_new_tokens": 3,
        "bad_words_ids": [[A], [E, E], [33, 34]],
        "begin_suppress_tokens": [65, 66, 67],
        "exponential_decay_length_penalty": [5, 1.1],
    },
    "particular": {
        "no_repeat_ngram_size": 2,
        "suppress_tokens": [90, 91, 92],
        "sequence_bias": [[[A], -3.0], [[E, A], 4.0]],
        "top_k": 30,
        "epsilon_cutoff": 0.001,
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "repetition_penalty": 1.1,
    },
    "marked": {  # a watermark: which tokens are favoured depends on the last ones
        "watermarking_config": {
            "bias": 2.5,
            "greenlist_ratio": 0.25,
            "seeding_scheme": "selfhash",
            "context_width": 2,
        },
        "top_h": 0.7,
    },
}

ARITHMETIC: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize_bits": 8},
    "nf4": {"dtype": "bfloat16", "quantize_bits": 4},
}


def save_variant(
    tiny: Path, directory: Path, own: dict[str, Any] | None = None, image: str = IMAGE
) -> None:
    """Copy a tiny model, and give it a template and settings of its own.

    Args:
        tiny: the model.
        directory: of the copy.
        own: settings of its ``generation_config.json``.
        image: what a prompt has in the place of an image.
    """
    copytree(tiny, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE.replace(IMAGE, image))
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (own or {})))


def tiny_vocabulary(
    directory: Path, *, image: str | None = IMAGE, quantize_bits: int | None = None
) -> Vocabulary:
    """What random tasks have to know of a tiny model, whose image token is ``image``."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return Vocabulary(
        "tiny",
        size=AutoConfig.from_pretrained(directory).get_text_config().vocab_size,
        prompt_ids=range(256),  # bytes
        end=tokenizer.eos_token_id,
        image=None if image is None else tokenizer.convert_tokens_to_ids(image),
        quantize_bits=quantize_bits,
    )


def smollm2_vocabulary(directory: Path, quantize_bits: int | None = None) -> Vocabulary:
    """What random tasks have to know of SmolLM2-135M-Instruct, whose answers are kept short."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    return Vocabulary(
        "SmolLM2",
        size=AutoConfig.from_pretrained(directory).get_text_config().vocab_size,
        prompt_ids=range(256, len(tokenizer)),
        end=tokenizer.eos_token_id,
        longest=24,
        quantize_bits=quantize_bits,
        reasons=False,
    )


@dataclass
class Script:
    """Which drafts a request gets.

    Attributes:
        kind: of `DRAFTS`; None for the engine's own.
        answers: what its sequences will have drawn at the end.
        rng: of its drafts.
        offered: how many drafts were asked for and given.
    """

    kind: str | None
    answers: Sequence[Sequence[int]]
    rng: Random
    offered: int = 0


@dataclass
class ScriptedGuesser:
    """Takes the place of an engine's guesser: by the request's `log_id` it plays a script."""

    own: Guesser
    vocabulary: Vocabulary
    scripts: dict[str, Script] = field(default_factory=dict)

    def guess(self, request: Request, sequence: SequenceState, limit: int) -> Guess:
        """At most ``limit`` tokens that are said to follow, with certainty."""
        assert request.beams is None, "beams do not speculate"
        script = self.scripts.get(request.log_id)
        if script is None or script.kind is None:
            return self.own.guess(request, sequence, limit)
        answer: Sequence[int] = ()
        if sequence.index < len(script.answers):
            answer = script.answers[sequence.index]
        place = Place(answer[sequence.num_sampled :], script.rng, self.vocabulary)
        draft = DRAFTS[script.kind](place)[:limit]
        script.offered += len(draft)
        return Guess(draft, [1.0] * len(draft))

    def learn(self, sequence: SequenceState, num_drafts: int, num_right: int) -> None:
        """Let the engine's own guesser learn, as far as the guesses were its own."""
        self.own.learn(sequence, num_drafts, num_right)


class Guided:
    """An engine with speculation, whose drafts a test chooses."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary) -> None:
        """Put a scripted guesser into an engine."""
        self.engine = engine
        self.vocabulary = vocabulary
        self._speculation = speculation = engine._loop._execution.speculation
        assert speculation._sizes is not None
        assert speculation.guesser is not None
        self._sizes = speculation._sizes
        self.guesser = ScriptedGuesser(speculation.guesser, vocabulary)
        speculation.guesser = cast(Guesser, self.guesser)

    @contextmanager
    def none(self) -> Iterator[None]:
        """As with speculation off."""
        self._speculation.guesser = None
        try:
            yield
        finally:
            self._speculation.guesser = cast(Guesser, self.guesser)

    def give_back(self) -> None:
        """Leave the engine as it was."""
        self._speculation.guesser = self.guesser.own
        self.take_all(False)

    def take_all(self, yes: bool) -> None:
        """Whether a step has as many drafts as it can hold, or as many as pay."""
        self._speculation._sizes = (
            replace(self._sizes, seconds={}, attention_seconds=0.0) if yes else self._sizes
        )


@contextmanager
def opened(directory: Path, **options: Any) -> Iterator[Engine]:
    """An engine of a tiny model; at the end no page of its cache is lost."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "prefill_chunk": 16}
    engine = Engine(EngineConfig(model=str(directory), **settings | options))
    try:
        yield engine
    finally:
        engine.close()
        engine._loop.scheduler.check_integrity()
