"""The grammar of a task's answers: their form or their calls, after their reasoning."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from engine.sampling.grammar import Grammar, lark_json
from engine.sampling.json_guard import Prelude
from engine.sampling.json_schema.rewrite import rewritten
from engine.text.detect import MessageFormats
from engine.text.events import CallLayout
from engine.text.message import reasoning_stage
from engine.text.reasoning import ReasoningFormat
from schema.errors import TaskArgsInvalid
from schema.json_values import quoted
from schema.structured import closed_strictly
from schema.task import Task
from schema.tool_choice import NamedFunction, callable_functions

MAX_CALLS = 16
"""Most calls in one answer that has to call functions: a model may not know when to stop."""

# Names that Mistral's models write without quotes, and that the reader accepts as a name.
_PLAIN_NAME = re.compile(r"[0-9A-Za-z_.:/-]+")
_NO_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


def task_grammar(task: Task, formats: MessageFormats, text_end: str) -> Grammar | None:
    """The grammar of a task's answers; None if they may be anything.

    If the answer is a message, its reasoning is not constrained. If the answer is text, it has no
    such parts, and follows the grammar from the first token.

    Args:
        task: the task.
        formats: of the model; if the task forces calls, the format of calls is known.
        text_end: the last characters of the prompt, where a template may begin the reasoning.

    Raises:
        TaskArgsInvalid: a function cannot be called by this model.
    """
    if task.forces_calls:
        assert formats.tools is not None
        assert formats.tools.layout is not None
        grammar = _calls(task, formats.tools.layout, formats.added)
    elif task.structured_output is not None:
        grammar = Grammar.of(task.structured_output)
    else:
        return None
    stage = reasoning_stage(formats, task, text_end)
    if task.answer_format == "text" or stage == "over" or formats.reasoning is None:
        return grammar
    begin, end = formats.reasoning.begin.encode(), formats.reasoning.end.encode()
    return grammar.after(
        _reasoning(formats.reasoning, formats.added, is_open=stage == "open"),
        Prelude(begin, end, is_open=stage == "open"),
    )


def _calls(task: Task, layout: CallLayout, added: Mapping[str, int]) -> Grammar:
    """One or more calls of the functions that a task allows, and nothing else."""
    rules: list[str] = []
    parts: list[Grammar] = []
    functions = callable_functions(task.tools, task.tool_choice)
    for name, parameters in functions.items():
        param = f"tools.{_index(task, name)}.function.parameters"
        schema = _object_schema(parameters, param)
        if _is_strict(task, name):
            schema = closed_strictly(schema)
        arguments = rewritten(schema, param)
        parts.append(Grammar.json(arguments, param))
        head = [*_spelled(layout.before, added), json.dumps(_written(name, layout))]
        head += _spelled(layout.between, added)
        tail = _spelled(layout.after, added)
        rules.append(f"f{len(rules)}: {' '.join([*head, lark_json(arguments), *tail])}")
    one = isinstance(task.tool_choice, NamedFunction) or not task.parallel_tool_calls
    more = " ".join([*_spelled(layout.separator, added), "call"])
    whole = [
        *_spelled(layout.begin, added),
        "call" if one else f"call ({more}){{0,{MAX_CALLS - 1}}}",
        *_spelled(layout.end, added),
    ]
    names = " | ".join(f"f{number}" for number in range(len(rules)))
    lark = "\n".join([f"start: {' '.join(whole)}", f"call: {names}", *rules])
    is_guarded = any(part.is_guarded for part in parts)
    return Grammar.lark(lark, "tool_choice", tuple(parts), is_guarded=is_guarded)


def _reasoning(form: ReasoningFormat, added: Mapping[str, int], *, is_open: bool) -> str:
    """Reasoning, and white space after it, before ``@answer``.

    If the end marker is a token, only that token ends the reasoning. Its spelling must not stand in
    the reasoning, because a reader of the text could not tell the two apart.
    """
    rules = ["ANY: /(?s:.*)/", "GAP: /[ \\n]{1,8}/"]
    if form.end in added:
        free = f"THOUGHTS? {_marker(form.end, added)}"
        rules.append(f"THOUGHTS: /(?s:.+)/ & ~(ANY {json.dumps(form.end)} ANY)")
    else:
        free = "thoughts"
        rules.append(f"thoughts[suffix={json.dumps(form.end)}]: ANY")
    before = f"{free} GAP?" if is_open else f"({_marker(form.begin, added)} {free} GAP?)?"
    return "\n".join([f"start: {before} @answer", *rules])


def _spelled(text: str, added: Mapping[str, int]) -> list[str]:
    """A piece of a layout as terms of Lark: markers that are tokens are written as tokens."""
    markers = [marker for marker in added if marker in text]
    if not markers:
        return [json.dumps(text)] if text else []
    longest_first = sorted(markers, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [_marker(piece, added) for piece in pieces if piece]


def _marker(text: str, added: Mapping[str, int]) -> str:
    return f"<[{added[text]}]>" if text in added else json.dumps(text)


def _written(name: str, layout: CallLayout) -> str:
    """A function's name as it stands in a call."""
    if layout.quotes_name:
        return json.dumps(name, ensure_ascii=False)[1:-1]
    if not _PLAIN_NAME.fullmatch(name):
        raise TaskArgsInvalid(
            f"tool_choice: this model cannot call a function with the name {quoted(name)}; let it "
            "have letters, digits, _ and - only",
            param="tool_choice",
        )
    return name


def _object_schema(parameters: Any, param: str) -> dict[str, Any]:
    """The JSON Schema of a call's arguments, which are always an object."""
    if parameters is None:
        return _NO_PARAMETERS
    kind = parameters.get("type", "object") if isinstance(parameters, dict) else None
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise TaskArgsInvalid(
            f"{param} must be the JSON Schema of an object: a function has named arguments",
            param=param,
        )
    return {**parameters, "type": "object"}


def _is_strict(task: Task, name: str) -> bool:
    tool = (task.tools or ())[_index(task, name)]
    return tool.get("function", tool).get("strict") is True


def _index(task: Task, name: str) -> int:
    """The place of a function among the tools; the last one's, if several have the name."""
    places = [
        index
        for index, tool in enumerate(task.tools or ())
        if isinstance(function := tool.get("function", tool), dict) and function.get("name") == name
    ]
    return places[-1]
