"""The words of chat completions and completions for what a task has."""

import re

from pydantic import BaseModel

from schema.clients.openai.messages import ImagePart, ImageUrl, RefusalPart, TextPart
from schema.clients.terms import SETTINGS, Renames
from schema.message import IMAGE_BLOCK_TAG, REFUSAL_TAG, TEXT_BLOCK_TAG

ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "stop_strings": "stop",
    "num_return_sequences": "n",
    "best_of": "n",
    "structured_output": "response_format",
}
"""Names of the same things in a task, and on other servers."""

INNER: dict[str | int, type[BaseModel]] = {
    TEXT_BLOCK_TAG: TextPart,
    IMAGE_BLOCK_TAG: ImagePart,
    REFUSAL_TAG: RefusalPart,
    "image_url": ImageUrl,
}
"""The models of the objects in a message."""

PATHS: Renames = (
    (re.compile(r"\b(messages\.\d+\.content\.\d+)\.base64\b"), r"\1.image_url.url"),
    (re.compile(r"\bgeneration_config\.num_return_sequences\b"), "n"),
    (re.compile(r"\bgeneration_config\.stop_strings\b"), "stop"),
    *SETTINGS,
    (re.compile(r"^tool_choice\.function\b"), "tool_choice.function.name"),
    (re.compile(r"\bstructured_output\.schema\b"), "response_format.json_schema.schema"),
    (re.compile(r"\bstructured_output\b"), "response_format"),
)
_MESSAGES = re.compile(r"\bmessages(?:\.0\.content)?\b")


def in_field(text: str, field: str) -> str:
    """A text in which ``field``, which has the whole conversation, stands for ``messages``."""
    return text if field == "messages" else _MESSAGES.sub(field, text)
