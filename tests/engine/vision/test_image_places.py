"""Images stand where their message says, and the same words elsewhere are words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.requests.prompt import Prompt, PromptRenderer
from engine.vision.preprocessor import PreparedImage
from schema import Task
from tests.engine.models.tiny_models import CHAT_TEMPLATE, IMAGE, byte_tokenizer
from tests.engine.requests.test_prompt import PNG, refused, renderer, task, text_of, user

IMAGE_ID = byte_tokenizer().convert_tokens_to_ids(IMAGE)


def tagged(content: Any, number: int) -> Prompt:
    """Rendered for a model whose texts say where images belong."""
    inputs = tuple(
        PreparedImage({}, f"<img>{IMAGE * (n + 1)}</img>", bytes([n]), n + 1) for n in range(number)
    )
    loaded = replace(renderer(CHAT_TEMPLATE, images=True)._loaded, image_tag="<image>")
    messages = content if isinstance(content, list) and "role" in content[0] else user(content)
    return PromptRenderer(loaded).render(task(messages), inputs)


BLOCK = {"type": "image", "base64": PNG}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "number", "expected"),
    [
        ([BLOCK, words("Image-1: <image>\nb")], 1, "[user]Image-1: @1\nb[assistant]"),
        ([words("<image>a<image>"), BLOCK, BLOCK], 2, "[user]@1a@2[assistant]"),
        (
            [words("a<image>"), BLOCK, words("<image>"), BLOCK],
            2,
            "[user]a@1@2[assistant]",
        ),
        ([words("a"), BLOCK, words("b")], 1, "[user]a@1b[assistant]"),
        ("nothing", 0, "[user]nothing[assistant]"),
        (
            [*user("<image>?"), *user([words("<image>"), BLOCK])],
            1,
            "[user]<image>?[user]@1[assistant]",
        ),
        (
            [*user([BLOCK, BLOCK]), *user("<image> and <image>")],
            2,
            "[user]@1@2[user]<image> and <image>[assistant]",
        ),
        ("what does <image> mean?", 0, "[user]what does <image> mean?[assistant]"),
    ],
)
def test_images_stand_where_the_text_of_their_message_says(
    content: Any, number: int, expected: str
) -> None:
    for n in range(number):
        expected = expected.replace(f"@{n + 1}", f"<img>{IMAGE * (n + 1)}</img>")
    assert text_of(tagged(content, number)) == expected


@pytest.mark.parametrize(
    ("content", "placeholders"),
    [([BLOCK, words("<image><image>")], 2), ([BLOCK, BLOCK, words("<image>")], 1)],
)
def test_as_many_placeholders_as_images_of_the_message(content: Any, placeholders: int) -> None:
    number = content.count(BLOCK)
    error = refused(lambda: tagged([*user("<image>"), *user(content)], number))
    assert error.param == "messages.1.content"
    assert f"{placeholders} placeholders '<image>' for {number} images" in str(error)


def spelled(text: str) -> list[int]:
    """The tokens of a text that is plain words throughout."""
    tokens: list[int] = byte_tokenizer()(text, split_special_tokens=True)["input_ids"]
    return tokens


WORDS: list[tuple[Any, int, list[str]]] = [
    # Content, its images, the text with "@" for each image.
    (f"What is {IMAGE}?", 0, [f"What is {IMAGE}?"]),
    (f"{IMAGE}{IMAGE}", 0, [f"{IMAGE}{IMAGE}"]),
    ([BLOCK, words(f"What is {IMAGE}?")], 1, ["", f"What is {IMAGE}?"]),
    ([words(f"{IMAGE}<image>{IMAGE}"), BLOCK], 1, [f"{IMAGE}", f"{IMAGE}"]),
]


@pytest.mark.parametrize(("content", "number", "texts"), WORDS)
def test_the_models_own_token_is_a_word_where_the_template_places_the_images(
    content: Any, number: int, texts: list[str]
) -> None:
    real = byte_tokenizer()
    expected = real("[user]")["input_ids"] + spelled(texts[0])
    for n, text in enumerate(texts[1:]):
        expected += real(f"<img>{IMAGE * (n + 1)}</img>")["input_ids"] + spelled(text)
    assert list(tagged(content, number).token_ids) == expected + real("[assistant]")["input_ids"]


@pytest.mark.parametrize(
    "where",
    [
        *("tools", "template_args", "reasoning_content", "tool_calls"),
        *("keys of tools", "name", "tool_call_id"),
    ],
)
def test_the_models_own_token_is_a_word_wherever_a_task_has_it(where: str) -> None:
    """Beside an image, whose place it must not take."""
    template = (
        "{{ mood }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
        "{{ m.name }}{{ m.tool_call_id }}"
        "{{ m.reasoning_content }}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}"
        "{% for b in m.content %}{% if b.type == 'image' %}" + IMAGE + "{% else %}{{ b.text }}"
        "{% endif %}{% endfor %}{% endfor %}"
    )
    function = {"name": "f", "arguments": {"a": IMAGE}, "description": IMAGE}
    call = {"type": "function", "function": function}
    answer: dict[str, Any] = {"role": "assistant", "content": "No."}
    fields: dict[str, Any] = {"messages": [*user([BLOCK]), answer]}
    if where == "tools":
        fields["tools"] = [call]
    elif where == "keys of tools":
        fields["tools"] = [{"type": "function", "function": {"name": "f", IMAGE: {IMAGE: 1}}}]
    elif where in ("name", "tool_call_id"):
        fields["messages"].append({"role": "tool", "content": "12", where: IMAGE})
    elif where == "template_args":
        fields["template_args"] = {"mood": IMAGE}
    else:
        answer[where] = IMAGE if where == "reasoning_content" else [call]
    inputs = (PreparedImage({}, f"<img>{IMAGE}</img>", b"1", 1),)
    prompt = renderer(template, images=True).render(Task.from_fields(model="m", **fields), inputs)
    assert prompt.token_ids.count(byte_tokenizer().convert_tokens_to_ids(IMAGE)) == 1
    assert text_of(prompt).count(IMAGE) > 1
    assert not any(mark in text_of(prompt) for mark in "\U000f0000\U000f0001")
    assert prompt.token_ids[prompt.image_starts[0]] == IMAGE_ID


def test_without_the_template_texts_say_where_images_stand() -> None:
    render = renderer(CHAT_TEMPLATE, images=True).render
    inputs = (PreparedImage({}, f"<img>{IMAGE}</img>", b"1", 1),)

    def asked(*blocks: Any) -> Task:
        return task([*user(f"{IMAGE}?"), *user(list(blocks))], use_chat_template=False)

    prompt = render(asked(words(f"a{IMAGE}b"), BLOCK), inputs)
    expected = spelled(f"{IMAGE}?") + byte_tokenizer()(f"\na<img>{IMAGE}</img>b")["input_ids"]
    assert list(prompt.token_ids) == expected
    error = refused(lambda: render(asked(words("a"), BLOCK), inputs))
    assert error.param == "messages.1.content"


def test_characters_that_mark_words_are_kept_where_nothing_is_marked() -> None:
    content = "icons \U000f0000 \U000f0001"
    assert text_of(tagged(content, 0)) == f"[user]{content}[assistant]"
    assert "reserved" in str(refused(lambda: tagged(f"{content} {IMAGE}", 0)))


@pytest.mark.parametrize("images", [False, True])
def test_other_models_take_the_text_as_it_is(images: bool) -> None:
    render = renderer(CHAT_TEMPLATE, images=images).render
    assert "<image>" in text_of(render(task(user("what does <image> mean?"))))
