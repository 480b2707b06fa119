"""Makes the messages that gradio's chatbot shows from turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from serve_app.ui.answer import parts
from serve_app.ui.conversation import Turn

# Code is shown as it is by Markdown itself.
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_MARKUP = re.compile(r"([\\`*_{}\[\]#+!|~$-])")


def messages(turns: Sequence[Turn], growing: bool = False) -> list[dict[str, Any]]:
    """All messages. ``growing``: the last turn's answer is not complete yet."""
    shown: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        last = index == len(turns) - 1
        shown += [_asked(turn), *_answered(turn, growing and last)]
    return shown


def _asked(turn: Turn) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"path": file} for file in turn.images]
    if turn.text:
        content.append(_text(escaped(turn.text)))
    return {"role": "user", "content": content}


def _answered(turn: Turn, growing: bool) -> list[dict[str, Any]]:
    shown = []
    thinking, text, thinking_ended = parts(turn.answer)
    if thinking:
        going_on = growing and not thinking_ended
        metadata = {"title": "Thinking", "status": "pending" if going_on else "done"}
        shown.append(_said(escaped(thinking)) | {"metadata": metadata})
    if text:
        shown.append(_said(escaped(text)))
    if growing:
        return shown
    if facts := _facts(turn):
        shown.append(_said(_small(facts)))
    if turn.error is not None:
        shown.append(_said(f"**Error:** {escaped(turn.error)}"))
    return shown + [_said(_small(note)) for note in turn.notes]


def _facts(turn: Turn) -> str:
    """The line under an answer."""
    answer = turn.answer
    facts = []
    if answer.seed is not None:
        facts.append(f"seed {answer.seed}")
    if answer.prompt_tokens is not None:
        facts.append(f"{answer.prompt_tokens} + {answer.completion_tokens} tokens")
    if answer.fingerprint is not None:
        facts.append(answer.fingerprint)
    if turn.stopped:
        facts.append("stopped by you")
    elif answer.finish_reason == "length":
        facts.append("cut off: the limit of tokens is reached")
    return " · ".join(facts)


def _said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [_text(content)]}


def _text(markdown: str) -> dict[str, Any]:
    # A plain string would lose its indentation.
    return {"type": "text", "text": markdown}


def _small(text: str) -> str:
    # No character of it may have a meaning in Markdown.
    plain = _MARKUP.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return f"<small>{plain}</small>"


def escaped(text: str) -> str:
    """Markdown in which tags are text, so that ``<b>`` is shown and nothing is injected.

    The chatbot would drop unsafe tags by itself, but then the text shown is not the text sent.
    """
    outside_and_code = _CODE.split(text)
    outside_and_code[::2] = [
        part.replace("&", "&amp;").replace("<", "&lt;") for part in outside_and_code[::2]
    ]
    return "".join(outside_and_code)
