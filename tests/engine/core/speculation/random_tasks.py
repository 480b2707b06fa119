"""Random tasks of all settings: a task is a function of its seed and of the model that it is for.

Nothing here knows how the engine works. The settings, the forms and the kinds of prompts are those
of the contract (`schema`); what a model has is in a `Vocabulary`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from schema import Task
from tests.engine.sampling.grammar_tasks import SCHEMAS, WORD, closed, under
from tests.engine.sampling.test_generate_oracle import drawing

Fields = dict[str, Any]

PHRASES = (
    "the cat sat on the mat",
    "Marie Curie lived in Paris",
    '{"name": "Ada", "age": 36}',
    "def add(a, b):\n    return a + b\n",
    "grüße aus Köln 🙂",
    "one two three one two three one two",
    "7",
    " ",
)
PATTERNS = (
    "[ab]{2}-(0[1-9]|1[0-2])",
    "(yes|yesterday|no)!",
    "ab{3,30}c+",
    "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}",
    "(?s:.){3,9}",
)
CHOICES = (["abc"], ["yes", "yesterday", "no", "né", "日本"], ["x" * 40 + "a", "x" * 40 + "b"])
TOOLS: list[Fields] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": closed(city=WORD, days={"enum": [1, 2]}),
        },
    },
    {
        "type": "function",
        "function": {"name": "go", "parameters": {"type": "object", "properties": {}}},
    },
    {"type": "function", "function": {"name": "now"}},
]
CALL = {"id": "call-1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@dataclass(frozen=True)
class Vocabulary:
    """What random tasks have to know of a model.

    Attributes:
        model: the name that tasks call it by.
        size: of its vocabulary.
        prompt_ids: ids that a prompt may have.
        end: the id that ends an answer.
        image: the id that stands for images; None where the model has none.
        longest: most tokens of an answer.
        quantize_bits: of the engine.
        reasons: whether its template takes ``enable_thinking`` and the like.
    """

    model: str
    size: int
    prompt_ids: range
    end: int
    image: int | None = None
    longest: int = 40
    quantize_bits: int | None = None
    reasons: bool = True


def random_task(seed: int, vocabulary: Vocabulary) -> Task:
    """The task of a seed."""
    rng = Random(f"{seed} {vocabulary.model}")
    fields: Fields = {
        "model": vocabulary.model,
        "seed": rng.choice([0, seed, 2**32 - 1 - seed]),
        "quantize_bits": vocabulary.quantize_bits,
        "return_token_ids": rng.random() < 0.7,
        "receipt": rng.random() < 0.25,
        "echo": rng.random() < 0.15,
    }
    if rng.random() < 0.4:
        fields["answer_format"] = "message"
    fields |= _prompt(rng, vocabulary)
    templated = "messages" in fields and fields.get("use_chat_template", True)
    settings = _settings(rng, vocabulary)
    if settings.get("num_beams", 1) == 1:
        fields |= _form(rng, templated=templated)
    elif "logprobs" in settings:
        del settings["logprobs"]
    return Task.from_fields(**fields, generation_config=settings)


def random_tasks(seeds: Sequence[int], vocabulary: Vocabulary) -> list[Task]:
    """The tasks of several seeds."""
    return [random_task(seed, vocabulary) for seed in seeds]


# --- Prompts -------------------------------------------------------------------------------------


def _text(rng: Random) -> str:
    """Phrases, some of them again and again, so that guessing has something to find."""
    phrases = rng.choices(PHRASES, k=rng.choice([1, 1, 2, 3]))
    noise = "".join(chr(rng.randrange(33, 127)) for _ in range(rng.choice([0, 0, 5, 14])))
    return (" ".join(phrases) + noise) * rng.choice([1, 1, 2])


def _prompt(rng: Random, vocabulary: Vocabulary) -> Fields:
    kind = rng.random()
    if kind < 0.15:
        return {"prompt_token_ids": rng.choices(vocabulary.prompt_ids, k=rng.choice([1, 16, 37]))}
    if kind < 0.25:
        messages = [{"role": "user", "content": _text(rng)}]
        return {"messages": messages, "use_chat_template": False}
    if kind < 0.45 and vocabulary.image is not None:
        blocks: list[Fields] = [{"type": "text", "text": _text(rng)}]
        for _ in range(rng.choice([1, 1, 2])):
            data = drawing(rng.randrange(8, 70), rng.randrange(8, 70), seed=rng.randrange(4))
            blocks.insert(rng.randrange(2), {"type": "image", "base64": data})
        return {"messages": [{"role": "user", "content": blocks}]}
    fields: Fields = {"messages": _conversation(rng)}
    if vocabulary.reasons and rng.random() < 0.3:
        fields["template_args"] = {"enable_thinking": rng.random() < 0.7}
    elif rng.random() < 0.1:
        fields["reasoning_effort"] = rng.choice(["none", "low"])
    return fields


def _conversation(rng: Random) -> list[Fields]:
    messages: list[Fields] = []
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": _text(rng)})
    if rng.random() < 0.3:
        answer: Fields = {"role": "assistant", "content": _text(rng)}
        if rng.random() < 0.4:
            answer["reasoning_content"] = _text(rng)
        if rng.random() < 0.4:
            answer["tool_calls"] = [CALL]
        messages += [{"role": "user", "content": _text(rng)}, answer]
        if "tool_calls" in answer:
            result = {"role": "tool", "tool_call_id": "call-1", "content": _text(rng)}
            return [*messages, result]
    return [*messages, {"role": "user", "content": _text(rng)}]


# --- Forms ---------------------------------------------------------------------------------------


def _form(rng: Random, *, templated: bool) -> Fields:
    """A form of the answer, tools, or neither."""
    kind = rng.random()
    if kind < 0.1:
        return {"structured_output": under(rng.choice(list(SCHEMAS.values())))}
    if kind < 0.14:
        return {"structured_output": {"type": "json_object"}}
    if kind < 0.18:
        return {"structured_output": {"type": "regex", "pattern": rng.choice(PATTERNS)}}
    if kind < 0.22:
        return {"structured_output": {"type": "choice", "choices": rng.choice(CHOICES)}}
    if kind < 0.4 and templated:
        choice = rng.choice(["auto", "required", *({"function": name} for name in ("go", "now"))])
        single = rng.random() < 0.3
        return {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": not single}
    return {}


# --- Settings ------------------------------------------------------------------------------------

Draw = Callable[[Random], Any]

# Each with the share of tasks that set it.
SAMPLING: dict[str, tuple[float, Draw]] = {
    "temperature": (0.6, lambda rng: rng.choice([0, 0.3, 0.7, 1.0, 1.5, 3.0])),
    "top_k": (0.4, lambda rng: rng.choice([0, 1, 3, 40])),
    "top_p": (0.3, lambda rng: rng.choice([0.0, 0.5, 0.95, 1.0])),
    "min_p": (0.2, lambda rng: rng.choice([0.0, 0.05, 0.3])),
    "typical_p": (0.2, lambda rng: rng.choice([0.4, 0.9])),
}
PENALTIES: dict[str, tuple[float, Draw]] = {
    "repetition_penalty": (0.2, lambda rng: rng.choice([0.8, 1.2, 1.7])),
    "frequency_penalty": (0.2, lambda rng: rng.choice([-1.0, 0.7, 2.0])),
    "presence_penalty": (0.2, lambda rng: rng.choice([-0.5, 1.1])),
}
REPORTS: dict[str, tuple[float, Draw]] = {
    "logprobs": (0.3, lambda rng: rng.choice([0, 1, 4])),
    "prompt_logprobs": (0.12, lambda rng: rng.choice([0, 2])),
}


def _settings(rng: Random, vocabulary: Vocabulary) -> Fields:
    """A generation config."""
    settings: Fields = {"max_new_tokens": rng.choice([1, 2, 7, 20, vocabulary.longest])}
    settings["do_sample"] = rng.random() < 0.65
    tables = [PENALTIES, REPORTS] + ([SAMPLING] if settings["do_sample"] else [])
    for table in tables:
        for name, (share, draw) in table.items():
            if rng.random() < share:
                settings[name] = draw(rng)
    if rng.random() < 0.25:
        settings["num_return_sequences"] = rng.choice([2, 3, 4])
    if rng.random() < 0.08:
        settings["num_beams"] = rng.choice([4, 5])
    if rng.random() < 0.3:
        stops = ["a", "e", "\n", "t s", "}", "\ufffd", "1"]
        settings["stop_strings"] = rng.sample(stops, rng.choice([1, 2]))
    if rng.random() < 0.35:
        settings["logit_bias"] = _bias(rng, vocabulary)
    if "prompt_logprobs" in settings and rng.random() < 0.1:
        settings["max_new_tokens"] = 0
    return settings


def _bias(rng: Random, vocabulary: Vocabulary) -> dict[str, float]:
    """Some tokens are favoured or forbidden; with luck the one that ends the answer."""
    bias = {
        str(rng.choice(vocabulary.prompt_ids)): rng.choice([-100.0, 2.5, 5.0])
        for _ in range(rng.choice([1, 3, 30]))
    }
    if rng.random() < 0.5:
        bias[str(vocabulary.end)] = rng.choice([-100.0, 2.0, 4.0, 6.0])
    if vocabulary.image is not None and rng.random() < 0.15:
        bias[str(vocabulary.image)] = rng.choice([4.0, 100.0])
    return bias
