"""Errors of a task, in the words of the request that the client sent."""

import re
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel

from schema.errors import TaskError
from schema.message import IMAGE_BLOCK_TAG, REFUSAL_TAG, TEXT_BLOCK_TAG
from schema.openai.fields import Hint, Only, marked
from schema.openai.messages import ChatMessage, ImagePart, ImageUrl, RefusalPart, TextPart
from schema.validation.problems import Dialect

# Names of the same things in a task, and on other servers.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "stop_strings": "stop",
    "num_return_sequences": "n",
    "best_of": "n",
    "template_args": "chat_template_kwargs",
    "structured_output": "response_format",
    "random_seed": "seed",
}
Renames = Sequence[tuple[re.Pattern[str], str]]
"""Patterns of a task's names, and what stands for them in a request; used in this order."""

SETTINGS: Renames = (
    (re.compile(r"\bgeneration_config\.(?=\w)"), ""),
    (re.compile(r"^generation_config: "), ""),
    (re.compile(r"\btemplate_args\b"), "chat_template_kwargs"),
)
_PATHS: Renames = (
    (re.compile(r"\b(messages\.\d+\.content\.\d+)\.base64\b"), r"\1.image_url.url"),
    (re.compile(r"\bgeneration_config\.num_return_sequences\b"), "n"),
    (re.compile(r"\bgeneration_config\.stop_strings\b"), "stop"),
    *SETTINGS,
    (re.compile(r"^tool_choice\.function\b"), "tool_choice.function.name"),
    (re.compile(r"\bstructured_output\.schema\b"), "response_format.json_schema.schema"),
    (re.compile(r"\bstructured_output\b"), "response_format"),
)
_MESSAGES = re.compile(r"\bmessages(?:\.0\.content)?\b")
_LIMIT = re.compile(r"\b(?:generation_config\.)?max_new_tokens\b")


def dialect(
    root: type[BaseModel],
    inner: Mapping[str | int, type[BaseModel]],
    elsewhere: Mapping[str, str],
    message: type[BaseModel] | None,
) -> Dialect:
    """The words that `problems` uses for a request.

    Args:
        root: the request's model.
        inner: the models of the objects in it, by their field or tag.
        elsewhere: names that other APIs have for its fields, beside those that all requests know.
        message: the model of its messages; None: those of chat completions.
    """
    message = message or ChatMessage
    return Dialect(
        noun="request",
        elsewhere={**_ELSEWHERE, **elsewhere},
        advice={
            "do_sample": "is not a field of this request; temperature 0 is greedy, any other "
            "samples",
            "generation_config": "is not a field of this request; its settings are fields here",
            "extra_body": "is not a field of this request; what is in it belongs beside the others",
        },
        inner={
            TEXT_BLOCK_TAG: TextPart,
            IMAGE_BLOCK_TAG: ImagePart,
            REFUSAL_TAG: RefusalPart,
            "image_url": ImageUrl,
            **inner,
        },
        message=message,
        never=frozenset(name for model in (message, root) for name in marked(model, Hint, Only)),
    )


def in_terms(error: TaskError, renamed: Callable[[str], str]) -> TaskError:
    """The same error in the request's terms; ``renamed`` translates its message and its path."""
    message, param = error.message, error.param
    if param == "generation_config":
        param = None  # transformers has refused a combination; there is no such field here
    return type(error)(renamed(message), param and renamed(param), error.retry_after_s)


def renamed(text: str, limit: str, messages: str, paths: Renames = _PATHS) -> str:
    """A text with a request's names in the place of a task's.

    ``limit`` and ``messages`` are the request's names for ``max_new_tokens`` and ``messages``;
    ``paths`` has the others.
    """
    text = _LIMIT.sub(limit, text)
    if messages != "messages":
        text = _MESSAGES.sub(messages, text)
    for pattern, name in paths:
        text = pattern.sub(name, text)
    return text
