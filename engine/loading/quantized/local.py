"""What can be said of a model on this disk before anything is loaded, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError

from engine.loading.quantized.gguf_header import GGUF, choose_gguf, read_gguf_header
from engine.loading.quantized.published import Stored, fold, published_in
from schema.errors import ModelCorrupt, ModelInvalid

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def quantization_of(path: Path, model: str) -> str | None:
    """The quantization in which a model was published, after a check that it can be read.

    Args:
        path: a directory, or a GGUF file.
        model: the model's name, for messages.

    Returns:
        Its name; None if the weights are not quantized.

    Raises:
        ModelInvalid: a subclass, for a quantization that is unknown, read in other forms only, or
            damaged; or there is no model.
    """
    if path.is_file() and path.suffix == GGUF:
        return read_gguf_header(path, model).quantization
    if not (path / "config.json").is_file():
        name = choose_gguf((file.name for file in path.glob(f"*{GGUF}")), f"{path}/", model)
        if name is None:
            raise ModelInvalid(f"there is no model in {path}")
        return read_gguf_header(path / name, model).quantization
    published = published_in(path, model)
    fold(_tensors(path, model), published, model)
    return None if published is None else published.name


def _tensors(directory: Path, model: str) -> dict[str, Stored]:
    """The tensors of the files of weights that are here; others are missed when it is loaded."""
    tensors: dict[str, Stored] = {}
    for name in _files(directory):
        try:
            found = parse_local_safetensors_file_metadata(directory / name).tensors
        except SafetensorsParsingError as error:
            raise ModelCorrupt(
                f"model {model!r} is damaged: {name} is not a safetensors file; copy it again"
            ) from error
        tensors |= {name: Stored(tuple(each.shape), each.dtype) for name, each in found.items()}
    return tensors


def _files(directory: Path) -> list[str]:
    if (directory / _SINGLE).is_file():
        return [_SINGLE]
    try:
        shards = json.loads((directory / _INDEX).read_bytes())["weight_map"].values()
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return []
    names = sorted({str(name) for name in shards})
    whole = all("/" not in name and (directory / name).is_file() for name in names)
    return names if whole else []
