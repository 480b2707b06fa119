"""Encodes images for a model, and puts their features into its forwards.

The families differ in few ways, found out from the model itself (`engine.loading.families.traits`):

* Positions. Qwen's rotary embeddings have three positions a token (time, height, width), and an
  image takes fewer of them than it has tokens (``get_rope_index``).
* Features. An image is encoded to one vector a token, and for Qwen3-VL to further ones that are
  added between the first layers (``deepstack_features``). Ovis 2 also has vectors for the tokens
  around images. Such a model puts the features into their places itself, and so does one whose
  layers read the ids of tokens (`reads_token_ids`).
* Attention. Gemma 3 lets the tokens of one image attend to each other, so that an image has to be
  prefilled in one piece (``whole_image_tokens``).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from engine.loading.families.processors import PIXELS
from engine.loading.families.traits import (
    image_encoder,
    reads_token_ids,
    rope_index,
    rotary_axes,
    sees_whole_prompt,
)
from engine.loading.loaded_model import LoadedModel
from engine.vision.image_cache import ImageCache
from engine.vision.preprocessor import ImageInputs, PreparedImage
from engine.vision.rotary import MRopePositions
from engine.vision.tiles import TileCounts
from schema.errors import TaskExecutionError

_INDICATORS = "visual_indicator_features"


FeatureLayout = tuple[Any, bool]
"""The type in which a model returns features (None without a model), and whether as lists."""


@dataclass(frozen=True)
class Features:
    """Encoded images.

    Attributes:
        tokens: [image tokens, hidden], in place of the embeddings.
        deepstack: [image tokens, hidden] for each of the first layers, added to their output.
        indicators: [kinds of indicator tokens, hidden], the same for every image; None if there are
            no such tokens.
        layout: how the model itself returns them.
        placed_by_model: whether the model puts them into their places, by the ids of tokens. It
            takes a generated image token for an image.
    """

    tokens: torch.Tensor
    deepstack: tuple[torch.Tensor, ...] = ()
    indicators: torch.Tensor | None = None
    layout: FeatureLayout = (None, False)
    placed_by_model: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return sum(part.nbytes for part in (self.tokens, *self.deepstack))

    def part(self, start: int, stop: int) -> Features:
        """The features of some of the image tokens."""
        deepstack = tuple(layer[start:stop] for layer in self.deepstack)
        return replace(self, tokens=self.tokens[start:stop], deepstack=deepstack)

    def copied(self) -> Features:
        """The same in memory of their own, so that they do not keep those of other images."""
        deepstack = tuple(layer.clone() for layer in self.deepstack)
        return replace(self, tokens=self.tokens.clone(), deepstack=deepstack)


def joined(parts: Sequence[Features]) -> Features:
    """The features of several images, in order."""
    layers = zip(*(part.deepstack for part in parts), strict=True)
    return replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        deepstack=tuple(map(torch.cat, layers)),
    )


class Vision:
    """The images' side of one model. Belongs to the engine's thread."""

    def __init__(self, loaded: LoadedModel, cache_bytes: int) -> None:
        model, image_token_id = loaded.model, loaded.image_token_id
        self._model = model
        self._image_token_id = -1 if image_token_id is None else image_token_id
        self._typed_token_ids = loaded.typed_token_ids
        self._get_rope_index = None if image_token_id is None else rope_index(model)
        self.axes = 1 if self._get_rope_index is None else rotary_axes(model)
        self._cache = ImageCache[Features](cache_bytes)
        self.num_encoded = 0
        self.num_reused = 0

    def rotary(self, token_ids: Sequence[int], images: ImageInputs) -> MRopePositions | None:
        """The rotary positions of a prompt and its answers; None where they are 0, 1, 2 ...

        Args:
            token_ids: the prompt's, image tokens included.
            images: the prompt's, in order.
        """
        if self._get_rope_index is None or not images:
            return None
        positions, offset = self._get_rope_index(
            torch.tensor([token_ids]),
            mm_token_type_ids=self._token_types(token_ids),
            **_grids(images),
        )
        return MRopePositions(positions[:, 0].numpy(), int(offset))

    @torch.inference_mode()
    def encode(
        self,
        token_ids: Sequence[int],
        images: ImageInputs,
        num_prefilled: int,
        encoded: dict[bytes, Features] | None = None,
    ) -> tuple[Features | None, int]:
        """The features of the images that a prompt still needs.

        Those that were not encoded together are encoded one at a time: the shapes, and so the
        bits, depend on that image alone. An image whose features are kept is not encoded again.

        Args:
            token_ids: the prompt's, image tokens included.
            images: the prompt's, in order.
            num_prefilled: tokens of the prompt whose keys and values are in the cache already.
            encoded: of `encode_together`; what is used is taken out.

        Returns:
            The features from the first image that has a token left to prefill, and how many image
            tokens come before them.
        """
        needed = self.needed(token_ids, images, num_prefilled)
        skipped = sum(image.num_tokens for image in images[: len(images) - len(needed)])
        parts = [self._features(image, encoded or {}) for image in needed]
        return (joined(parts) if parts else None), skipped

    def needed(
        self, token_ids: Sequence[int], images: ImageInputs, num_prefilled: int
    ) -> ImageInputs:
        """The images from the first one that has a token left to prefill; arguments of `encode`."""
        if not images:
            return ()
        done = token_ids[:num_prefilled].count(self._image_token_id)
        ends = accumulate(image.num_tokens for image in images)
        return images[sum(end <= done for end in ends) :]

    def missing(self, images: Iterable[PreparedImage]) -> list[PreparedImage]:
        """Those of the images whose features are not kept, each once."""
        found = {image.digest: image for image in images if image.digest not in self._cache}
        return list(found.values())

    @torch.inference_mode()
    def encode_together(
        self, images: Iterable[PreparedImage], tiles: TileCounts
    ) -> dict[bytes, Features]:
        """The features, by digest, of those of the images that share a forward with others.

        They are the same as alone, because forwards have numbers of tiles whose bits agree. Images
        whose features are kept are left out.
        """
        found: dict[bytes, Features] = {}
        for together in tiles.forwards(self.missing(images)):
            pixels = np.concatenate([image.arrays[PIXELS] for image in together])
            features = self.features_of({PIXELS: pixels})
            self.num_encoded += len(together)
            of_tile, start = len(features.tokens) // len(pixels), 0
            for image in together:
                stop = start + of_tile * len(image.arrays[PIXELS])
                found[image.digest] = features.part(start, stop).copied()
                start = stop
        return found

    def _features(self, image: PreparedImage, encoded: dict[bytes, Features]) -> Features:
        features = encoded.pop(image.digest, None)
        if features is None:
            features = self._cache.get(image.digest)
            if features is not None:
                self.num_reused += 1
                return features
            features = self.features_of(image.arrays)
            self.num_encoded += 1
        if len(features.tokens) != image.num_tokens:
            raise TaskExecutionError(
                f"the model makes {len(features.tokens)} features of an image that has "
                f"{image.num_tokens} tokens in the prompt: its processor's files are of another "
                "model"
            )
        self._cache.put(image.digest, features)
        return features

    @torch.inference_mode()
    def features_of(self, arrays: Mapping[str, np.ndarray]) -> Features:
        """The features that one forward of the vision tower gives, with these arguments."""
        inputs = {
            # A copy, because arrays from an object store are read-only.
            name: torch.from_numpy(array.copy()).to(self._model.device)
            for name, array in arrays.items()
        }
        output = image_encoder(self._model)(**inputs, return_dict=True)
        layers = getattr(output, "deepstack_features", None) or ()
        indicators = getattr(output, _INDICATORS, None)
        return Features(
            _flat(output.pooler_output),
            tuple(_flat(layer) for layer in layers),
            indicators,
            layout=(type(output), not isinstance(output.pooler_output, torch.Tensor)),
            placed_by_model=bool(layers) or indicators is not None or reads_token_ids(self._model),
        )

    def inputs(self, ids: torch.Tensor, features: Features | None, stop: int) -> dict[str, Any]:
        """The inputs of a forward on token ids [1, T], with the features in their places.

        All places are before ``stop``. After it are generated tokens, and an image token among
        them is not an image.
        """
        if features is None:
            return {"input_ids": ids}
        if features.placed_by_model:
            return {"input_ids": ids, "mm_encoder_outputs": self._encoder_outputs(features)}
        # As the model itself does, but without its checks, which wait for the device.
        embeddings = self._model.get_input_embeddings()(ids)
        places = torch.eq(ids, self._image_token_id)[..., None]
        places[:, stop:] = False
        images = features.tokens.to(embeddings.dtype)
        return {"inputs_embeds": embeddings.masked_scatter(places, images)}

    def generate_inputs(
        self, token_ids: Sequence[int], images: ImageInputs, features: Features | None
    ) -> dict[str, Any]:
        """The inputs of `generate` beside the token ids of a prompt with these images."""
        if features is None:
            return {}
        types = self._token_types(token_ids)
        if sees_whole_prompt(self._model):
            types = torch.zeros_like(types)
        known = inspect.signature(self._model.forward).parameters
        inputs: dict[str, Any] = _grids(images) | {
            name: types for name in ("mm_token_type_ids", "token_type_ids") if name in known
        }
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        return inputs | {"mm_encoder_outputs": self._encoder_outputs(features)}

    def _token_types(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[1, tokens]: 1 for tokens of images, 0 for text."""
        return torch.tensor([[int(t in self._typed_token_ids) for t in token_ids]])

    def _encoder_outputs(self, features: Features) -> dict[str, Any]:
        """Features as the model holds them, all images as one."""
        output_type, as_list = features.layout

        def held(tensor: torch.Tensor) -> Any:
            return [tensor] if as_list else tensor[None]

        fields = {"pooler_output": held(features.tokens)}
        if features.deepstack:
            fields["deepstack_features"] = [held(layer) for layer in features.deepstack]
        if features.indicators is not None:
            fields[_INDICATORS] = features.indicators
        return {"image": output_type(**fields)}


def _flat(parts: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """[image tokens, hidden] of [images or tiles, tokens, hidden], or of a sequence."""
    return parts.flatten(0, 1) if isinstance(parts, torch.Tensor) else torch.cat(list(parts))


def _grids(images: ImageInputs) -> dict[str, torch.Tensor]:
    """The patch grids of Qwen's images; nothing for others."""
    grids = [image.arrays["image_grid_thw"] for image in images if "image_grid_thw" in image.arrays]
    return {"image_grid_thw": torch.from_numpy(np.concatenate(grids))} if grids else {}
