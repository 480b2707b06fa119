"""What a chat template reads, found out by rendering conversations with it.

A template leaves out what it does not know, in silence. So words that stand nowhere else are put
into tools, messages of each role, calls and their results, and looked for in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from engine.requests.template.messages import MessageForm, conversation
from schema.message import Message

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str]
"""Renders messages and tools with a template. Raises what the template raises."""

_SYSTEM, _FURTHER, _LATE, _USER, _RESULT, _NAME, _KEY, _VALUE = (
    f"probe{word}"
    for word in ("system", "further", "late", "user", "result", "name", "key", "value")
)
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "A probe."}},
            "required": [_KEY],
        },
    },
}
_CALL_ID = "probe0001"  # Mistral's templates take ids of nine letters and digits only
_CALL = {
    "id": _CALL_ID,
    "type": "function",
    "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
}
_ASKED = Message(role="user", content=_USER)
_CALLING = Message(role="assistant", tool_calls=[_CALL])
_ANSWERED = Message(role="tool", content=_RESULT, tool_call_id=_CALL_ID)


@dataclass(frozen=True)
class History:
    """How a template takes earlier calls and their results: whether it writes them, and the form
    of messages that it takes.
    """

    calls: bool
    results: bool
    form: MessageForm


@dataclass(frozen=True)
class TemplateTraits:
    """What a template reads.

    Attributes:
        system: a system message at the beginning; False if it is left out, or refused.
        systems: further system messages, there and later.
        repeats: several messages of the user in a row.
        tools: the tools.
        with_tools: how it takes earlier calls in a task that has tools.
        without_tools: how it takes them in one that has none.
    """

    system: bool
    systems: bool
    repeats: bool
    tools: bool
    with_tools: History
    without_tools: History


def find_traits(render: Render, *, blocks: bool) -> TemplateTraits:
    """Render probes with a template.

    Args:
        render: renders with it.
        blocks: whether contents are lists of blocks.
    """
    form = MessageForm(blocks=blocks)
    plain, with_tools = _Probe(render, None), _Probe(render, [_TOOL])
    system = Message(role="system", content=_SYSTEM)
    further, late = (Message(role="system", content=word) for word in (_FURTHER, _LATE))
    asked_again = Message(role="user", content=_LATE)
    written = plain.text([system, _ASKED], form)
    several = plain.text([system, further, _ASKED, late], form)
    repeated = plain.text([_ASKED, asked_again], form)
    reads_tools = any(
        _NAME in with_tools.text(asked, form) for asked in ([_ASKED], [system, _ASKED])
    )
    return TemplateTraits(
        system=_SYSTEM in written and _USER in written,
        systems=all(word in several for word in (_SYSTEM, _FURTHER, _USER, _LATE)),
        repeats=_USER in repeated and _LATE in repeated,
        tools=reads_tools,
        with_tools=_history(with_tools if reads_tools else plain, form),
        without_tools=_history(plain, form),
    )


class _Probe(NamedTuple):
    """Renders messages, beside tools or without them."""

    render: Render
    tools: list[dict[str, Any]] | None

    def text(self, messages: Sequence[Message], form: MessageForm) -> str:
        """The text; empty where the template refuses the messages."""
        try:
            return self.render(conversation(messages, form), self.tools)
        except Exception:  # noqa: BLE001 - a template is a program: it may raise anything
            return ""


def _history(probe: _Probe, form: MessageForm) -> History:
    """Try the forms that calls can have, the usual ones first."""
    for asked in ([_ASKED, _CALLING, _ANSWERED], [_ASKED, _CALLING]):
        for usual in _forms_of_calls(form):
            found = [
                (written, tried)
                for tried in _without_content(usual)
                if _has_call(written := probe.text(asked, tried), tried)
            ]
            if found:
                # An empty text may become an empty turn of its own.
                written, best = min(found, key=lambda one: len(one[0]))
                results = _RESULT in written or _has_result(probe, best)
                return History(calls=True, results=results, form=best)
    return History(calls=False, results=_has_result(probe, form), form=form)


def _forms_of_calls(form: MessageForm) -> Iterator[MessageForm]:
    yield form
    yield replace(form, arguments="string")
    yield replace(form, nested=False)
    yield replace(form, arguments="string", nested=False)


def _without_content(form: MessageForm) -> Iterator[MessageForm]:
    yield form
    yield replace(form, no_content="absent")
    yield replace(form, no_content="null")


def _has_call(written: str, form: MessageForm) -> bool:
    """Whether a call is in the text, and its arguments as the model would write them."""
    python, twice_quoted = f"'{_KEY}': '{_VALUE}'", f'\\"{_VALUE}\\"'
    misread = python if form.arguments == "object" else twice_quoted
    return _NAME in written and _VALUE in written and misread not in written


def _has_result(probe: _Probe, form: MessageForm) -> bool:
    """Whether the result of a call is in the text, whatever becomes of the call."""
    called = Message(role="assistant", content=_NAME)
    return _RESULT in probe.text([_ASKED, called, _ANSWERED], form)
