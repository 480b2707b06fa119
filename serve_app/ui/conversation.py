"""A conversation: its turns, and the request that asks for the next one."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schema.model_variant import ModelVariant
from serve_app.ui.answer import Answer
from serve_app.ui.client import ChatError


@dataclass(frozen=True)
class Settings:
    """The settings of a turn. None leaves a setting to the model or to the server.

    Attributes:
        seed: None lets the server draw one.
    """

    variant: ModelVariant
    system: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of the request; settings that are None are left out."""
        fields = {
            "model": self.variant.id,
            "dtype": self.variant.dtype,
            "quantize_bits": self.variant.quantize_bits,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class Turn:
    """A message of the user, and the answer to it.

    Attributes:
        images: files of the user's images.
        stopped: the user ended the answer.
        error: why there is no (whole) answer.
        notes: the results of running it again.
    """

    text: str
    images: tuple[str, ...]
    settings: Settings
    answer: Answer = field(default_factory=Answer)
    stopped: bool = False
    error: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the answer is complete."""
        return self.answer.finish_reason is not None and self.error is None

    @property
    def answered(self) -> bool:
        """Whether it becomes a part of the conversation."""
        return self.error is None and (self.complete or self.answer.content != "")


def request_for(turns: Sequence[Turn], seed: int | None = None) -> dict[str, Any]:
    """The request for the answer of the last turn. It reads the images' files.

    Args:
        seed: in place of the one in the turn's settings.

    Raises:
        ChatError: a file is not an image, or it is gone.
    """
    *past, last = turns
    messages: list[dict[str, Any]] = []
    if last.settings.system:
        messages.append({"role": "system", "content": last.settings.system})
    for turn in past:
        messages.append({"role": "user", "content": _content(turn)})
        messages.append({"role": "assistant", "content": turn.answer.content})
    messages.append({"role": "user", "content": _content(last)})
    request = {**last.settings.fields(), "messages": messages}
    return request if seed is None else request | {"seed": seed}


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.images:
        return turn.text
    blocks: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data_url(Path(file))}} for file in turn.images
    ]
    if turn.text:
        blocks.append({"type": "text", "text": turn.text})
    return blocks


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or ""
    if not kind.startswith("image/"):
        raise ChatError(f"{file.name} is not an image.")
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise ChatError(f"The image {file.name} is no longer kept: start a new chat.") from None
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
