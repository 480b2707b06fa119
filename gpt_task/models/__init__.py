"""A task, a response and a stream chunk, as gpt-task defines them."""

from gpt_task.models.args import (
    GPTGenerationConfig,
    GPTTaskArgs,
    GPTTaskResponse,
    GPTTaskStreamResponse,
    ImageContentBlock,
    Message,
    MessageContent,
    MessageContentBlock,
    ResponseChoice,
    StreamChoice,
    TextContentBlock,
    Usage,
)

__all__ = [
    "GPTGenerationConfig",
    "GPTTaskArgs",
    "GPTTaskResponse",
    "GPTTaskStreamResponse",
    "ImageContentBlock",
    "Message",
    "MessageContent",
    "MessageContentBlock",
    "ResponseChoice",
    "StreamChoice",
    "TextContentBlock",
    "Usage",
]
