"""Names of models: hub ids such as ``Qwen/Qwen3-8B``, and the names that operators give.

They come from strangers and end in messages, file names and addresses, so that they are held to a
form in which nothing can be hidden: no directory, no way upwards, no control character.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from schema.message import rule

MAX_MODEL_CHARS = 512

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_MODEL_ID = re.compile(rf"{_PART}(?:/{_PART})*")

MODEL_ID_PATTERN = rf"^{_PART}(?:/{_PART})*$(?!\n)"
"""The same for JSON Schema. Python's `$` also matches before a last newline, hence its end."""


def check_model_id(text: str) -> str:
    """``text`` itself, if it has the form of a model's name; a pydantic validator."""
    if not _MODEL_ID.fullmatch(text):
        raise rule(
            "must be a name such as Qwen/Qwen3-8B: parts of letters, digits, dots, underscores and "
            "dashes, joined by single slashes; it is never a path"
        )
    return text


ModelName = Annotated[
    str, Field(min_length=1, max_length=MAX_MODEL_CHARS), AfterValidator(check_model_id)
]
