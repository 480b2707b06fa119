"""Calls between markers: those of Hermes and Qwen, and of InternLM.

Hermes (https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B), also Qwen 2.5 and 3::

    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

InternLM 2 (https://github.com/InternLM/InternLM/blob/main/chat/chat_format.md)::

    <|action_start|><|plugin|>
    {"name": "f", "parameters": {"a": 1}}<|action_end|>
"""

from __future__ import annotations

from engine.text.cursor import Reading, TextCursor
from engine.text.events import CallLayout, CallReader, Out, ToolFormat
from engine.text.tool_calls.json_object import calls_after, json_call
from schema.tool_choice import Functions


def _reader(begin: tuple[str, ...], end: str) -> CallReader:
    """The reader of calls between ``begin``, which is one or more markers, and ``end``."""

    def read_call(source: TextCursor, out: Out, functions: Functions) -> Reading[bool]:
        yield from source.space()
        for marker in begin[1:]:
            if not (yield from source.accept(marker)):
                return False
            yield from source.space()
        if not (yield from json_call(source, out, functions)):
            return False
        source.hold()
        yield from source.space()
        # A model may end its answer instead.
        return (yield from source.accept(end))

    return calls_after(begin[0], read_call)


HERMES = ToolFormat(
    "hermes",
    ("<tool_call>", "</tool_call>"),
    _reader(("<tool_call>",), "</tool_call>"),
    CallLayout('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n"),
)

INTERNLM = ToolFormat(
    "internlm",
    ("<|action_start|>", "<|plugin|>", "<|interpreter|>", "<|action_end|>"),
    _reader(("<|action_start|>", "<|plugin|>"), "<|action_end|>"),
    CallLayout(
        '<|action_start|><|plugin|>\n{"name": "', '", "parameters": ', "}<|action_end|>", "\n"
    ),
)
