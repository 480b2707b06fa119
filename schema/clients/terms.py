"""Errors of a task, in the words of the request that the client sent."""

import re
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel

from schema.clients.fields import Hint, Only, marked
from schema.errors import TaskError
from schema.validation.problems import Dialect

Renames = Sequence[tuple[re.Pattern[str], str]]
"""Patterns of a task's names, and what stands for them in a request; used in this order."""

SETTINGS: Renames = (
    (re.compile(r"\bgeneration_config\.(?=\w)"), ""),
    (re.compile(r"^generation_config: "), ""),
    (re.compile(r"\btemplate_args\b"), "chat_template_kwargs"),
)
_ELSEWHERE = {"template_args": "chat_template_kwargs", "random_seed": "seed"}
_LIMIT = re.compile(r"\b(?:generation_config\.)?max_new_tokens\b")


def dialect(
    root: type[BaseModel],
    inner: Mapping[str | int, type[BaseModel]],
    elsewhere: Mapping[str, str],
    message: type[BaseModel],
) -> Dialect:
    """The words that `problems` uses for a request.

    Args:
        root: the request's model.
        inner: the models of the objects in it, by their field or tag.
        elsewhere: names that other APIs have for its fields, beside those that all requests know.
        message: the model of its messages.
    """
    return Dialect(
        noun="request",
        elsewhere={**_ELSEWHERE, **elsewhere},
        advice={
            "do_sample": "is not a field of this request; temperature 0 is greedy, any other "
            "samples",
            "generation_config": "is not a field of this request; its settings are fields here",
            "extra_body": "is not a field of this request; what is in it belongs beside the others",
        },
        inner=inner,
        message=message,
        never=frozenset(name for model in (message, root) for name in marked(model, Hint, Only)),
    )


def in_terms(error: TaskError, renamed: Callable[[str], str]) -> TaskError:
    """The same error in the request's terms; ``renamed`` translates its message and its path."""
    message, param = error.message, error.param
    if param == "generation_config":
        param = None  # transformers has refused a combination; there is no such field here
    return type(error)(renamed(message), param and renamed(param), error.retry_after_s)


def renamed(text: str, limit: str, paths: Renames) -> str:
    """A text with a request's names in the place of a task's.

    ``limit`` is the request's name for ``max_new_tokens``; ``paths`` has the others.
    """
    text = _LIMIT.sub(limit, text)
    for pattern, name in paths:
        text = pattern.sub(name, text)
    return text
