"""The first check of a request: cheap counts, before anything is validated."""

from typing import Any

from schema.json_values import MAX_JSON_VALUES, count_values
from schema.message import MAX_BLOCKS_OF_TASK, rule

_LISTS = ("content", "output", "summary")
"""Where a message, or a block of one, may have further blocks."""
_ANYTHING = ("tool_calls", "input", "tools")
"""Where a message, or a block of one, may have any JSON."""


def refuse_bulk(fields: Any, *free_form: str, conversation: str = "messages") -> None:
    """Refuse a request with so many parts that validating them would take seconds.

    Args:
        fields: what the client sent.
        free_form: the fields that may hold any JSON, beside the calls of the messages.
        conversation: the field that has the messages.
    """
    messages = fields.get(conversation) if isinstance(fields, dict) else None
    if not isinstance(messages, list):
        return
    objects = [message for message in messages if isinstance(message, dict)]
    count, level = 0, objects
    for _ in range(2):  # a result of a tool is a block, and has blocks
        blocks = [block for part in level for block in _listed(part)]
        count += len(blocks)
        level = [block for block in blocks if isinstance(block, dict)]
        objects += level
    if count > MAX_BLOCKS_OF_TASK:
        raise rule(
            f"have {count} content blocks; at most {MAX_BLOCKS_OF_TASK} are allowed: join "
            "neighbouring texts",
            conversation,
        )
    values = [fields.get(name) for name in free_form]
    values += [part[name] for part in objects for name in _ANYTHING if name in part]
    if count_values(values, MAX_JSON_VALUES) > MAX_JSON_VALUES + len(values):
        raise rule(
            f"has more than {MAX_JSON_VALUES} values in {', '.join(free_form)} and calls of tools "
            "together"
        )


def _listed(part: dict[str, Any]) -> list[Any]:
    return [each for name in _LISTS if isinstance(part.get(name), list) for each in part[name]]
