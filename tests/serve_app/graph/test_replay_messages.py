"""A lost stream of a message goes on too: reasoning, calls and log probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from engine.requests.chunks import ChunkBuilder
from engine.requests.outputs import ChoiceDelta, RequestOutput
from engine.text.detect import MessageFormats
from engine.text.events import ToolFormat
from engine.text.message import MessageParser
from engine.text.reasoning import THINK
from engine.text.tool_calls.hermes import HERMES
from engine.text.tool_calls.llama import LLAMA
from engine.text.tool_calls.mistral import MISTRAL_NAMED
from engine.text.tool_calls.qwen_coder import QWEN_CODER
from schema import StreamChunk
from schema.answers.response import TokenLogprob, collect
from serve_app.graph.replay import Delivered

_CHUNK: TypeAdapter[StreamChunk] = TypeAdapter(StreamChunk)
STOP = "END"
FORMATS = (HERMES, LLAMA, MISTRAL_NAMED, QWEN_CODER)

# Pieces of answers, whole ones and cut ones.
pieces = st.sampled_from(
    [
        *("<think>", "</think>", "\n", " ", "é🙂", "I look.", "E", "EN", "END", "{", "}", '"'),
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": ',
        '<tool_call>\n{"arguments": {"a": "é"}, "name": "g"}</tool_call>',
        '<tool_call>{"name": "g"}</tool_call>',
        '<tool_call>{"name": "none", "arguments": {}}</tool_call>',
        '{"name": "f", "parameters": {"a": "b"}}; {"name": "g", "parameters": {}}',
        '[TOOL_CALLS]f[ARGS]{"a": [1, 2]}[TOOL_CALLS]g[ARGS]{}',
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=g>\n</function>\n</tool_call>",
    ]
)
texts = st.lists(st.lists(pieces, max_size=5).map("".join), min_size=1, max_size=2)
cuts = st.lists(st.integers(0, 120), max_size=12)


def run_of(tools: ToolFormat, texts: list[str], cuts: list[int]) -> list[StreamChunk]:
    """The chunks of a run that writes these texts, a choice each, a character a token."""
    functions: dict[str, Any] = {"f": {"properties": {"a": {"type": "string"}}}, "g": None}
    formats = MessageFormats(tools, THINK, {})
    readers = [
        MessageParser(formats, functions, (STOP,), partial("call{}{}".format, index))
        for index in range(len(texts))
    ]
    form = ChunkBuilder("m", "fp", 1, readers)
    chunks = []
    stops = sorted({0, *cuts, max(map(len, texts))})
    for start, stop in zip(stops, [*stops[1:], None], strict=True):
        news = []
        for index, text in enumerate(texts):
            if start and start >= len(text):
                continue
            ended = stop is None or stop >= len(text)
            piece = text[start:stop]
            news.append(
                ChoiceDelta(index, piece, "stop" if ended else None, tuple(map(_logprob, piece)))
            )
        if news:
            chunks.append(form.chunk(RequestOutput(tuple(news), start)))
    return chunks


def _logprob(character: str) -> TokenLogprob:
    token = ord(character)
    known: Any = {"token": character, "token_id": token, "bytes": None, "logprob": -token / 7}
    return cast(TokenLogprob, {**known, "top_logprobs": [dict(known)]})


@settings(max_examples=60)
@given(
    st.sampled_from(FORMATS), texts, st.lists(st.tuples(cuts, st.integers(0, 9)), max_size=3), cuts
)
def test_the_client_gets_the_message_after_any_loss(
    tools: ToolFormat, texts: list[str], lost: list[tuple[list[int], int]], last: list[int]
) -> None:
    delivered, told = Delivered(), list[StreamChunk]()
    for cut, count in lost:
        told += [new for c in run_of(tools, texts, cut)[:count] if (new := delivered.take(c))]
        delivered.again()
    told += [new for c in run_of(tools, texts, last) if (new := delivered.take(c))]
    for chunk in told:
        _CHUNK.validate_python(chunk)
    assert collect(told)["choices"] == collect(run_of(tools, texts, []))["choices"]
