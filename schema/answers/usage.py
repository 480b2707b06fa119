"""What responses and receipts both say of an answer: why it ended, and how many tokens it took."""

from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

FinishReason = Literal["stop", "length", "tool_calls"]
"""`stop`: the model ended its answer, or a stop string came. `length`: `max_new_tokens` or the
model's context was reached. `tool_calls`: as `stop`, of a message that calls tools."""

Count = Annotated[int, Field(ge=0)]


@with_config(extra="forbid", strict=True)
class Usage(TypedDict):
    """How many tokens the task took.

    `prompt_tokens` counts the prompt once, image placeholders included. `completion_tokens` counts
    all generated tokens of all choices, end-of-sequence tokens included. `total_tokens` is their
    sum. In a stream chunk the counts are cumulative: all tokens up to this chunk.
    """

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
