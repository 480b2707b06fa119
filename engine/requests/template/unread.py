"""What a chat template does not read, written into the contents of messages that it does read.

Tools and how to call them stand in the system message, earlier calls in the text of their message,
results between tags in a message of the user, as models of Hermes and Qwen know them. A system
message that a template leaves out or refuses stands at the beginning of the user's first message, a
later one is a message of the user; and neighbouring messages of the user are one, where a template
wants user and assistant to take turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.requests.template.messages import as_json
from engine.requests.template.traits import History, TemplateTraits
from engine.text.events import CallLayout

Messages = list[dict[str, Any]]

_RESULT_BEGIN, _RESULT_END = "<tool_response>", "</tool_response>"


def with_tools_written(messages: Messages, tools: Sequence[Any], layout: CallLayout) -> Messages:
    """The messages with a system message that has the tools, and says how to call them."""
    text = _description(tools, layout)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [first | {"content": _joined(first["content"], text)}, *messages[1:]]
    blocks = any(isinstance(message.get("content"), list) for message in messages)
    content: Any = [{"type": "text", "text": text}] if blocks else text
    return [{"role": "system", "content": content}, *messages]


def with_history_written(messages: Messages, history: History, layout: CallLayout) -> Messages:
    """The messages with those calls and results as text that a template does not read."""
    written: Messages = []
    continues_results = False
    for message in messages:
        is_result = message["role"] == "tool" and not history.results
        if message.get("tool_calls") and not history.calls:
            content = message.get("content") or ""
            calls = _calls(message["tool_calls"], layout)
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            message["content"] = _joined(content, calls, "\n")
        if is_result:
            content = _joined(_RESULT_BEGIN, message.get("content") or "", "\n")
            message = {"role": "user", "content": _joined(content, _RESULT_END, "\n")}
        if continues_results and message["role"] == "user":
            # Templates want user and assistant to take turns.
            content = _joined(written[-1]["content"], message["content"], "\n")
            written[-1] = written[-1] | {"content": content}
        else:
            written.append(message)
        continues_results = message["role"] == "user" and (is_result or continues_results)
    return written


def with_one_system(messages: Messages) -> Messages:
    """The messages with the leading system messages as one, and later ones as the user's."""
    written: Messages = []
    for message in messages:
        is_system = message["role"] == "system"
        if is_system and written and all(each["role"] == "system" for each in written):
            content = _joined(written[-1]["content"], message["content"])
            written[-1] = written[-1] | {"content": content}
        elif is_system and written:
            written.append(message | {"role": "user"})
        else:
            written.append(message)
    return written


def with_users_joined(messages: Messages) -> Messages:
    """The messages with neighbouring messages of the user as one."""
    written: Messages = []
    for message in messages:
        if written and message["role"] == written[-1]["role"] == "user":
            content = _joined(written[-1]["content"], message["content"])
            written[-1] = written[-1] | {"content": content}
        else:
            written.append(message)
    return written


def with_system_in_user(messages: Messages) -> Messages:
    """The messages with the leading system messages as the beginning of the user's first one."""
    number = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if not number:
        return messages
    content = messages[0]["content"]
    for message in messages[1:number]:
        content = _joined(content, message["content"])
    rest = messages[number:]
    if rest and rest[0]["role"] == "user":
        return [rest[0] | {"content": _joined(content, rest[0]["content"])}, *rest[1:]]
    return [{"role": "user", "content": content}, *rest]


def written_for(
    traits: TemplateTraits, messages: Messages, tools: Sequence[Any] | None, layout: CallLayout
) -> Messages:
    """The messages with all that a template with these traits would leave out."""
    history = traits.with_tools if tools and traits.tools else traits.without_tools
    messages = with_history_written(messages, history, layout)
    if not traits.systems:
        messages = with_one_system(messages)
    if tools and not traits.tools:
        messages = with_tools_written(messages, tools, layout)
    if not traits.system:
        messages = with_system_in_user(messages)
    return messages if traits.repeats else with_users_joined(messages)


def _description(tools: Sequence[Any], layout: CallLayout) -> str:
    example = _call_text("NAME", '{"ARGUMENT": VALUE}', layout)
    lines = "\n".join(as_json(tool) for tool in tools)
    return (
        f"# Tools\n\nYou can call these functions:\n<tools>\n{lines}\n</tools>\n\n"
        "To call one, write its name and arguments in this form, and nothing after it:\n"
        f"{layout.begin}{example}{layout.end}\n\n"
        f"What it returns follows between {_RESULT_BEGIN} and {_RESULT_END}. If you need none, "
        "answer as usual."
    )


def _calls(calls: Sequence[dict[str, Any]], layout: CallLayout) -> str:
    texts = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            texts.append(as_json(call))  # in a form that only its sender knows
            continue
        arguments = function.get("arguments", {})
        written = arguments if isinstance(arguments, str) else as_json(arguments)
        texts.append(_call_text(function["name"], written, layout))
    return f"{layout.begin}{layout.separator.join(texts)}{layout.end}"


def _call_text(name: str, arguments: str, layout: CallLayout) -> str:
    if layout.quotes_name:
        name = json.dumps(name, ensure_ascii=False)[1:-1]
    return f"{layout.before}{name}{layout.between}{arguments}{layout.after}"


def _joined(first: Any, second: Any, between: str = "\n\n") -> Any:
    """Two contents, each a text or blocks; as blocks if one of them is."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}{between}{second}" if first and second else first or second
    one, other = _blocks(first), _blocks(second)
    gap = [{"type": "text", "text": between}] if one and other else []
    return [*one, *gap, *other]


def _blocks(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [block for block in content if block.get("text") != ""]
