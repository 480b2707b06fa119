"""Plain transformers for vision-language models: what the engine's answers are compared with."""

from __future__ import annotations

import base64
import io
import json
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    GenerationMixin,
    ProcessorMixin,
    set_seed,
)

from engine.loading.families.processors import processor_class
from engine.loading.families.torch_images import image_processor_class
from schema import Task
from tests.engine.sampling.test_generate_oracle import drawing

IMAGES = {
    name: drawing(*size, seed=seed)
    for seed, (name, size) in enumerate(
        {"wide": (70, 30), "tall": (20, 45), "square": (40, 40)}.items()
    )
}


def image(name: str) -> dict[str, str]:
    return {"type": "image", "base64": IMAGES[name]}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


Messages = list[dict[str, Any]]


def user(*blocks: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


CONVERSATIONS: dict[str, Messages] = {
    "text only": [user(text("Hi, there is no picture here."))],
    "one image": [user(image("wide"), text("What is it?"))],
    "two images": [user(text("Look: "), image("tall"), text(" and "), image("wide"), text("!"))],
    "two turns": [
        {"role": "system", "content": "Be brief."},
        user(image("square"), text("What?")),
        {"role": "assistant", "content": [text("A square.")]},
        user(text("And this, next to that one again?"), image("tall"), image("square")),
    ],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
}


def own_processor(directory: Path) -> Any:
    """The family's own processor, but for its parts for videos (torchvision) and sounds."""
    settings = json.loads((directory / "processor_config.json").read_text())
    # Of some families only classes that import torchvision exist: with the engine's functions in
    # its place, whose pixels are compared with torchvision's in `test_torch_images`.
    own = processor_class(settings.pop("processor_class"))
    model_type = json.loads((directory / "config.json").read_text())["model_type"]
    images = image_processor_class(model_type) or transformers.AutoImageProcessor
    if own.__name__ == "SmolVLMProcessor":
        # A package for the words in prompts of videos, which is not installed.
        module: Any = import_module("transformers.models.smolvlm.processing_smolvlm")
        module.num2words = str

    class WithoutParts(own):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, name: str, part: Any) -> Any:
            return part and super().check_argument_for_proper_class(name, part)

    parts = {"video_processor", "feature_extractor"} & {*own.__init__.__code__.co_varnames}
    return WithoutParts(
        image_processor=images.from_pretrained(directory),
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        **settings,
        **dict.fromkeys(parts),
    )


def decoded(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


class Oracle:
    """Plain transformers."""

    def __init__(self, directory: Path) -> None:
        self.processor = own_processor(directory)
        model: Any = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
        self.model = model
        if type(model).__name__.startswith("Glm"):
            # Its own method repeats each image for the answers, where the general one, which was
            # mended, repeats all images: with several of both, its answers are about mixed images.
            general: Any = GenerationMixin._expand_multimodal_outputs
            model._expand_multimodal_outputs = MethodType(general, model)

    def inputs(self, messages: Messages) -> dict[str, Any]:
        """All images at once, by transformers' recommended way."""
        conversation = [
            {
                "role": message["role"],
                "content": [text(message["content"])]
                if isinstance(message["content"], str)
                else [
                    {"type": "image", "image": decoded(block["base64"])}
                    if block["type"] == "image"
                    else block
                    for block in message["content"]
                ],
            }
            for message in messages
        ]
        # Not SmolVLM's own method, which asks its video processor for a number of frames.
        render: Any = partial(
            ProcessorMixin.apply_chat_template,
            self.processor,
            conversation,
            chat_template=self.processor.tokenizer.chat_template,
            add_generation_prompt=True,
        )
        if type(self.processor).__mro__[1].__name__ == "GotOcr2Processor":
            # It takes nested images for pages.
            blocks = [block for message in conversation for block in message["content"]]
            images = [block["image"] for block in blocks if block["type"] == "image"]
            return dict(self.processor(images, [render(tokenize=False)], return_tensors="pt"))
        return dict(render(tokenize=True, return_dict=True, return_tensors="pt"))

    def answers(self, messages: Messages, settings: dict[str, Any]) -> list[str]:
        inputs = self.inputs(messages)
        set_seed(11)
        with torch.no_grad():
            output = self.model.generate(**inputs, **({"max_new_tokens": 16} | settings))
        start = inputs["input_ids"].shape[1]
        decode = self.processor.tokenizer.decode
        return [decode(row[start:], skip_special_tokens=True) for row in output]


@cache
def oracle(directory: Path) -> Oracle:
    return Oracle(directory)


def task(messages: Messages, settings: dict[str, Any] | None = None) -> Task:
    config = {"max_new_tokens": 16} | (settings or {})
    return Task.from_fields(model="tiny", messages=messages, generation_config=config, seed=11)


def texts(response: Any) -> list[str]:
    return [choice["message"]["content"] for choice in response["choices"]]
