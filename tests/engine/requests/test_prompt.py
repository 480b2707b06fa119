"""Prompts: the chat template's text, tokenized once, without injected tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from engine.loading.loaded_model import LoadedModel
from engine.requests.prompt import Prompt, PromptRenderer
from engine.vision.preprocessor import PreparedImage
from schema import Task
from schema.errors import TaskArgsInvalid
from tests.engine.models.tiny_models import CHAT_TEMPLATE, IMAGE, byte_tokenizer

CHATML = (
    "{%- if tools %}<tools>{{ tools | tojson }}</tools>{% endif -%}"
    "{%- if thinking is defined %}<think {{ thinking }}>{% endif -%}"
    "{%- for message in messages -%}"
    "<|{{ message.role }}|>{{ message.content }}"
    "{%- for call in message.tool_calls or [] -%}"
    "<call>{{ call.function.name }}:{% for k, v in call.function.arguments.items() %}"
    "{{ k }}={{ v }};{% endfor %}</call>{%- endfor -%}"
    "{%- if message.tool_call_id %}<answers {{ message.tool_call_id }}>{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PNG = "AAAA"  # never decoded here


def renderer(
    template: str | None,
    *,
    images: bool = False,
    context: int = 512,
    tool_template: str | None = None,
) -> PromptRenderer:
    tokenizer = byte_tokenizer()
    return PromptRenderer(
        LoadedModel(
            model=None,
            tokenizer=tokenizer,
            chat_template=template,
            tool_template=tool_template,
            image_token=IMAGE if images else None,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE) if images else None,
            context_length=context,
            device=torch.device("cpu"),
            revision=None,
        )
    )


def task(messages: list[dict[str, Any]], **fields: Any) -> Task:
    return Task.from_fields(model="tiny", messages=messages, **fields)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def text_of(prompt: Prompt) -> str:
    return str(byte_tokenizer().decode(list(prompt.token_ids)))


def refused(render: Callable[[], object]) -> TaskArgsInvalid:
    with pytest.raises(TaskArgsInvalid) as caught:
        render()
    return caught.value


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": user("Hi"),
    "unicode": user("naïve 🦊 \u0000 نص"),
    "empty": user(""),
    "all roles": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "function": {"name": "weather", "arguments": {"at": "X"}}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c"},
    ],
}


@pytest.mark.parametrize("settings", [{}, {"tools": [TOOL]}, {"template_args": {"thinking": "no"}}])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_prompt_is_that_of_apply_chat_template(name: str, settings: dict[str, Any]) -> None:
    messages = CONVERSATIONS[name]
    expected = byte_tokenizer().apply_chat_template(
        messages,
        chat_template=CHATML,
        tools=settings.get("tools"),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **settings.get("template_args", {}),
    )
    assert list(renderer(CHATML).render(task(messages, **settings)).token_ids) == expected


def test_tools_and_template_args_reach_the_template() -> None:
    asked = task(user("Hi"), tools=[TOOL], template_args={"thinking": "off"})
    text = text_of(renderer(CHATML).render(asked))
    assert text.startswith("<tools>")
    assert "weather" in text
    assert "<think off>" in text


def test_generation_can_continue_the_last_message() -> None:
    messages = [*user("Count"), {"role": "assistant", "content": "one, tw"}]
    asked = task(messages, template_args={"continue_final_message": True})
    assert text_of(renderer(CHATML).render(asked)).endswith("one, tw")
    asked = task(user("Hi"), template_args={"add_generation_prompt": False})
    assert text_of(renderer(CHATML).render(asked)) == "<|user|>Hi"


def test_names_reach_the_template() -> None:
    template = "{% for m in messages %}<{{ m.role }} {{ m.name }}>{{ m.content }}{% endfor %}"
    messages = [
        {"role": "user", "name": "Ann", "content": "Hi"},
        {"role": "tool", "name": "clock", "content": "12"},
    ]
    text = text_of(renderer(template).render(task(messages)))
    assert text == "<user Ann>Hi<tool clock>12"


@pytest.mark.parametrize(
    ("template", "effort", "template_args", "read"),
    [
        ("{{ reasoning_effort | default('medium') }}", "high", {}, "high"),
        ("{{ reasoning_effort | default('medium') }}", None, {}, "medium"),
        ("{{ reasoning_effort }}", "high", {"reasoning_effort": "low"}, "low"),
        ("{{ enable_thinking | default(true) }}", "none", {}, "False"),
        ("{{ enable_thinking | default(false) }}", "low", {}, "True"),
        ("{{ enable_thinking }}", "none", {"enable_thinking": True}, "True"),
        ("{{ messages[0].content }}", "none", {}, "Hi"),
    ],
)
def test_reasoning_effort_is_for_templates_that_read_it(
    template: str, effort: str | None, template_args: dict[str, Any], read: str
) -> None:
    asked = task(user("Hi"), reasoning_effort=effort, template_args=template_args)
    assert text_of(renderer(template).render(asked)) == read


def test_reasoning_effort_without_a_template_has_no_effect() -> None:
    asked = task(user("Hi"), reasoning_effort="high")
    assert text_of(renderer(None).render(asked)) == "Hi"


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}]])
def test_an_empty_content_is_an_empty_text(content: Any, images: bool) -> None:
    blocks = "{% for part in m.content %}{{ part.text }}{% endfor %}"
    said = blocks if images else "{{ '' + m.content }}"
    template = "{% for m in messages %}<{{ m.role }}>" + said + "{% endfor %}"
    render = renderer(template, images=images).render
    messages = [*user("Hi"), {"role": "assistant", "content": content}, *user(content)]
    assert text_of(render(task(messages))) == "<user>Hi<assistant><user>"


CALLS = (
    "{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls %}<CALL>{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("arguments", ['{"at": "Oslo"}', {"at": "Oslo"}])
@pytest.mark.parametrize("nested", [True, False])
def test_arguments_of_tool_calls_are_objects_for_the_template(arguments: Any, nested: bool) -> None:
    template = CALLS.replace("CALL", "{{ c.name }} {{ c.arguments | tojson }}")
    if nested:
        template = template.replace("c.", "c.function.")
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    asked = task([{"role": "assistant", "tool_calls": [call]}])
    assert text_of(renderer(template).render(asked)) == '<weather {"at": "Oslo"}>'


@pytest.mark.parametrize("arguments", ["not json", "5", "[" * 100_000, ""])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    asked = task([{"role": "assistant", "content": "", "tool_calls": [call]}])
    template = CALLS.replace("CALL", "{{ c.function.name }} {{ c.function.arguments }}")
    prompt = renderer(template, context=200_000).render(asked)
    assert text_of(prompt) == f"<f {arguments}>"


def test_without_a_template_the_contents_are_joined() -> None:
    messages = [*user("one"), {"role": "assistant", "content": "two"}, *user("three")]
    assert text_of(renderer(None).render(task(messages))) == "one\ntwo\nthree"
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text_of(renderer(None).render(task(user(blocks)))) == "ab"


def test_a_task_may_do_without_the_template() -> None:
    messages = [*user("<|user|>one"), *user("two")]
    asked = task(messages, use_chat_template=False)
    with_template, without = renderer(CHATML), renderer(None)
    assert text_of(with_template.render(asked)) == "<|user|>one\ntwo"
    assert with_template.render(asked) == without.render(asked) == without.render(task(messages))
    error = refused(lambda: with_template.render(asked.model_copy(update={"tools": [TOOL]})))
    assert error.param == "tools"


def test_a_template_for_tools_is_for_tasks_with_tools() -> None:
    render = renderer("plain", tool_template="{{ tools[0].function.name }}").render
    assert text_of(render(task(user("Hi")))) == "plain"
    assert text_of(render(task(user("Hi"), tools=[]))) == "plain"
    assert text_of(render(task(user("Hi"), tools=[TOOL]))) == "weather"


def test_reasoning_that_comes_back_reaches_the_template() -> None:
    template = "{{ messages[0].reasoning_content }}|{{ messages[1].reasoning_content is defined }}"
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert text_of(renderer(template).render(task([answer, *user("Hi")]))) == "Hm.|False"


@pytest.mark.parametrize("settings", [{"tools": [TOOL]}, {"template_args": {"mood": "no"}}])
def test_without_a_template_nothing_reads_its_settings(settings: dict[str, Any]) -> None:
    error = refused(lambda: renderer(None).render(task(user("Hi"), **settings)))
    assert error.param == next(iter(settings))


@pytest.mark.parametrize("template", [None, CHATML])
def test_contents_that_are_joined_are_continued(template: str | None) -> None:
    """As clients of the Messages API mean it whose last message is the assistant's."""
    messages = [*user("Count."), {"role": "assistant", "content": "3, 4"}]
    own = {"use_chat_template": template is None}
    plain = renderer(template).render(task(messages, **own))
    continued = task(messages, template_args={"continue_final_message": True}, **own)
    assert renderer(template).render(continued) == plain
    other = task(messages, template_args={"continue_final_message": False}, **own)
    assert refused(lambda: renderer(template).render(other)).param == "template_args"


@pytest.mark.parametrize(
    "name",
    ["tokenize", "chat_template", "tools", "truncation", "max_length", "return_tensors",
     "conversation", "messages", "conversations", "self", "tokenizer_kwargs"],
)  # fmt: skip
def test_the_engines_own_arguments_are_refused_by_name(name: str) -> None:
    asked = task(user("Hi"), template_args={name: True})
    error = refused(lambda: renderer(CHATML).render(asked))
    assert error.param == f"template_args.{name}"
    assert name in str(error)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.nothing.here }}",
        "{{ 1 // 0 }}",
        "{{ messages | first | int / 0 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% if %}",
        "{{ messages | tojson(indent='x', foo=1) }}",
    ],
)
def test_whatever_a_template_raises_is_the_tasks_error(template: str) -> None:
    error = refused(lambda: renderer(template).render(task(user("Hi"))))
    assert error.param == "messages"


def test_a_templates_own_error_is_reported() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    error = refused(lambda: renderer(template).render(task(user("Hi"))))
    assert "roles must alternate" in str(error)


def test_an_empty_prompt_is_refused() -> None:
    assert refused(lambda: renderer(None).render(task(user("")))).param == "messages"


class _NoTokenizing(PreTrainedTokenizerFast):
    """A tokenizer that renders and knows its vocabulary; it must not be asked for tokens."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        raise AssertionError("tokenized")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x" * 8 * 512},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": "x" * 8 * 512}}}],
        },
    ],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(message: dict[str, Any]) -> None:
    made = byte_tokenizer()
    longest = max(map(len, made.get_vocab()))
    made_without: Any = _NoTokenizing
    tokenizer = made_without(tokenizer_object=made.backend_tokenizer, eos_token=made.eos_token)
    context = 8 * 512 // longest
    loaded = LoadedModel(None, tokenizer, CHATML, None, None, context, torch.device("cpu"), None)
    error = refused(lambda: PromptRenderer(loaded).render(task([message])))
    assert error.param == "messages"
    assert str(context) in str(error)


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"a": NaN}', '{"a": 1, "a": 2}', "[1]"])
def test_arguments_that_are_no_plain_object_stay_text(text: str) -> None:
    written = (
        "{{ c.function.name }} {% if c.function.arguments is string %}a string"
        "{% else %}{{ c.function.arguments | tojson }}{% endif %}"
    )
    template = CALLS.replace("CALL", written)
    call = {"type": "function", "function": {"name": "f", "arguments": text}}
    render = renderer(template).render
    prompt = render(task([*user("hi"), {"role": "assistant", "tool_calls": [call]}]))
    assert byte_tokenizer().decode(list(prompt.token_ids)) == "hi<f a string>"


@pytest.mark.parametrize("value", [1, "yes", [True], {"a": 1}])
def test_template_switches_are_booleans(value: Any) -> None:
    asked = task(user("hi"), template_args={"continue_final_message": value})
    error = refused(lambda: renderer(CHAT_TEMPLATE).render(asked))
    assert error.param == "template_args.continue_final_message"


def test_images_stand_where_their_blocks_stand() -> None:
    inputs = (
        PreparedImage({}, f"<img>{IMAGE * 2}</img>", b"1", 2),
        PreparedImage({}, f"<img>{IMAGE}</img>", b"2", 1),
    )
    image = {"type": "image", "base64": PNG}
    blocks = [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}, image]
    prompt = renderer(CHAT_TEMPLATE, images=True).render(task(user(blocks)), inputs)
    expected = f"[user]a<img>{IMAGE * 2}</img>b<img>{IMAGE}</img>[assistant]"
    assert list(prompt.token_ids) == byte_tokenizer()(expected)["input_ids"]
    assert prompt.images is inputs
