"""The first check of a request: cheap counts, before anything is validated."""

from typing import Any

from schema.json_values import MAX_JSON_VALUES, count_values
from schema.message import MAX_BLOCKS_OF_TASK, rule


def refuse_bulk(fields: Any, *free_form: str) -> None:
    """Refuse a request with so many parts that validating them would take seconds.

    ``fields`` is what the client sent; ``free_form`` names the fields that may hold any JSON,
    beside the ``tool_calls`` of the messages.
    """
    messages = fields.get("messages") if isinstance(fields, dict) else None
    if not isinstance(messages, list):
        return
    objects = [message for message in messages if isinstance(message, dict)]
    contents = [message.get("content") for message in objects]
    blocks = sum(len(content) for content in contents if isinstance(content, list))
    if blocks > MAX_BLOCKS_OF_TASK:
        raise rule(
            f"have {blocks} content blocks; at most {MAX_BLOCKS_OF_TASK} are allowed: join "
            "neighbouring texts",
            "messages",
        )
    values = [fields.get(name) for name in free_form]
    values += [message.get("tool_calls") for message in objects]
    if count_values(values, MAX_JSON_VALUES) > MAX_JSON_VALUES + len(values):
        raise rule(
            f"has more than {MAX_JSON_VALUES} values in {', '.join(free_form)} and tool_calls "
            "together"
        )
