"""Images stand where the text says, for models whose prompts are written in this way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.requests.prompt import Prompt, PromptRenderer
from engine.vision.preprocessor import PreparedImage
from tests.engine.models.tiny_models import CHAT_TEMPLATE, IMAGE
from tests.engine.requests.test_prompt import PNG, refused, renderer, task, text_of, user


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
            [*user([BLOCK, BLOCK]), *user("<image> and <image>")],
            2,
            "[user][user]@1 and @2[assistant]",
        ),
    ],
)
def test_images_stand_where_the_text_says(content: Any, number: int, expected: str) -> None:
    for n in range(number):
        expected = expected.replace(f"@{n + 1}", f"<img>{IMAGE * (n + 1)}</img>")
    assert text_of(tagged(content, number)) == expected


@pytest.mark.parametrize(
    ("content", "number", "placeholders"),
    [
        ([BLOCK, words("<image><image>")], 1, 2),
        ([BLOCK, BLOCK, words("<image>")], 2, 1),
        ("what does <image> mean?", 0, 1),
    ],
)
def test_as_many_placeholders_as_images(content: Any, number: int, placeholders: int) -> None:
    error = refused(lambda: tagged(content, number))
    assert error.param == "messages"
    assert f"{placeholders} placeholders '<image>' for {number} images" in str(error)


def test_the_models_own_token_is_no_placeholder() -> None:
    error = refused(lambda: tagged([BLOCK, words(f"<image> {IMAGE}")], 1))
    assert IMAGE in str(error)


@pytest.mark.parametrize("images", [False, True])
def test_other_models_take_the_text_as_it_is(images: bool) -> None:
    render = renderer(CHAT_TEMPLATE, images=images).render
    assert "<image>" in text_of(render(task(user("what does <image> mean?"))))
