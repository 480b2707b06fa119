"""The processors of vision-language models, without the video processors that need torchvision."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedTokenizerBase

from engine.config import EngineConfig
from engine.loading.families.family import PROCESSORS, family_of, family_of_processor
from engine.loading.families.torch_images import class_of, image_processor_class
from schema.errors import ModelInvalid

TRIAL_SIZE = (64, 48)
"""Of the image that every processor is tried with."""
PIXELS = "pixel_values"
"""What processors call the pixels of an image."""

_OTHER_PARTS = ("video_processor", "feature_extractor")
_PARTS = ("image_processor", "tokenizer", *_OTHER_PARTS)


@dataclass(frozen=True)
class ProcessedImage:
    """An image as a processor prepares it.

    Attributes:
        arrays: keyword arguments of ``get_image_features``.
        placeholder: the text that stands for the image in the prompt.
        num_tokens: the tokens of the placeholder that take a feature each.
    """

    arrays: dict[str, np.ndarray]
    placeholder: str
    num_tokens: int


class ImageProcessor:
    """One model's processor, as the engine uses it.

    Attributes:
        tokenizer: the model's.
        chat_template: the template of the repository, if it comes with the processor.
        image_token: the text that a template writes for an image.
        feature_token_id: the token whose embeddings are replaced by an image's features.
        typed_token_ids: the tokens that have the type of images: this one, and of some families
            those around and between them.
    """

    def __init__(self, processor: Any, feature_token_id: int) -> None:
        self._processor = processor
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.chat_template: str | dict[str, str] | None = processor.chat_template
        # What a template writes, where that is not the token that its features take.
        placeholder = getattr(processor, "image_placeholder_token", None)
        self.image_token: str = placeholder or processor.image_token
        self.feature_token_id = feature_token_id
        typed = {each for each in processor.image_token_ids if each is not None}
        self.typed_token_ids = frozenset(typed | {feature_token_id})
        self._feature_token = str(self.tokenizer.convert_ids_to_tokens(feature_token_id))
        self._array_names = sorted(processor.image_processor.model_input_names)

    @property
    def depends_on_image_count(self) -> bool:
        """Whether an image among others is prepared in another way than a single one.

        LLaVA-OneVision cuts an image into tiles only when it is the only one.
        """
        return "batch_num_images" in self._array_names

    @property
    def most_tokens(self) -> int:
        """The most tokens that one image has, of a processor that bounds them."""
        bound = getattr(self._processor.image_processor, "max_soft_tokens", None)
        return int(bound or self._processor.image_seq_length)

    @property
    def tile_shape(self) -> tuple[int, ...] | None:
        """[colours, height, width] of the tiles that an image becomes.

        None for a processor that makes more of an image than tiles of one size, such as patches
        and their grid.
        """
        arrays = self(Image.new("RGB", TRIAL_SIZE), among_others=False).arrays
        if set(arrays) != {PIXELS} or arrays[PIXELS].ndim != 4:
            return None
        return arrays[PIXELS].shape[1:]

    def pixels(self, width: int, height: int, *, among_others: bool) -> int:
        """The most pixels that an image has while it is prepared.

        LLaVA-OneVision pads one among others to a square; LLaVA scales the shorter side up before
        it cuts. So a narrow image of a few hundred bytes can become gigabytes.
        """
        pixels = width * height
        if among_others and self.depends_on_image_count:
            pixels = max(width, height) ** 2
        size = self._processor.image_processor.size or {}
        edge = size.get("shortest_edge")
        if edge is not None and size.get("longest_edge") is None and min(width, height) > 0:
            pixels = max(pixels, int(edge**2 * max(width, height) / min(width, height)))
        return pixels

    def __call__(self, image: Image.Image, *, among_others: bool) -> ProcessedImage:
        """Prepare one image (RGB) by itself, independently of the others.

        Raises:
            ValueError: the processor refuses it, perhaps for its shape.
        """
        several = among_others and self.depends_on_image_count
        count = 2 if several else 1
        features = self._processor(
            images=[[image] * count] if several else [image],
            text=[self.image_token * count],
            return_text_replacement_offsets=True,
            return_tensors="np",
        )
        arrays = {
            name: np.ascontiguousarray(features[name])
            for name in sorted(features)
            if name in self._array_names or name.startswith(PIXELS)
        }
        if several:  # of two that are the same, one
            arrays = {
                name: array if name == "batch_num_images" else array[:1]
                for name, array in arrays.items()
            }
        placeholder = str(features["text_replacement_offsets"][0][0]["replacement"])
        return ProcessedImage(arrays, placeholder, placeholder.count(self._feature_token))


def load_image_processor(
    config: EngineConfig,
    hf_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    source: dict[str, Any],
) -> ImageProcessor:
    """The model's processor for text and images.

    Args:
        config: the model.
        hf_config: its configuration, of one of the `VISION_MODEL_TYPES` (`family`).
        tokenizer: its tokenizer.
        source: keyword arguments that say which revision of the repository is meant.

    Raises:
        ModelInvalid: the repository asks for another processor than its architecture has.
    """
    family = family_of(hf_config.model_type)
    assert family is not None
    own_class = processor_class(family.processor_of(hf_config.model_type))
    arguments, _ = own_class.get_processor_dict(config.model, **source)
    asked = arguments.get("processor_class") or own_class.__name__
    if family_of_processor(asked) is None:
        raise ModelInvalid(
            f"model {config.name!r} prepares its images with a {asked}, which is not supported "
            f"for models of type {hf_config.model_type!r}; {own_class.__name__} is"
        )
    own_class = processor_class(asked)
    parameters = inspect.signature(own_class.__init__).parameters
    settings = {
        name: getattr(hf_config, name, value) if name == "image_seq_length" else value
        for name, value in arguments.items()
        if name in parameters and name not in _PARTS
    }
    # One backend on all machines: where torchvision is installed, its pixels would be others.
    torch_class = image_processor_class(hf_config.model_type)
    if torch_class is None:
        image_processor = AutoImageProcessor.from_pretrained(config.model, backend="pil", **source)
    else:
        image_processor = torch_class.from_pretrained(config.model, **source)
    processor = image_only_processor(own_class)(image_processor, tokenizer, **settings)
    return ImageProcessor(processor, hf_config.image_token_id)


def processor_class(name: str) -> Any:
    """The class of a processor; transformers has only a stand-in for one that imports torchvision.

    Raises:
        ModelInvalid: there is no such class.
    """
    found = getattr(transformers, name, None)
    if not getattr(found, "is_dummy", False) and found is not None:
        return found
    for model_type, own in PROCESSORS.items():
        if own == name:
            with suppress(ImportError, AttributeError):
                return class_of(model_type, "processing", name)
    raise ModelInvalid(f"transformers has no processor of the class {name!r}")


def image_only_processor(own_class: Any) -> Any:
    """A processor class without its video processor."""
    family = family_of_processor(own_class.__name__)
    if family is not None and family.fix_processor is not None:
        family.fix_processor()

    class ImageOnlyProcessor(own_class):  # type: ignore[misc]  # a class that is known at run time
        def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
            parameters = inspect.signature(own_class.__init__).parameters
            settings |= {part: None for part in _OTHER_PARTS if part in parameters}
            super().__init__(image_processor=image_processor, tokenizer=tokenizer, **settings)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return list(own_class.get_attributes())

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

        def validate_inputs(self, *args: Any, **kwargs: Any) -> None:
            """Nothing: the text is one image's token, without what stands around it in prompts."""

    return ImageOnlyProcessor
