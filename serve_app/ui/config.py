"""The arguments of the web chat: what stands under its ``args:`` in ``serve_config.yaml``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

from pydantic import Field

from schema.validation.strict import PositiveFloat, PositiveInt, Strict
from serve_app.config.ray_options import WEB_CHAT

BUILDER = "serve_app.ui.app:build"
DEPLOYMENT = WEB_CHAT
NEEDED = ("gradio", "openai")
HOW_TO_INSTALL = "pip install 'gpt-task-serve[ui]'"


class ChatArgs(Strict):
    """Everything under ``args:`` of the web chat.

    Attributes:
        server: address of the server that answers, as the chat's own process reaches it; this
            server or another one.
        title: stands above the chat and in the browser's tab.
        max_pictures: the most images of one message.
        max_picture_mb: the largest file of an image, in MB (10**6 bytes).
        max_sessions: browser tabs whose conversations are kept; the oldest is dropped first.
    """

    server: Annotated[str, Field(pattern=r"^https?://[^/\s?#]+$")] = "http://127.0.0.1:8000"
    title: Annotated[str, Field(min_length=1, max_length=100)] = "GPT Task Serve"
    max_pictures: PositiveInt = 8
    max_picture_mb: PositiveFloat = 10.0
    max_sessions: PositiveInt = 256


def missing() -> str | None:
    """What to install before the web chat can work; None if everything is there."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if not absent:
        return None
    return f"The web chat needs {' and '.join(absent)}: {HOW_TO_INSTALL}"
