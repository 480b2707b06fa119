"""A key of a task's prefix, which decides to which replica the task is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from schema.task import ImageBlock, Task, TextBlock

MIN_CHARS = 1000
"""A shorter prefix is prefilled again in less time than an uneven load costs."""

MIN_TOKENS = 256
"""The same of a prompt of token ids, whose first ones are its prefix."""

_IMAGE_CHARS = 4096  # of an image's base64; two images rarely have the same end of their files


def prefix_key(task: Task) -> str:
    """A digest of the prefix of a conversation, the same in all of its turns.

    The prefix is the tools, the system messages and the first other message. The key is "" if that
    is short, so that any replica will do. A task with an adapter has keys of its own, because it
    shares no prefix with tasks of others; if its prefix is short, it is that of the adapter, which
    need not be loaded by every replica then.
    """
    adapter = task.variant.adapter
    short = _digest(adapter) if adapter else ""
    if task.prompt_token_ids is not None:
        begin = task.prompt_token_ids[:MIN_TOKENS]
        return _digest(json.dumps([begin, adapter])) if len(begin) == MIN_TOKENS else short
    parts: list[Any] = [task.tools]
    for message in task.messages:
        content = message.content
        blocks: Sequence[Any] = content if isinstance(content, list) else [content]
        parts += [message.role, *map(_mark, blocks)]
        if message.role != "system":
            break
    text = json.dumps(parts, ensure_ascii=False)
    return _digest(text + (adapter or "")) if len(text) >= MIN_CHARS else short


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _mark(block: str | TextBlock | ImageBlock | None) -> str | None:
    match block:
        case ImageBlock():
            return f"{len(block.base64)}:{block.base64[-_IMAGE_CHARS:]}"
        case TextBlock():
            return block.text
    return block
