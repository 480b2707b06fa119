"""Every vision-language family writes what plain transformers writes, token for token, in fp32.

The oracle is the family's own processor, given all images of a task at once, and `generate`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, XGLMConfig

from engine import Engine, EngineConfig
from engine.loading.loader import load_model
from engine.loading.model_files import load_processor
from engine.vision.preprocessor import ImagePreprocessor
from schema import Task
from schema.errors import ModelInvalid, TaskArgsInvalid
from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.models.tiny_vision_models import VISION_KINDS, VisionKind
from tests.engine.sampling.test_generate_oracle import drawing
from tests.engine.vision.vision_oracle import (
    CONVERSATIONS,
    SETTINGS,
    Oracle,
    image,
    oracle,
    task,
    text,
    texts,
    user,
)


def small_chunks(kind: VisionKind, tiny_engine: TinyEngine) -> Engine:
    """An engine whose chunks are shorter than an image's tokens."""
    return tiny_engine(kind, prefill_chunk=8, page_size=8)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", VISION_KINDS)
def test_alone(
    kind: VisionKind,
    conversation: str,
    settings: str,
    tiny_model: TinyModel,
    tiny_engine: TinyEngine,
) -> None:
    messages = CONVERSATIONS[conversation]
    engine = small_chunks(kind, tiny_engine)
    assert engine.card()["continuous_batching"]
    response = engine.run_blocking(task(messages, SETTINGS[settings]))
    own = oracle(tiny_model(kind))
    assert response["usage"]["prompt_tokens"] == own.inputs(messages)["input_ids"].shape[1]
    assert texts(response) == own.answers(messages, SETTINGS[settings])


@pytest.mark.parametrize("kind", VISION_KINDS)
async def test_under_load(kind: VisionKind, tiny_model: TinyModel, tiny_engine: TinyEngine) -> None:
    """All tasks at once, with chunks of another size; each answer as alone."""
    engine = tiny_engine(kind)
    own = oracle(tiny_model(kind))
    pairs = [(m, s) for m in CONVERSATIONS.values() for s in SETTINGS.values()]
    responses = await asyncio.gather(*(engine.run(task(*pair)) for pair in pairs * 2))
    want = [own.answers(*pair) for pair in pairs]
    assert [texts(response) for response in responses] == want * 2


@pytest.mark.parametrize("kind", VISION_KINDS)
async def test_bfloat16_gives_the_same_bytes_alone_and_under_load(
    kind: VisionKind, tiny_engine: TinyEngine
) -> None:
    """Where ties and roundings are frequent, images are new or known, prefixes too."""
    engine = tiny_engine(kind, dtype="bfloat16", image_cache_bytes=0)
    asked = [task(m, {"do_sample": True}) for m in CONVERSATIONS.values()]
    alone = [engine.run_blocking(one) for one in asked]
    fresh = Engine(engine.config.replace(image_cache_bytes=2**20))
    try:
        for _ in range(2):
            assert await asyncio.gather(*(fresh.run(one) for one in asked * 2)) == alone * 2
    finally:
        fresh.close()


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_an_image_is_encoded_once(kind: VisionKind, tiny_engine: TinyEngine) -> None:
    """An image whose tokens are in a known prefix is not even looked up."""
    config = small_chunks(kind, tiny_engine).config
    messages = CONVERSATIONS["one image"]
    longer = [*messages, {"role": "assistant", "content": "Hm."}, user(text("A longer question?"))]
    asked = [task(messages), task([user(text("Now: "), *messages[0]["content"])]), task(longer)]
    engine, plain = Engine(config), Engine(config.replace(image_cache_bytes=0))
    try:
        assert [engine.run_blocking(one) for one in asked] == [
            plain.run_blocking(one) for one in asked
        ]
        counts = engine.stats()
        assert counts["images_encoded"] == 1
        # A model that prefills images in one piece keeps no prefix beyond an image.
        whole = kind == "gemma3_vision"
        assert counts["images_reused"] == (2 if whole else 1)
        assert plain.stats()["images_encoded"] == (3 if whole else 2)
        assert plain.stats()["images_reused"] == 0
    finally:
        engine.close()
        plain.close()


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_the_same_tokens_under_another_image(
    kind: VisionKind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """The prompts differ in the pixels only."""
    engine = small_chunks(kind, tiny_engine)
    answers = []
    for seed in (50, 51, 50):
        block = {"type": "image", "base64": drawing(40, 40, seed=seed)}
        messages = [user(text("A long beginning, the same for both."), block, text("What is it?"))]
        response = engine.run_blocking(task(messages))
        assert texts(response) == oracle(tiny_model(kind)).answers(messages, {})
        answers.append(texts(response))
    assert answers[0] == answers[2] != answers[1]


def token_texts(kind: VisionKind, tiny_model: TinyModel) -> list[str]:
    """The tokens of images, and of videos, which a text may be about."""
    processor = oracle(tiny_model(kind)).processor
    names = {
        processor.image_token,
        *processor.tokenizer.convert_ids_to_tokens(processor.image_token_ids),
    }
    return sorted(names | {getattr(processor, "video_token", None) or processor.image_token})


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_image_tokens_in_a_text_are_words(
    kind: VisionKind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """In messages with images and without: as if the words had other letters, in their bytes."""
    engine = small_chunks(kind, tiny_engine)
    own = oracle(tiny_model(kind))
    for token in token_texts(kind, tiny_model):
        other = "~" * len(token)

        def asked(word: str) -> list[dict[str, Any]]:
            return [
                user(text(f"What is {word}?")),
                {"role": "assistant", "content": [text(f"A word: {word}.")]},
                user(text("Is it "), image("square"), text(f"or {word}{word}?")),
            ]

        inputs = own.inputs(asked(other))
        ids = inputs["input_ids"][0].tolist()
        tilde = own.processor.tokenizer.convert_tokens_to_ids("~")
        letters = own.processor.tokenizer.convert_tokens_to_ids(list(token))
        places = [place for place, each in enumerate(ids) if each == tilde]
        assert len(places) == 4 * len(token)
        for number, place in enumerate(places):
            ids[place] = letters[number % len(token)]
        inputs["input_ids"] = torch.tensor([ids])
        with torch.no_grad():
            output = own.model.generate(**inputs, max_new_tokens=16)
        response = engine.run_blocking(task(asked(token)))
        assert response["usage"]["prompt_tokens"] == len(ids)
        decode = own.processor.tokenizer.decode
        assert texts(response) == [decode(output[0][len(ids) :], skip_special_tokens=True)]


@pytest.mark.parametrize("kind", VISION_KINDS)
async def test_words_move_no_image_of_another_message(
    kind: VisionKind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """The tag of another family, and what only looks like this model's token."""
    messages = [
        user(image("tall"), text("Look.")),
        user(text("The tag <IMG_CONTEXT>, <|image_pad> and <image_>?")),
    ]
    response = small_chunks(kind, tiny_engine).run_blocking(task(messages))
    assert texts(response) == oracle(tiny_model(kind)).answers(messages, {})


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_two_images_side_by_side(kind: VisionKind, tiny_engine: TinyEngine) -> None:
    """Without the template a text says where they stand. Qwen's positions need a token between."""
    engine = small_chunks(kind, tiny_engine)
    token = engine._loaded.image_token

    def beside(between: str) -> Task:
        blocks = [image("square"), image("tall"), text(f"{token}{between}{token}What?")]
        return Task.from_fields(
            model="tiny",
            messages=[user(*blocks)],
            use_chat_template=False,
            generation_config={"max_new_tokens": 4},
        )

    assert texts(engine.run_blocking(beside(" and ")))
    if kind.startswith("qwen"):
        with pytest.raises(TaskArgsInvalid, match="nothing between them") as caught:
            engine.run_blocking(beside(""))
        assert caught.value.param == "messages"
    else:
        assert texts(engine.run_blocking(beside("")))


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (33, 31)])
@pytest.mark.parametrize("kind", VISION_KINDS)
def test_odd_shapes(
    kind: VisionKind, size: tuple[int, int], tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    messages = [user({"type": "image", "base64": drawing(*size, seed=3)}, text("?"))]
    response = small_chunks(kind, tiny_engine).run_blocking(task(messages))
    assert texts(response) == oracle(tiny_model(kind)).answers(messages, {})


def test_a_shape_that_the_model_refuses(tiny_engine: TinyEngine) -> None:
    messages = [user({"type": "image", "base64": drawing(2, 500, seed=3)}, text("?"))]
    with pytest.raises(TaskArgsInvalid, match="aspect ratio") as caught:
        small_chunks("qwen2_vl", tiny_engine).run_blocking(task(messages))
    assert caught.value.param == "messages.0.content.0.base64"


def test_alone_on_the_device(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A family's model that cannot be batched: its attention is not computed in a batch."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llava"), directory)
    text: Any = LlavaConfig.from_pretrained(directory).text_config
    unbatched = XGLMConfig(
        vocab_size=text.vocab_size,
        d_model=text.hidden_size,
        ffn_dim=64,
        num_layers=2,
        attention_heads=4,
        init_std=0.2,
        eos_token_id=text.eos_token_id,
        bos_token_id=text.bos_token_id,
    )
    config = LlavaConfig.from_pretrained(directory, text_config=unbatched)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(directory)
    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))
    try:
        assert not engine.card()["continuous_batching"]
        for messages in CONVERSATIONS.values():
            response = engine.run_blocking(task(messages, SETTINGS["sample"]))
            assert texts(response) == Oracle(directory).answers(messages, SETTINGS["sample"])
    finally:
        engine.close()


@pytest.mark.parametrize(("kind", "number"), [("llava_onevision", 2), ("llava", 1)])
def test_an_image_that_its_processor_would_blow_up(
    kind: VisionKind, number: int, tiny_model: TinyModel
) -> None:
    """A few hundred bytes; padded to a square, or with its shorter side scaled up, gigabytes."""
    data = drawing(1, 80_000, seed=3)
    prepare = ImagePreprocessor(EngineConfig(model=str(tiny_model(kind))))
    with pytest.raises(TaskArgsInvalid, match="pixels") as caught:
        prepare([data] * number, ["a"] * number)
    assert caught.value.param == "a"


NONSENSE: dict[str, dict[str, Any]] = {
    "no patches": {"patch_size": 0},
    "another family's": {"processor_class": "SmolVLMProcessor"},
    "one colour": {"image_mean": [0.5]},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_processor_that_does_not_work_is_refused_at_load(
    name: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("qwen2_vl"), directory)
    for path in directory.glob("*processor_config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | NONSENSE[name]))
    for load in (load_model, load_processor):
        with pytest.raises(ModelInvalid):
            load(EngineConfig(model=str(directory), dtype="float32"))


def test_a_quantization_whose_forward_fails_is_refused_at_load(tiny_model: TinyModel) -> None:
    """bitsandbytes' NF4 on CPU takes inputs of multiples of 64 features."""
    config = EngineConfig(model=str(tiny_model("qwen2_vl")), dtype="bfloat16", quantize_bits=4)
    with pytest.raises(ModelInvalid, match="quantize_bits 4"):
        Engine(config)
