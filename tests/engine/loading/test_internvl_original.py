"""Original InternVL repositories give what the same weights give under transformers' names."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    InternVLForConditionalGeneration,
    set_seed,
)

from engine import Engine, EngineConfig
from engine.loading.loaded_model import LoadedModel
from engine.loading.loader import load_model
from engine.requests.prompt import PromptRenderer
from engine.vision.preprocessor import ImageInputs, ImagePreprocessor, image_params
from schema import Task
from tests.engine.conftest import TinyModel
from tests.engine.models.tiny_internvl import (
    DENSE,
    LANGUAGES,
    SYSTEM,
    TILE,
    Tower,
    save_original,
)
from tests.engine.models.tiny_internvl_tokenizers import Language

Original = Callable[[Language, Tower], tuple[Path, Any]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """The directory of a tiny original checkpoint, and the native model it was made from."""
    root = tmp_path_factory.mktemp("original")
    models: dict[tuple[Language, Tower], Any] = {}

    def get(language: Language, tower: Tower) -> tuple[Path, Any]:
        directory = root / f"{language}-{tower}"
        if (language, tower) not in models:
            models[language, tower] = save_original(directory, language, tower)
        return directory, models[language, tower]

    return get


@pytest.fixture(scope="module")
def engines(original: Original) -> Iterator[Callable[[Language, Tower], Engine]]:
    made: dict[Any, Engine] = {}

    def get(language: Language, tower: Tower) -> Engine:
        if (language, tower) not in made:
            directory, _ = original(language, tower)
            made[language, tower] = Engine(
                EngineConfig(model=str(directory), dtype="float32", threads=1, prefill_chunk=16)
            )
        return made[language, tower]

    yield get
    for engine in made.values():
        engine.close()


def load(directory: Path, **options: Any) -> LoadedModel:
    settings = {"dtype": "float32", "device": "cpu"} | options
    return load_model(EngineConfig(model=str(directory), **settings))


def drawing(seed: int, size: tuple[int, int] = (3 * TILE, TILE)) -> str:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def asked(content: Any, **fields: Any) -> Task:
    return Task.from_fields(model="tiny", messages=[{"role": "user", "content": content}], **fields)


def image(seed: int) -> dict[str, str]:
    return {"type": "image", "base64": drawing(seed)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def prepared(directory: Path, task: Task) -> ImageInputs:
    prepare = ImagePreprocessor(EngineConfig(model=str(directory)))
    return prepare(task.split_images()[1], image_params(task))


@pytest.mark.parametrize("tower", ["300M", "6B"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_logits_are_those_of_the_native_naming(
    language: Language, tower: Tower, original: Original
) -> None:
    """Bit for bit, for text and images; the checkpoint is sharded and has remote code."""
    directory, native = original(language, tower)
    loaded = load(directory)
    assert type(loaded.model.get_decoder()) is type(native.get_decoder())
    token = loaded.image_token_id
    assert token is not None
    assert token == native.config.image_token_id == loaded.model.config.image_token_id
    words = torch.arange(3, 43)[None]
    pixels = torch.randn(2, 3, TILE, TILE, generator=torch.Generator().manual_seed(1))
    with_images = torch.cat([words, torch.full((1, 8), token), words], dim=1)
    with torch.inference_mode():
        for inputs in (
            {"input_ids": words},
            {"input_ids": with_images, "pixel_values": pixels},
        ):
            expected = native(**inputs).logits
            assert torch.equal(loaded.model(**inputs).logits, expected)
            assert expected.std() > 0.1


@pytest.mark.parametrize("language", ["qwen2", "internlm2"])
def test_dtype_auto_is_the_configured_one(language: Language, original: Original) -> None:
    directory, _ = original(language, "300M")
    assert load(directory, dtype="auto").model.dtype == torch.float32
    assert load(directory, dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("language", DENSE)
def test_quantization_on_load(
    bits: Any, language: Language, original: Original, tmp_path: Path
) -> None:
    """As of the native checkpoint: split first, then quantized; towers stay as they are."""
    directory, native = original(language, "6B")
    loaded = load(directory, quantize_bits=bits)
    native.save_pretrained(tmp_path)
    skipped = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    reference = InternVLForConditionalGeneration.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_threshold=0.0,
            llm_int8_skip_modules=skipped,
        ),
    )
    key: Any = loaded.model.get_decoder().layers[0].self_attn.k_proj
    assert key.weight.dtype == (torch.uint8 if bits == 4 else torch.int8)
    words = torch.arange(3, 43)[None]
    with torch.inference_mode():
        logits = loaded.model(input_ids=words).logits
        assert torch.equal(logits, reference(input_ids=words).logits)
        assert not torch.equal(logits, native(input_ids=words).logits)


PROMPT = "Image-1: <image>\nImage-2: <image>\nab abc?"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([text("abc"), image(1)], "abc@1\n"),
        ([image(1), text("abc"), image(2)], "@1\nabc@2\n"),
        ([image(1), image(2), text(PROMPT)], "Image-1: @1\nImage-2: @2\nab abc?"),
        ([text(PROMPT), image(1), image(2)], "Image-1: @1\nImage-2: @2\nab abc?"),
        ([image(1), text("<image>abc")], "@1abc"),
        ("abc", "abc"),
    ],
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_are_written_as_the_original_chat_does(
    language: Language, content: Any, expected: str, original: Original
) -> None:
    directory, _ = original(language, "300M")
    loaded = load(directory)
    task = asked(content)
    inputs = prepared(directory, task)
    prompt = PromptRenderer(loaded).render(task, inputs)
    # Three tiles and a thumbnail of four tokens each.
    imaged = f"<img>{'<IMG_CONTEXT>' * 16}</img>"
    user = expected.replace("@1", imaged).replace("@2", imaged)
    whole = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    if language not in ("qwen3", "qwen3_moe"):  # InternVL 3.5 writes none
        whole = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" + whole
    if language in ("internlm2", "internlm3"):
        whole = "<s>" + whole
    expected_ids = loaded.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert list(prompt.token_ids) == expected_ids
    assert prompt.images == inputs


async def test_an_original_repository_with_gpt_oss(original: Original) -> None:
    """Its conversations have turns of another form."""
    directory, native = original("gpt_oss", "300M")
    loaded = load(directory)
    assert type(loaded.model.get_decoder()) is type(native.get_decoder())
    words = torch.arange(3, 43)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(input_ids=words).logits, native(input_ids=words).logits)
    task = Task.from_fields(
        model="tiny",
        messages=[
            {"role": "user", "content": [image(1), text("Hi")]},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "abc"},
        ],
    )
    prompt = PromptRenderer(loaded).render(task, prepared(directory, task))
    written = str(loaded.tokenizer.decode(list(prompt.token_ids)))
    assert written.startswith("<|start|>system<|message|>You are InternVL, a large language model")
    imaged = f"<img>{'<IMG_CONTEXT>' * 16}</img>"
    assert written.endswith(
        f"<|end|><|start|>user<|message|>{imaged}\nHi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello<|end|>"
        "<|start|>user<|message|>abc<|end|><|start|>assistant"
    )
    end = loaded.tokenizer.convert_tokens_to_ids("<|return|>")
    assert loaded.model.generation_config.eos_token_id == end


def test_a_system_message_of_the_task_replaces_the_models_own(original: Original) -> None:
    directory, _ = original("qwen2", "300M")
    loaded = load(directory)
    task = Task.from_fields(
        model="tiny",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "abc"},
        ],
    )
    prompt = PromptRenderer(loaded).render(task)
    assert loaded.tokenizer.decode(list(prompt.token_ids)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nabc<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_are_described_in_the_system_message(original: Original) -> None:
    """The conversation template has no format for them."""
    loaded = load(original("qwen2", "300M")[0])
    renderer = PromptRenderer(loaded)
    assert renderer.card()["tools"] == "default"
    prompt = renderer.render(asked("Hi", tools=[{"type": "function", "function": {"name": "f"}}]))
    text = str(loaded.tokenizer.decode(list(prompt.token_ids)))
    assert text.startswith("<|im_start|>system\n# Tools")
    assert '{"type": "function", "function": {"name": "f"}}' in text
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("language", "tower"),
    [("qwen2", "300M"), ("qwen3_moe", "300M"), ("internlm3", "300M"), ("internlm2", "6B")],
)
async def test_the_engine_answers_as_generate_does(
    number: int,
    language: Language,
    tower: Tower,
    original: Original,
    engines: Callable[[Language, Tower], Engine],
) -> None:
    directory, native = original(language, tower)
    engine = engines(language, tower)
    assert engine.card()["continuous_batching"]
    task = asked(
        [image(n) for n in range(number)] + [text("ab abc lo")],
        seed=7,
        generation_config={
            "max_new_tokens": 12,
            "do_sample": True,
            "top_k": 3,
            "num_return_sequences": 2,
        },
    )
    inputs = prepared(directory, task)
    response = await engine.run(task, inputs)
    loaded = load(directory)
    prompt = PromptRenderer(loaded).render(task, inputs)
    set_seed(7)
    output = native.generate(
        input_ids=torch.tensor([prompt.token_ids]),
        pixel_values=torch.from_numpy(np.concatenate([i.arrays["pixel_values"] for i in inputs])),
        generation_config=GenerationConfig(
            max_new_tokens=12,
            do_sample=True,
            top_k=3,
            num_return_sequences=2,
            eos_token_id=loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=loaded.tokenizer.pad_token_id,
        ),
    )
    answers = loaded.tokenizer.batch_decode(
        output[:, len(prompt.token_ids) :],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    assert [choice["message"]["content"] for choice in response["choices"]] == answers
    assert len(set(answers)) == 2


async def test_a_repository_of_transformers_layout_as_published(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """The ``-hf`` ones: dynamic scaling, tied by omission, an image processor of torchvision's."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("internvl"), directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    text_config = config["text_config"]
    text_config["rope_theta"] = text_config.pop("rope_parameters")["rope_theta"]
    text_config["rope_scaling"] = {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}
    path.write_text(json.dumps(config))
    path = directory / "preprocessor_config.json"
    changes = {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    answers = []
    for model in (directory, tiny_model("internvl")):
        engine = Engine(EngineConfig(model=str(model), dtype="float32", threads=1))
        try:
            assert engine.card()["continuous_batching"]
            task = asked(
                [image(1), image(2), text("Image-1: <image>, Image-2: <image>")],
                generation_config={"max_new_tokens": 8},
            )
            response = await engine.run(task, prepared(model, task))
        finally:
            engine.close()
        answers.append(response["choices"][0]["message"]["content"])
    assert answers[0] == answers[1]
    assert answers[0]
