"""Real texts: five kinds of work, each with sixteen different inputs or more.

Articles and questions are in ``texts/``, letters are made from a seed (`letters`), and code is that
of functions of Python's own library. Nothing in them was chosen by how the model answers. A
system message with a number of the job's own keeps a prompt from being found in the cache of
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.client import Job
from benchmarks.workloads.letters import letter

Half = Literal["greedy", "sampled"]
HALVES: tuple[Half, ...] = ("greedy", "sampled")
TEMPERATURE = 0.7

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
    """What one job asks, whatever it is drawn with. ``schema`` is of its structured output."""

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


def real_job(asked: Input, half: Half, identity: str) -> Job:
    """A request for an answer to an input.

    Args:
        asked: the input.
        half: how tokens are drawn.
        identity: what makes its prompt and its seed differ from those of all others.
    """
    draw = random.Random(identity)
    system = f"Session {draw.randrange(10**6):06}. You are a helpful assistant."
    seed = draw.randrange(2**32)
    return Job(
        asked.text,
        asked.max_tokens,
        seed=seed if half == "sampled" else None,
        temperature=TEMPERATURE,
        system=system,
        schema=asked.schema,
    )
