"""What a GGUF file says about itself, read without its weights and without torch.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file is a header, key-value
pairs, a table of tensors, and their bytes. It may come from anywhere, so every length is checked
against the size of the file before anything is read.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import _type_traits

from schema.errors import ModelCorrupt, ModelFormatUnsupported, ModelIncomplete, ModelInvalid

GGUF = ".gguf"

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LFS_POINTER = b"version https://git-lfs"
_MOST_DIMENSIONS = 4
# Longer arrays, of which the vocabulary is made, are only counted.
_LONGEST_ARRAY = 1024
_NUMBERS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
# Numbers of layers and experts: transformers makes lists of them while it reads the header.
_COUNTS = (".block_count", ".expert_count")
_PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
# Architectures that the libraries name and that are not served from a GGUF file.
_NOT_SERVED = {
    "t5": "it does not continue text",
    "t5encoder": "it does not continue text",
    "clip": "it is the vision part of another model",
    "gpt-oss": "transformers does not read its experts from GGUF: take the repository with "
    "safetensors, which is in MXFP4 too",
}
OTHER_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "minimax-m2": "minimax_m2"}
"""transformers' names of architectures that llama.cpp calls otherwise."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: its shape as torch writes it, its type, where its bytes are."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """All of a file but its weights; of long arrays the metadata has the number of elements."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The model's, as llama.cpp calls it."""
        return str(self.metadata["general.architecture"])

    @property
    def quantization(self) -> str | None:
        """The type in which most weights are, such as Q4_K; None if they are plain numbers."""
        elements: Counter[GGMLQuantizationType] = Counter()
        for tensor in self.tensors:
            elements[tensor.type] += math.prod(tensor.shape)
        most = elements.most_common(1)[0][0]
        return None if most in _PLAIN else most.name

    @property
    def dtype(self) -> str:
        """The dtype of plain weights. bfloat16 for quantized ones, which say none.

        It is the dtype that most models were trained in, and has the range of float32.
        """
        types = {tensor.type for tensor in self.tensors}
        if types <= set(_PLAIN) and GGMLQuantizationType.BF16 not in types:
            return "float16" if GGMLQuantizationType.F16 in types else "float32"
        return "bfloat16"

    def of_model(self, key: str) -> Any:
        """A value that is written under the architecture's name; None if there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")


def choose_gguf(names: Iterable[str], before: str, model: str) -> str | None:
    """The GGUF file that is the model, among files of which one can be; None if there is none.

    Args:
        names: of the files of a directory or repository.
        before: what stands before a file's name in a configuration.
        model: the model's name, for the message.

    Raises:
        ModelInvalid: there are several.
    """
    # A projector of images belongs to one of the others.
    found = (name for name in names if name.endswith(GGUF) and "/" not in name)
    models = sorted(name for name in found if not name.lower().startswith("mmproj"))
    if len(models) > 1:
        raise ModelInvalid(
            f"model {model!r} has {len(models)} GGUF files: choose one, such as "
            f"{before}{models[0]}; there are {', '.join(models)}"
        )
    return models[0] if models else None


def read_gguf_header(path: Path, model: str) -> GgufHeader:
    """Read and check a file.

    Args:
        path: of the file.
        model: the model's name, for messages.

    Raises:
        ModelIncomplete: it is a Git LFS pointer, or a part of a model in several files.
        ModelCorrupt: it is no GGUF file, or its parts do not fit together.
        ModelFormatUnsupported: of a form of GGUF that is not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ModelIncomplete(
                f"model {model!r} is half downloaded: {path.name} is a Git LFS pointer and not the "
                f"file itself: run `git lfs pull` in {path.parent}"
            )
        if start[: len(_MAGIC)] != _MAGIC:
            raise ModelCorrupt(f"model {model!r} is damaged: {path.name} is not a GGUF file")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Reader(data, size).header()
        except _UnknownFormError as error:
            raise ModelFormatUnsupported(f"model {model!r}: {path.name} {error}") from error
        except (ValueError, struct.error) as error:  # of UTF-8 too
            raise ModelCorrupt(
                f"model {model!r} is damaged: {path.name} has {size} bytes and is not a whole GGUF "
                f"file ({error}); copy or download it again"
            ) from error
    _refuse(header, path, model)
    return header


def _refuse(header: GgufHeader, path: Path, model: str) -> None:
    """Refuse what is a GGUF file and not a model that transformers loads."""
    parts = header.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelIncomplete(
            f"model {model!r}: {path.name} is one of {parts} files: join them with llama.cpp's "
            "`llama-gguf-split --merge`, or take a quantization that is one file"
        )
    # Only here: the check before the server starts reads other headers too, and transformers takes
    # half a second to import.
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING  # noqa: PLC0415
    from transformers.integrations.gguf.gguf_config_mapping import (  # noqa: PLC0415
        GGUF_CONFIG_ARCHS,
    )

    architecture = header.architecture
    known = {*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS, *OTHER_NAMES} - {"general", "tokenizer"}
    why = _NOT_SERVED.get(architecture)
    if architecture not in known and why is None:
        why = "transformers does not load it from GGUF: take the repository with safetensors"
    if why is not None:
        raise ModelFormatUnsupported(
            f"model {model!r}: {path.name} is of the architecture {architecture!r}, and {why}"
        )
    readable = {*_PLAIN, *_type_traits}
    for tensor in header.tensors:
        if tensor.type not in readable:
            raise ModelFormatUnsupported(
                f"model {model!r}: {path.name} has the tensor {tensor.name!r} in "
                f"{tensor.type.name}, which is not read; take another quantization of the model"
            )


class _UnknownFormError(Exception):
    """The file may be whole, but is of a version or has types that are not known."""


class _Reader:
    """Reads from the start to the end of the table of tensors."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, len(_MAGIC)

    def header(self) -> GgufHeader:
        version = self._number("<I")
        if version not in _VERSIONS:
            raise _UnknownFormError(f"is GGUF of version {version}; versions 2 and 3 are read")
        num_tensors, num_values = self._number("<Q"), self._number("<Q")
        metadata = {}
        for _ in range(num_values):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        if not isinstance(metadata.get("general.architecture"), str):
            raise ValueError("it names no architecture")
        table = [self._entry() for _ in range(num_tensors)]
        if not table:
            raise ValueError("it has no tensors")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r:.20}")
        start = -(-self._at // alignment) * alignment
        tensors = tuple(self._placed(start, *entry) for entry in table)
        most = max([len(tensors), *(size for tensor in tensors for size in tensor.shape)])
        for key, value in metadata.items():
            if key.endswith(_COUNTS) and isinstance(value, int) and value > most:
                raise ValueError(f"it says {key} {value} and has {len(tensors)} tensors")
        return GgufHeader(metadata, tensors)

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return value

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._at:
            raise ValueError("it ends within its header")
        self._at += count
        return self._data[self._at - count : self._at]

    def _string(self) -> str:
        return self._bytes(self._number("<Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._number(self._form(kind))
        element, count = self._number("<I"), self._number("<Q")
        if element == GGUFValueType.STRING:
            for _ in range(count):
                self._bytes(self._number("<Q"))
            return count
        form = self._form(element)
        values = self._bytes(count * struct.calcsize(form))
        if count > _LONGEST_ARRAY:
            return count
        return [value for (value,) in struct.iter_unpack(form, values)]

    def _form(self, kind: int) -> str:
        try:
            return _NUMBERS[GGUFValueType(kind)]
        except (KeyError, ValueError):
            raise ValueError(f"it has a value of type {kind}") from None

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = self._string(), self._number("<I")
        if num_dims > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r:.80} has {num_dims} dimensions")
        shape = tuple(self._number("<Q") for _ in range(num_dims))
        return name, shape[::-1], self._number("<I"), self._number("<Q")

    def _placed(
        self, start: int, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> GgufTensor:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise _UnknownFormError(
                f"has the tensor {name!r:.80} in type {number}, which is not known; take another "
                "quantization of the model"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        elements = math.prod(shape)
        if shape and shape[-1] % block:
            raise ValueError(f"tensor {name!r:.80} has rows that are no whole blocks")
        num_bytes = elements // block * block_bytes
        if start + offset + num_bytes > self._size:
            raise ValueError(f"the bytes of tensor {name!r:.80} are missing")
        return GgufTensor(name, shape, kind, start + offset, num_bytes)
