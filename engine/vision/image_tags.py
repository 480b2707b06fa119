"""Images where the text says ``<image>``, for models whose prompts are written in this way."""

from __future__ import annotations

from collections.abc import Sequence

from schema.errors import TaskArgsInvalid
from schema.task import ImageBlock, Message, TextBlock


def fill_image_tags(messages: Sequence[Message], tag: str, image_token: str) -> Sequence[Message]:
    """Put the images of a task where its texts say ``tag``, in order.

    Without any ``tag`` the messages stay as they are, with images where their blocks stand.

    Args:
        messages: a task's messages.
        tag: what authors write, such as ``<image>``.
        image_token: the token that replaces the tag.

    Returns:
        messages without image blocks, and with ``image_token`` for each ``tag``.

    Raises:
        TaskArgsInvalid: there are tags, but not as many as images.
    """
    tags = sum(text.count(tag) for message in messages for text in _texts(message))
    if not tags:
        return messages
    images = sum(isinstance(block, ImageBlock) for m in messages for block in _blocks(m))
    if tags != images:
        raise TaskArgsInvalid(
            f"messages: the texts have {tags} placeholders {tag!r} for {images} images: write one "
            "for each image, or none to have the images where their blocks stand",
            param="messages",
        )
    return [_filled(message, tag, image_token) for message in messages]


def _blocks(message: Message) -> Sequence[TextBlock | ImageBlock]:
    content = message.content
    return () if content is None or isinstance(content, str) else content


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [block.text for block in _blocks(message) if isinstance(block, TextBlock)]


def _filled(message: Message, tag: str, image_token: str) -> Message:
    if message.content is None:
        return message
    if isinstance(message.content, str):
        return message.model_copy(update={"content": message.content.replace(tag, image_token)})
    blocks = [
        block.model_copy(update={"text": block.text.replace(tag, image_token)})
        for block in message.content
        if isinstance(block, TextBlock)
    ]
    return message.model_copy(update={"content": blocks})
