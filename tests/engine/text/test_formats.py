"""What models write, read as messages: text as their public templates have it, in any pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.detect import MessageFormats
from engine.text.events import ToolFormat
from engine.text.message import MessageParser, stop_watch
from engine.text.reasoning import MISTRAL_THINK, THINK, ReasoningFormat
from engine.text.tool_calls.hermes import HERMES, INTERNLM
from engine.text.tool_calls.llama import LLAMA
from engine.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from engine.text.tool_calls.qwen_coder import QWEN_CODER
from schema.answers.response import FinishReason, ResponseMessage, joined
from schema.task import Task
from schema.tool_choice import functions_of
from tests.engine.text.test_stop_strings import expected as before_stop


def _tool(name: str, **types: Any) -> dict[str, Any]:
    properties = {name: {"type": kind} for name, kind in types.items()}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    _tool("weather", city="string", days="integer", note=["string", "null"], where="object"),
    _tool("time"),
]
FORMATS = [HERMES, INTERNLM, LLAMA, MISTRAL, MISTRAL_NAMED, QWEN_CODER]


def read(
    pieces: list[str],
    tools: ToolFormat | None = None,
    reasoning: ReasoningFormat | None = None,
    *,
    is_open: bool = False,
    stop: tuple[str, ...] = (),
    reason: FinishReason = "stop",
    offered: list[dict[str, Any]] = TOOLS,
    one_call: bool = False,
) -> tuple[ResponseMessage, FinishReason | None]:
    """The message of a text that arrives in pieces, and why it ends."""
    reader = MessageParser(
        MessageFormats(tools, reasoning, {}),
        functions_of(offered),
        stop,
        "call{}".format,
        is_open=is_open,
        one_call=one_call,
    )
    results = [reader.push(piece, None) for piece in pieces]
    assert all(end is None for _, end in results)
    results.append(reader.push("", reason))
    return joined(delta for delta, _ in results), results[-1][1]


def calls(message: ResponseMessage) -> list[tuple[str, str]]:
    made = message.get("tool_calls", [])
    assert [call["id"] for call in made] == [f"call{i}" for i in range(len(made))]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in made]


PARIS = '{"city": "Paris"}'
ONE = [("weather", PARIS)]
TWO = [("weather", PARIS), ("time", "{}")]
NASTY = r'{"city": "}\"</tool_call>[\\", "where": {"a": [1, {"b": "{"}], "\u00e9": "\ud83e\udd8a"}}'

# Format, text, content, calls.
ANSWERS: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    # Hermes 2 Pro, Qwen 2.5 and 3
    (HERMES, f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>', "", ONE),
    (
        HERMES,
        f'I look.\n\n<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "time"}\n</tool_call>\n',
        "I look.",
        TWO,
    ),
    (
        HERMES,
        f'a <tool_call> {{"name":"weather","arguments":{PARIS}}} </tool_call>\n b \n',
        "a\n b \n",
        ONE,
    ),
    (HERMES, f'<tool_call>{{"name": "weather", "arguments": {PARIS}}}', "", ONE),
    (HERMES, '<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
    (HERMES, f'<tool_call>{{"name": "weather", "arguments": {NASTY}}}</tool_call>', "",
     [("weather", NASTY)]),
    (HERMES, '<tool_call>{"type": "function", "id": 5, "name": "w\\u0065ather", '
     f'"parameters": {PARIS}}}</tool_call>', "", ONE),
    # Llama 3.1 to 3.3
    (LLAMA, f'{{"name": "weather", "parameters": {PARIS}}}', "", ONE),
    (LLAMA, f'<|python_tag|>{{"name": "weather", "parameters": {PARIS}}}', "", ONE),
    (LLAMA, f'\n\n{{"type": "function", "name": "weather", "parameters": {PARIS}}}; '
     '{"name": "time", "parameters": {}}', "", TWO),
    (LLAMA, f'{{"name": "weather", "parameters": {PARIS}}}\n'
     '{"name": "time", "parameters": {}}\n', "", TWO),
    (LLAMA, f'Let me see. <|python_tag|>{{"name": "weather", "parameters": {PARIS}}} Done.',
     "Let me see. Done.", ONE),
    (LLAMA, '<|python_tag|>brave_search.call(query="x")',
     '<|python_tag|>brave_search.call(query="x")', []),
    (LLAMA, f'Like {{"name": "weather", "parameters": {PARIS}}}',
     f'Like {{"name": "weather", "parameters": {PARIS}}}', []),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    # Mistral, before and since version 11 of its tokenizer
    (MISTRAL, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}, '
     '{"name": "time", "arguments": {}, "id": "abcdefghi"}]', "", TWO),
    (MISTRAL, f'Well.[TOOL_CALLS][{{"name": "weather", "arguments": {PARIS}, "id": "x"}}] Yes.',
     "Well. Yes.", ONE),
    (MISTRAL, f'[TOOL_CALLS]{{"name": "weather", "arguments": {PARIS}}}', "", ONE),
    (MISTRAL_NAMED, f"[TOOL_CALLS]weather[ARGS]{PARIS}[TOOL_CALLS]time[CALL_ID]XYZ123abc[ARGS]{{}}",
     "", TWO),
    (MISTRAL_NAMED, f"On it.[TOOL_CALLS]weather{PARIS}", "On it.", ONE),
    # InternLM 2
    (INTERNLM, f'I look.<|action_start|><|plugin|>\n{{"name": "weather", "parameters": {PARIS}}}'
     "<|action_end|>\n", "I look.", ONE),
    (INTERNLM, f'<|action_start|> <|plugin|> {{"name": "weather", "parameters": {PARIS}}}', "",
     ONE),
    (INTERNLM, "<|action_start|><|interpreter|>\n1 + 1<|action_end|>",
     "<|action_start|><|interpreter|>\n1 + 1<|action_end|>", []),
    # Qwen3-Coder
    (QWEN_CODER, "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
     "</function>\n</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>", "", TWO),
    (QWEN_CODER, "Now:\n<tool_call>\n<function=weather>\n<parameter=days>\n3\n</parameter>\n"
     '<parameter=city>\nif a < b:\n\n  "x"\n\n</parameter>\n'
     '<parameter=where>{"a": [1]}</parameter>\n'
     "<parameter=note>\n7\n</parameter><parameter=extra>\nNone\n</parameter></function></tool_call>",
     "Now:", [("weather", '{"days": 3, "city": "if a < b:\\n\\n  \\"x\\"\\n", "where": {"a": [1]}, '
               '"note": "7", "extra": "None"}')]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "content", "expected"), ANSWERS)
def test_what_models_write(
    form: ToolFormat, text: str, content: str, expected: list[tuple[str, str]]
) -> None:
    for pieces in ([text], list(text)):
        message, reason = read(pieces, form)
        assert message["content"] == content
        assert calls(message) == expected
        assert reason == ("tool_calls" if expected else "stop")
    for _, arguments in expected:
        json.loads(arguments)


@pytest.mark.parametrize(("form", "text", "content", "expected"), ANSWERS)
def test_one_call_at_most(
    form: ToolFormat, text: str, content: str, expected: list[tuple[str, str]]
) -> None:
    """The text around calls stays, and calls after the first are not told, in any pieces."""
    for pieces in ([text], list(text), [text[:40], text[40:]]):
        message, reason = read(pieces, form, one_call=True)
        assert (message["content"], calls(message)) == (content, expected[:1])
        assert reason == ("tool_calls" if expected else "stop")


# Format, text, content, calls: text that is not a call, or not a whole one.
BROKEN: list[tuple[ToolFormat, str, str | None, list[tuple[str, str]]]] = [
    (HERMES, '<tool_call>{"name": "rain", "arguments": {}}</tool_call>', None, []),
    (HERMES, '\n<tool_call>{"name": "weather", "arguments": [1]}</tool_call> ', None, []),
    (HERMES, '<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>', None, []),
    (HERMES, '<tool_call>{"name": "weath', None, []),
    (HERMES, "<tool_call>{'name': 'weather'}</tool_call>", None, []),
    (HERMES, '<tool_call>{"na\\qme": 1}', None, []),
    (HERMES, '<tool_call>{"function": "weather"}</tool_call>', None, []),
    (HERMES, '<tool_call>{"arguments": {"a": "', None, []),
    (HERMES, '<tool_call>{"type": "f"}</tool_call>', None, []),
    (HERMES, '<tool_call>{"type": >', None, []),
    (HERMES, "a <tool_call", None, []),
    (HERMES, "<tool_call> ", None, []),
    (HERMES, " \n", None, []),
    (HERMES, '<tool_call><tool_call>{"name": "time", "arguments": {}}</tool_call>',
     "<tool_call>", [("time", "{}")]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Par', "",
     [("weather", '{"city": "Par')]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Par\\', "",
     [("weather", '{"city": "Par\\')]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"a": [1, 2}</tool_call> b',
     "</tool_call> b", [("weather", '{"a": [1, 2}')]),
    (HERMES, '<tool_call>{"name": "time", "arguments": {}, oh</tool_call>', ", oh</tool_call>",
     [("time", "{}")]),
    (HERMES, '<tool_call>{"name": "time", "arguments": {}\n', "", [("time", "{}")]),
    (HERMES, '<tool_call>{"name": "time", "arguments": {}, "arguments": {}}',
     ', "arguments": {}}', [("time", "{}")]),
    (LLAMA, '{"name": "rain", "parameters": {}}', None, []),
    (LLAMA, '{"name": "time", "parameters": {}}; {"name": "rain"}', '; {"name": "rain"}',
     [("time", "{}")]),
    (LLAMA, ' {"na', None, []),
    (LLAMA, " \n", None, []),
    (MISTRAL, '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "rain"}]',
     ', {"name": "rain"}]', [("time", "{}")]),
    (MISTRAL, "[TOOL_CALLS][]", None, []),
    (MISTRAL_NAMED, "[TOOL_CALLS]rain[ARGS]{}", None, []),
    (MISTRAL_NAMED, "[TOOL_CALLS]time[ARGS]", None, []),
    (MISTRAL_NAMED, '[TOOL_CALLS]time[ARGS]{"a', "", [("time", '{"a')]),
    (INTERNLM, "<|action_start|>{}", None, []),
    (QWEN_CODER, "<tool_call><function=rain></function></tool_call>", None, []),
    (QWEN_CODER, "<tool_call><function=time", None, []),
    (QWEN_CODER, "<tool_call><function=weather><parameter=city>\nPar\n", "",
     [("weather", '{"city": "Par\\n')]),
    (QWEN_CODER, "<tool_call><function=weather><parameter=days>\n1", "",
     [("weather", '{"days": 1')]),
    (QWEN_CODER, "<tool_call><function=time></tool_call>", "</tool_call>", [("time", "{")]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "content", "expected"), BROKEN)
def test_an_incomplete_call_is_not_lost(
    form: ToolFormat, text: str, content: str | None, expected: list[tuple[str, str]]
) -> None:
    """None: all of it is content."""
    for pieces in ([text], list(text)):
        message, reason = read(pieces, form, reason="length")
        assert message["content"] == (text if content is None else content)
        assert calls(message) == expected
        assert reason == "length"


# Marks, whether the prompt has opened them, text, reasoning, content.
THOUGHTS: list[tuple[ReasoningFormat, bool, str, str, str]] = [
    (THINK, False, "<think>\nHm.\n\nYes.\n</think>\n\nParis.\n", "Hm.\n\nYes.", "Paris.\n"),
    (THINK, True, "Hm.\n</think>\n\nParis.", "Hm.", "Paris."),
    (THINK, True, "<think>\nHm.</think>Paris.", "Hm.", "Paris."),
    (THINK, False, "\n<think>\n\n</think>\n\nParis.", "", "Paris."),
    (THINK, False, "<think>Hm. a </b", "Hm. a </b", ""),
    (THINK, False, "<think>Hm. \n", "Hm. \n", ""),
    (THINK, False, "  Not <think>x</think>", "", "  Not <think>x</think>"),
    (THINK, False, "  <thin air", "", "  <thin air"),
    (THINK, False, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (MISTRAL_THINK, False, "[THINK]Hm.[/THINK]Paris.", "Hm.", "Paris."),
]


@pytest.mark.parametrize(("marks", "is_open", "text", "thought", "content"), THOUGHTS)
def test_reasoning(
    marks: ReasoningFormat, is_open: bool, text: str, thought: str, content: str
) -> None:
    for pieces in ([text], list(text)):
        message, reason = read(pieces, HERMES, marks, is_open=is_open)
        assert message.get("reasoning_content", "") == thought
        assert (message["content"], reason) == (content, "stop")


def test_calls_are_read_after_the_reasoning_and_not_in_it() -> None:
    call = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    message, reason = read([f"<think>\n{call}\n</think>\n\n{call}"], HERMES, THINK)
    assert message == {
        "role": "assistant",
        "content": "",
        "reasoning_content": call,
        "tool_calls": [
            {"id": "call0", "type": "function", "function": {"name": "time", "arguments": "{}"}}
        ],
    }
    assert reason == "tool_calls"


@pytest.mark.parametrize("form", FORMATS)
def test_without_tools_nothing_is_read(form: ToolFormat) -> None:
    for text in [text for other, text, _, _ in ANSWERS if other is form]:
        assert read([text], form, offered=[]) == ({"role": "assistant", "content": text}, "stop")


@pytest.mark.parametrize(
    "stop", ["END", "</tool_call>", "<tool_call>", "{", "Hm", "<think>", "</think>", "time", "\n"]
)
def test_a_stop_string_is_not_looked_for_in_markup_reasoning_and_calls(stop: str) -> None:
    text = '<think>\nHm.\n</think>\nYes.\n<tool_call>{"name": "time", "arguments": {"a": "END"}}'
    message, reason = read(list(text), HERMES, THINK, stop=(stop,))
    assert (message, reason) == read([text], HERMES, THINK)
    assert calls(message) == [("time", '{"a": "END"}')]


def test_a_stop_string_ends_all_of_the_message() -> None:
    text = '<think>Hm.</think>Yes. No.<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    message, reason = read(list(text), HERMES, THINK, stop=("s. N", ". N"))
    assert message == {"role": "assistant", "content": "Ye", "reasoning_content": "Hm."}
    assert reason == "stop"


def test_a_stop_string_that_is_certain_at_the_end_only() -> None:
    """Until then a call might follow, which makes the line break part of its layout."""
    message, reason = read(["Yes.\n"], HERMES, stop=("\n",), reason="length")
    assert (message["content"], reason) == ("Yes.", "stop")


def test_a_call_is_emitted_before_its_arguments_are_complete() -> None:
    reader = MessageParser(
        MessageFormats(HERMES, None, {}), functions_of(TOOLS), (), "call{}".format
    )
    pieces = ['Sure. <tool_call>{"name": "weather", ', '"arguments": {"city": "Pa', 'ris"}}']
    deltas = [reader.push(piece, None)[0] for piece in pieces]
    assert deltas == [
        {"role": "assistant", "content": "Sure."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call0",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Pa'},
                }
            ],
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"index": 0, "function": {"arguments": 'ris"}'}}],
        },
    ]


def _json_objects() -> st.SearchStrategy[dict[str, Any]]:
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
    names = st.text(max_size=4)
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
        max_leaves=4,
    )
    return st.dictionaries(names, values, max_size=3)


@settings(max_examples=50)
@given(
    form=st.sampled_from([form for form in FORMATS if form.layout]),
    arguments=_json_objects(),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_a_call_that_is_written_as_its_layout_says_is_read(
    form: ToolFormat, arguments: dict[str, Any], escaped: bool, indent: int | None
) -> None:
    assert form.layout
    written = json.dumps(arguments, ensure_ascii=escaped, indent=indent)
    before, between, after, separator, begin, end = form.layout
    one, other = (f"{before}{name}{between}{written}{after}" for name in ("weather", "time"))
    message, reason = read([f"{begin}{one}{end}"], form)
    assert (message["content"], calls(message)) == ("", [("weather", written)])
    assert reason == "tool_calls"
    message, reason = read([f"{begin}{one}{separator}{other}{end}"], form)
    assert (message["content"], calls(message)) == ("", [("weather", written), ("time", written)])
    assert reason == "tool_calls"


# Pieces of all formats, and what may be mistaken for them.
FRAGMENTS = st.sampled_from(
    [
        *(marker for form in FORMATS for marker in form.markers),
        *(text for form in FORMATS if form.layout for text in form.layout),
        *("<think>", "</think>", "[THINK]", "[/THINK]", "STOP", "STO", " ", "\n", "; ", ", "),
        *('{"name": "', "weather", "time", '", "arguments": ', "{", "}", '{"a": [', "]", '"', "\\"),
        *("<function=", "weather>", "</function>", "<parameter=city>", "</parameter>", "é", "<"),
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=14).map("".join)


@given(
    text=st.sampled_from([text for _, text, *_ in (*ANSWERS, *BROKEN)]) | TEXTS,
    form=st.sampled_from(FORMATS) | st.none(),
    marks=st.sampled_from([None, THINK, MISTRAL_THINK]),
    is_open=st.booleans(),
    places=st.lists(st.integers(0, 200), max_size=12),
)
def test_any_pieces_give_the_same_message(
    text: str,
    form: ToolFormat | None,
    marks: ReasoningFormat | None,
    is_open: bool,
    places: list[int],
) -> None:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    whole = read([text], form, marks, is_open=is_open, stop=("STOP",))
    assert read(pieces, form, marks, is_open=is_open, stop=("STOP",)) == whole
    assert read(list(text), form, marks, is_open=is_open, stop=("STOP",)) == whole


@given(
    text=st.sampled_from([text for _, text, *_ in (*ANSWERS, *BROKEN)]) | TEXTS,
    form=st.sampled_from(FORMATS),
    is_open=st.booleans(),
    stops=st.lists(st.sampled_from(["STOP", "TO", "\n", "{", "</tool_call>", "weather", '"', " "])),
    fork_at=st.integers(0, 200),
)
def test_the_engine_ends_a_choice_where_its_message_ends(
    text: str, form: ToolFormat, is_open: bool, stops: list[str], fork_at: int
) -> None:
    """What is generated up to there gives the same message as all that could have followed."""
    task = Task.from_fields(
        model="m",
        messages=[{"role": "user", "content": "Hi"}],
        tools=TOOLS,
        answer_format="message",
    )
    formats = MessageFormats(form, THINK, {})
    watch = stop_watch(formats, task, "<think>" if is_open else "", stops)
    generated = ""
    for character in text:
        if watch.found:
            break
        watch.peek(character + "{")  # text that may still change decides nothing
        watch.push(character)
        generated += character
        if len(generated) == fork_at:
            watch = watch.fork()
    whole, _ = read([text], form, THINK, is_open=is_open)
    message, reason = read([generated], form, THINK, is_open=is_open, stop=tuple(stops))
    assert message["content"] == before_stop(whole["content"], stops)
    assert message == read([text], form, THINK, is_open=is_open, stop=tuple(stops))[0]
    if watch.found:
        assert reason in ("stop", "tool_calls")
        assert any(stop in whole["content"] for stop in stops)


@given(text=TEXTS, form=st.sampled_from(FORMATS))
def test_no_text_is_lost(text: str, form: ToolFormat) -> None:
    """Without a call the content is the text. With one, it is the text outside of calls."""
    message, _ = read([text], form)
    if not calls(message):
        assert message["content"] == text
    else:
        rest = iter(text)
        assert all(character in rest for character in message["content"])  # in this order


@pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL, QWEN_CODER])
def test_a_long_answer_costs_its_length(form: ToolFormat) -> None:
    """It would take minutes if all of it were read again for each piece or each marker."""
    begin = form.markers[0]
    message, _ = read(["<", begin, "{", " ", begin[:-1]] * 4_000, form)
    assert not calls(message)
    assert len(message["content"]) == 4_000 * (2 * len(begin) + 2)
