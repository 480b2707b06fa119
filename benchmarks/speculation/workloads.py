"""What the clients ask: five kinds of work, each with sixteen different inputs or more.

Articles and questions are in ``texts/``, letters are made from a seed (`records`), and code is that
of functions of Python's own library. Nothing in them was chosen by how the model answers. A
system message with a number of the task's own keeps a prompt from being found in the cache of
prefixes, where an earlier round has left it.
"""

from __future__ import annotations

import ast
import calendar
import colorsys
import copy
import difflib
import email.utils
import fnmatch
import heapq
import html
import inspect
import random
import shlex
import statistics
import string
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.speculation.records import letter
from schema.task import Task

Half = Literal["greedy", "sampled"]
HALVES: tuple[Half, ...] = ("greedy", "sampled")
TEMPERATURE = 0.7
MIX = "mix"
MODEL = "benchmark"

_TEXTS = Path(__file__).with_name("texts")
_QUESTIONS = (
    "List the names of all people, places and things that are mentioned, one in each line.",
    "Copy every sentence that contains a number.",
    "List all numbers in the text, each with what it counts or measures.",
    "Quote the two most important sentences of the text word for word.",
)
_EDITS = (
    "Add a docstring to this function and return the whole function.",
    "Rename the variable `{name}` to `{name}_value` and return the whole function.",
    "Add a comment above the most important line and return the whole function.",
    "Add type hints to the signature and return the whole function.",
)
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    textwrap.shorten,
    statistics.fmean,
    calendar.monthrange,
    colorsys.rgb_to_hls,
    fnmatch.filter,
    heapq.merge,
    html.escape,
    copy.copy,
    difflib.get_close_matches,
    email.utils.formataddr,
    random.Random.shuffle,
    shlex.quote,
    statistics.median,
    statistics.harmonic_mean,
    string.capwords,
    textwrap.indent,
    colorsys.hsv_to_rgb,
    heapq.nsmallest,
)


@dataclass(frozen=True)
class Input:
    """What one task asks, whatever it is drawn with. ``schema`` is of its structured output."""

    text: str
    max_tokens: int
    schema: dict[str, Any] | None = None


def _sections(name: str) -> list[tuple[str, str]]:
    """Instruction and text of each section of a file."""
    parts = (_TEXTS / name).read_text(encoding="utf-8").split("=== ")[1:]
    return [(head, body.strip()) for head, _, body in (part.partition("\n") for part in parts)]


def _texts() -> list[str]:
    """Articles and letters in turns."""
    articles = [body for _, body in _sections("articles.txt")]
    return [text for n, body in enumerate(articles) for text in (body, letter(n))]


def _summary() -> list[Input]:
    return [Input(f"{head}\n\n{body}", 160) for head, body in _sections("articles.txt")]


def _without_docstring(source: str) -> str:
    """The source of a function, less its docstring."""
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is None:
        return source
    lines, first = source.splitlines(), function.body[0]
    return "\n".join(lines[: first.lineno - 1] + lines[first.end_lineno :])


def _code_edit() -> list[Input]:
    inputs = []
    for number, function in enumerate(_FUNCTIONS):
        source = _without_docstring(textwrap.dedent(inspect.getsource(function)).strip())
        name = [*inspect.signature(function).parameters][-1]
        edit = _EDITS[number % len(_EDITS)].format(name=name)
        inputs.append(Input(f"{edit}\n\n```python\n{source}\n```", 256))
    return inputs


def _extraction() -> list[Input]:
    return [
        Input(f"{_QUESTIONS[number % len(_QUESTIONS)]}\n\n{text}", 160)
        for number, text in enumerate(_texts())
    ]


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _structured() -> list[Input]:
    text, number = {"type": "string"}, {"type": "integer"}
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": 4}
    of_articles = (
        _object(title=text, topic=text, places=texts, main_fact=text, year_mentioned=number),
        _object(
            headline=text,
            people=texts,
            problem={"type": "string", "maxLength": 200},
            solution={"type": "string", "maxLength": 200},
            sentiment={"enum": ["positive", "negative", "neutral"]},
        ),
    )
    person = _object(name=text, role=text, contact=text)
    of_letters = (
        _object(kind=text, sender=text, town=text, dates=texts, amounts=texts),
        _object(
            subject=text,
            people={"type": "array", "items": person, "minItems": 1, "maxItems": 3},
            reference_number=text,
            urgent={"type": "boolean"},
        ),
    )
    asked = "Extract the information from this text as JSON with the keys {}.\n\n{}"
    inputs = []
    for index, source in enumerate(_texts()):
        schema = (of_letters if index % 2 else of_articles)[index // 2 % 2]
        inputs.append(Input(asked.format(", ".join(schema["properties"]), source), 200, schema))
    return inputs


def _chat() -> list[Input]:
    questions = (_TEXTS / "questions.txt").read_text(encoding="utf-8").splitlines()
    return [Input(question, 160) for question in questions]


WORKLOADS: dict[str, Callable[[], list[Input]]] = {
    "summary": _summary,
    "code edit": _code_edit,
    "extraction": _extraction,
    "structured output": _structured,
    "chat": _chat,
}


def tasks_of(workload: str, half: Half, count: int, turn: str) -> list[Task]:
    """``count`` tasks of a workload; more than there are inputs begin with the first again.

    Args:
        workload: one of `WORKLOADS`.
        half: how tokens are drawn.
        count: how many.
        turn: what else makes prompts and seeds differ, so that no two turns share any.
    """
    inputs = WORKLOADS[workload]()
    return [
        _task(inputs[number % len(inputs)], half, f"{turn}/{workload}/{half}/{number}")
        for number in range(count)
    ]


def mixed_tasks(workloads: Sequence[str], count: int, turn: str) -> list[Task]:
    """``count`` tasks of each half of all workloads, shuffled."""
    tasks = [
        task for name in workloads for half in HALVES for task in tasks_of(name, half, count, turn)
    ]
    random.Random(turn).shuffle(tasks)
    return tasks


def _task(asked: Input, half: Half, identity: str) -> Task:
    draw = random.Random(identity)
    config: dict[str, Any] = {"max_new_tokens": asked.max_tokens, "do_sample": half == "sampled"}
    if half == "sampled":
        config["temperature"] = TEMPERATURE
    system = f"Session {draw.randrange(10**6):06}. You are a helpful assistant."
    fields: dict[str, Any] = {}
    if asked.schema is not None:
        fields["structured_output"] = {"type": "json_schema", "schema": asked.schema}
    return Task.from_fields(
        model=MODEL,
        messages=[
            {"role": "system", "content": system},
            {"role": "user", "content": asked.text},
        ],
        generation_config=config,
        seed=draw.randrange(2**32),
        return_token_ids=True,
        **fields,
    )
