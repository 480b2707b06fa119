"""What a chat template does not read: found by rendering probes, and written into the messages."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Engine, EngineConfig
from engine.requests.prompt import PromptRenderer
from engine.requests.template.chat_template import HINTS
from engine.requests.template.traits import TemplateTraits
from engine.requests.template.unread import with_history_written
from engine.text.detect import MessageFormats
from engine.text.events import ToolFormat
from engine.text.message import MessageParser
from engine.text.tool_calls.hermes import HERMES, INTERNLM
from engine.text.tool_calls.llama import LLAMA
from engine.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from schema.tool_choice import functions_of
from tests.engine.models.scripted_model import save_scripted_model
from tests.engine.models.tiny_models import byte_tokenizer
from tests.engine.requests.test_prompt import TOOL, refused, renderer, task, text_of, user

TURNS = "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}{%- endfor -%}"
BEGIN = "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
STRICT = (
    "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif -%}"
    "{%- for m in messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif -%}"
    "<|{{ m.role }}|>{{ m.content }}{%- endfor -%}"
)

TEMPLATES = {
    # Knows no tools, as ChatML; as Gemma 1 and 2, no system message and no other order either.
    "plain": TURNS + BEGIN,
    "strict": STRICT + BEGIN,
    # Skips what it does not know.
    "skips": "{%- for m in messages if m.role in ('user', 'assistant') -%}"
    "<|{{ m.role }}|>{{ m.content }}{%- endfor -%}" + BEGIN,
    # As Qwen.
    "tools": "{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif -%}"
    "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content or '' }}"
    "{%- for c in m.tool_calls or [] -%}<tool_call>{{ c.function | tojson }}</tool_call>"
    "{%- endfor -%}{%- endfor -%}" + BEGIN,
    # As DeepSeek V3 and R1: calls stand where there is no content, arguments are a string.
    "string": "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' and m['content'] is none -%}"
    "{%- for c in m['tool_calls'] -%}"
    "{{ '<|call|>' + c['function']['name'] + '\\n' + c['function']['arguments'] + '\\n' }}"
    "{%- endfor -%}"
    "{%- else -%}{{ '<|' + m['role'] + '|>' + m['content'] }}{%- endif -%}{%- endfor -%}" + BEGIN,
    # As Mistral's: ids of nine characters, and a message has a content or calls.
    "ids": "{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif -%}"
    "{%- for m in messages -%}"
    "{%- if m.tool_calls is defined -%}{%- for c in m.tool_calls -%}"
    "{%- if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif -%}"
    "[TOOL_CALLS]{{ c.function | tojson }}{%- endfor -%}"
    "{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ m.tool_call_id[-9:] }}{{ m.content }}"
    "{%- else -%}[{{ m.role }}]{{ m.content }}{%- endif -%}{%- endfor -%}",
    # Writes Python's form of an object: only a string is right.
    "print": "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}"
    "{%- for c in m.tool_calls or [] -%}{{ c.function.name }} {{ c.function.arguments }}"
    "{%- endfor -%}{%- endfor -%}",
    # As Qwen 3.5: one system message, at the beginning.
    "first": "{%- for m in messages -%}"
    "{%- if m.role == 'system' and not loop.first %}{{ raise_exception('not first') }}{% endif -%}"
    "<|{{ m.role }}|>{{ m.content }}{%- endfor -%}" + BEGIN,
    "broken": "{% if %}",
}


def traits(name: str) -> TemplateTraits:
    template = renderer(TEMPLATES[name])._template
    assert template is not None
    return template.traits


@pytest.mark.parametrize(
    ("name", "system", "tools", "calls", "results"),
    [
        ("plain", True, False, False, True),
        ("strict", False, False, False, False),
        ("skips", False, False, False, False),
        ("tools", True, True, True, True),
        ("string", True, False, True, True),
        ("ids", True, True, True, True),
        ("print", True, False, True, True),
        ("first", True, False, False, True),
        ("broken", False, False, False, False),
    ],
)
def test_what_templates_read(
    name: str, system: bool, tools: bool, calls: bool, results: bool
) -> None:
    found = traits(name)
    assert (found.system, found.tools) == (system, tools)
    assert (found.with_tools.calls, found.with_tools.results) == (calls, results)


@pytest.mark.parametrize(
    ("name", "arguments", "no_content"),
    [
        ("tools", "object", "text"),
        ("string", "string", "null"),
        ("ids", "object", "text"),
        ("print", "string", "text"),
    ],
)
def test_the_form_of_calls_that_templates_take(name: str, arguments: str, no_content: str) -> None:
    form = traits(name).without_tools.form
    assert (form.arguments, form.no_content) == (arguments, no_content)


CALL = {"id": "abcdefghi", "type": "function"}
CALL["function"] = {"name": "weather", "arguments": '{"at": "Zürich"}'}  # type: ignore[assignment]
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    *user("Weather?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "abcdefghi"},
    {"role": "tool", "content": "sun", "tool_call_id": "abcdefghi"},
    *user("And?"),
]


@pytest.mark.parametrize("arguments", [{"at": "Zürich"}, '{"at": "Zürich"}'])
def test_a_template_that_joins_strings_gets_strings(arguments: Any) -> None:
    """Compared with jinja itself: `apply_chat_template` leaves out a content that is null."""
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages = [*user("Weather?"), {"role": "assistant", "tool_calls": [call]}]
    plain = json.loads(json.dumps(messages))
    plain[1]["content"] = None
    plain[1]["tool_calls"][0]["function"]["arguments"] = '{"at": "Zürich"}'
    expected = jinja2.Template(TEMPLATES["string"]).render(
        messages=plain, add_generation_prompt=True
    )
    assert text_of(renderer(TEMPLATES["string"]).render(task(messages))) == expected
    assert 'weather\n{"at": "Zürich"}' in expected


# --- Written into the messages -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "strict", "skips", "string", "print"])
def test_tools_that_a_template_does_not_read_are_described(name: str) -> None:
    text = text_of(renderer(TEMPLATES[name]).render(task(user("Hi"), tools=[TOOL])))
    tools = text.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in tools.splitlines()] == [TOOL]
    # What it says about the form of a call is right: the reader takes it.
    filled = text.replace("NAME", "weather").replace('"ARGUMENT": VALUE', '"at": "X"')
    form = filled[filled.index("<tool_call>") : filled.index("</tool_call>") + 12]
    assert called(HERMES, form) == [("weather", '{"at": "X"}')]


def called(form: ToolFormat, text: str) -> list[tuple[str, str]]:
    reader = MessageParser(
        MessageFormats(form, None, {}), functions_of([TOOL]), (), "call{}".format
    )
    delta, reason = reader.push(text, "stop")
    assert (delta["content"], reason) == ("", "tool_calls")
    return [
        (str(call["function"].get("name")), call["function"]["arguments"])
        for call in delta["tool_calls"]
    ]


def test_tools_stand_in_the_system_message() -> None:
    own = renderer(TEMPLATES["plain"])
    messages = [{"role": "system", "content": "Be brief."}, *user("Hi")]
    text = text_of(own.render(task(messages, tools=[TOOL])))
    without = text_of(own.render(task(messages)))
    assert text.startswith("<|system|>Be brief.\n\n")
    assert text.endswith("<|user|>Hi<|assistant|>")
    assert without == "<|system|>Be brief.<|user|>Hi<|assistant|>"
    assert text_of(own.render(task(messages, tools=[]))) == without


@pytest.mark.parametrize("name", ["strict", "skips"])
def test_a_system_message_that_is_not_read_begins_that_of_the_user(name: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *user("Hi")]
    text = text_of(renderer(TEMPLATES[name]).render(task(messages)))
    expected = byte_tokenizer().apply_chat_template(
        user("Be brief.\n\nHi"),
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text == expected


AGENTS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "system", "content": "Be kind."},
    *user("Here is a tree."),
    *user("Say hi."),
    {"role": "system", "content": "Agents: one."},
]
"""As Codex begins, and as Claude Code goes on."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", AGENTS),
        (
            "first",
            [
                {"role": "system", "content": "Be brief.\n\nBe kind."},
                *AGENTS[2:4],
                *user("Agents: one."),
            ],
        ),
        ("strict", user("\n\n".join(message["content"] for message in AGENTS))),
        (
            "skips",
            [
                *user("Be brief.\n\nBe kind.\n\nHere is a tree."),
                *AGENTS[3:4],
                *user("Agents: one."),
            ],
        ),
    ],
)
def test_messages_in_an_order_that_a_template_does_not_read(name: str, expected: Any) -> None:
    text = byte_tokenizer().apply_chat_template(
        expected, chat_template=TEMPLATES[name], add_generation_prompt=True, tokenize=False
    )
    assert text_of(renderer(TEMPLATES[name]).render(task(AGENTS))) == text


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("name", ["plain", "strict", "skips", "tools", "ids"])
def test_nothing_of_a_conversation_is_lost(name: str, tools: Any) -> None:
    prompt = renderer(TEMPLATES[name], context=4096).render(task(HISTORY, tools=tools))
    text = text_of(prompt)
    for part in ("Be brief.", "Weather?", "rain", "sun", "And?"):
        assert text.count(part) == 1
    assert text.count('"Zürich"') == 2
    assert ("description" in text or "parameters" in text) == (tools is not None)


def test_turns_still_alternate() -> None:
    """Two results and a question are one turn of the user, for a template that counts turns."""
    text = text_of(renderer(TEMPLATES["strict"]).render(task(HISTORY)))
    roles = [part.partition("|>")[0] for part in text.split("<|")[1:]]
    assert roles == ["user", "assistant", "user", "assistant"]
    results = "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>"
    assert f"<|user|>{results}\nAnd?" in text


@given(
    form=st.sampled_from([HERMES, INTERNLM, LLAMA, MISTRAL, MISTRAL_NAMED]),
    arguments=st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers()),
    number=st.integers(1, 3),
    as_text=st.booleans(),
)
def test_calls_are_written_as_the_model_would_write_them(
    form: ToolFormat, arguments: dict[str, Any], number: int, as_text: bool
) -> None:
    given_arguments: Any = json.dumps(arguments) if as_text else arguments
    call = {"type": "function", "function": {"name": "weather", "arguments": given_arguments}}
    assert form.layout is not None
    messages = [{"role": "assistant", "content": "", "tool_calls": [call] * number}]
    [message] = with_history_written(messages, traits("strict").with_tools, form.layout)
    assert message.keys() == {"role", "content"}
    read = called(form, message["content"])
    assert [(name, json.loads(text)) for name, text in read] == [("weather", arguments)] * number


def test_blocks_stay_blocks() -> None:
    blocks = (
        "{% for m in messages %}<|{{ m.role }}|>{% for b in m.content %}{{ b.text }}{% endfor %}"
    )
    own = renderer(blocks + "{% endfor %}", images=True, context=4096)
    text = text_of(own.render(task(HISTORY, tools=[TOOL])))
    for part in ("Be brief.\n\n# Tools", "weather", "rain", "Zürich"):
        assert part in text


def test_the_models_own_format_is_asked_for() -> None:
    """A vocabulary that has the markers of calls, under a template that does not read tools."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.add_tokens(["<|action_start|>", "<|action_end|>", "<|plugin|>"], special_tokens=True)
    plain = renderer(TEMPLATES["plain"])
    loaded = plain._loaded.__class__(**{**plain._loaded.__dict__, "tokenizer": tokenizer})
    own = PromptRenderer(loaded)
    assert (plain.formats.tools, own.formats.tools) == (HERMES, INTERNLM)
    text = tokenizer.decode(own.render(task(user("Hi"), tools=[TOOL])).token_ids)
    assert '<|action_start|><|plugin|>\n{"name": "NAME", "parameters": ' in text


# --- Variables of the template -------------------------------------------------------------------


def test_a_variable_that_the_template_does_not_read_is_refused() -> None:
    template = "{% set mood = mood or 'good' %}{{ mood }}" + TEMPLATES["plain"]
    render = renderer(template).render
    assert text_of(render(task(user("Hi"), template_args={"mood": "bad"}))).startswith("bad")
    error = refused(lambda: render(task(user("Hi"), template_args={"moood": "bad"})))
    assert error.param == "template_args.moood"
    assert "mood" in str(error).replace("moood", "")


@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize("template", [TEMPLATES["plain"], TURNS, None])
def test_well_known_switches_are_hints(template: str | None, name: str) -> None:
    render = renderer(template).render
    asked = task(user("Hi"), template_args={name: "low"})
    assert render(asked) == render(task(user("Hi")))
    reads = renderer(f"{{{{ {name} }}}}" + TURNS).render
    assert text_of(reads(asked)).startswith("low")


def test_a_switch_of_the_engine_that_would_be_ignored_is_refused() -> None:
    asked = task(user("Hi"), template_args={"add_generation_prompt": False})
    assert text_of(renderer(TEMPLATES["plain"]).render(asked)) == "<|user|>Hi"
    error = refused(lambda: renderer(TURNS).render(asked))
    assert error.param == "template_args.add_generation_prompt"


def test_without_a_template_calls_are_refused_by_name() -> None:
    for own, fields in ((None, {}), (TEMPLATES["tools"], {"use_chat_template": False})):
        asked = task(HISTORY, **fields)
        error = refused(lambda own=own, asked=asked: renderer(own).render(asked))  # type: ignore[misc]
        assert error.param == "messages.2.tool_calls"


# --- In an engine --------------------------------------------------------------------------------


def test_a_model_whose_template_knows_no_tools_calls_them(tmp_path: Any) -> None:
    text = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"at": "X"}}\n</tool_call>'
    save_scripted_model(tmp_path, {430: text}, template=TEMPLATES["plain"])
    engine = Engine(EngineConfig(model=str(tmp_path), model_id="m", dtype="float32", threads=1))
    try:
        card = engine.card()
        assert (card["tools"], card["tool_format"]) == ("default", "hermes")
        assert (card["system"], card["template_args"]) == ("template", [])
        fields: dict[str, Any] = {"tools": [{"function": {"name": "weather"}}]}
        render = engine._loop.assembly.renderer.render
        padding = 430 - len(render(task(user(""), **fields)).token_ids)
        assert padding > 0
        asked = task(user("x" * padding), answer_format="message", **fields)
        [choice] = engine.run_blocking(asked.model_copy(update={"model": "m"}))["choices"]
    finally:
        engine.close()
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"at": "X"}'}
