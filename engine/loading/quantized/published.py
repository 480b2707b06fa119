"""Which quantization a checkpoint was published in, and whether its tensors are all there.

It reads configurations and headers only, so that a check finds faults before a server starts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine.loading.quantized.methods import (
    KEPT,
    METHODS,
    OTHERS,
    Method,
    Settings,
    Shape,
)
from engine.quantization.base import Quantization
from engine.quantization.registry import QUANTIZATIONS
from schema.errors import ModelCorrupt, ModelFormatUnsupported

_NF4_PARTS = ("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4")
_PLAIN = ("F64", "F32", "F16", "BF16")
# Other names of methods, and the parts of configurations that have one of their own.
_ALIASES = {"mxfp8": "fp8", "compressed_tensors": "compressed-tensors"}
_PLACES = ("text_config", "llm_config", "language_config")
_WAY_OUT = "take the model unquantized (quantize_bits quantizes it here), or in " + ", ".join(
    (*METHODS, KEPT)
)


class Stored(NamedTuple):
    """A tensor of a checkpoint: its shape, and safetensors' name of its dtype."""

    shape: Shape
    dtype: str


class Published(NamedTuple):
    """The quantization of a checkpoint.

    Attributes:
        name: what the card calls it.
        settings: its ``quantization_config``.
        method: how it is dequantized; None if it is kept.
        kept: the quantization that it is already, and is computed with.
    """

    name: str
    settings: Settings
    method: Method | None
    kept: Quantization | None = None


def published_in(directory: Path, model: str) -> Published | None:
    """The quantization that the files of a model name; None if they name none.

    Args:
        directory: of a model in transformers' layout.
        model: its name, for messages.

    Raises:
        ModelCorrupt, ModelFormatUnsupported: see `find_published`.
    """
    description = _object(directory / "config.json", model)
    if _settings(description) is None:
        if (file := directory / "quantize_config.json").is_file():  # AutoGPTQ's own
            settings = {"quant_method": "gptq", **_object(file, model)}
            return find_published({"quantization_config": settings}, model)
        if (file := directory / "hf_quant_config.json").is_file():  # ModelOpt's own
            found = _object(file, model).get("quantization")
            settings = {**(found if isinstance(found, dict) else {}), "quant_method": "modelopt"}
            return find_published({"quantization_config": settings}, model)
    return find_published(description, model)


def _object(file: Path, model: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:  # of UTF-8 too
        raise ModelCorrupt(f"model {model!r} is damaged: {file.name} is not JSON") from error
    if not isinstance(content, dict):
        raise ModelCorrupt(f"model {model!r} is damaged: {file.name} holds no JSON object")
    return content


def find_published(description: Mapping[str, Any], model: str) -> Published | None:
    """The quantization that a configuration names; None if it names none.

    Args:
        description: the content of ``config.json``.
        model: the model's name, for messages.

    Raises:
        ModelCorrupt: the settings contradict themselves.
        ModelFormatUnsupported: the quantization is unknown, or is read in other forms only.
    """
    settings = _settings(description)
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ModelCorrupt(f"model {model!r} is damaged: its quantization_config is no object")
    name = str(settings.get("quant_method") or "").lower()
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        name = KEPT
    name = _ALIASES.get(name, name)
    try:
        if name == "auto-round":
            name = _auto_round(settings)
        if name == KEPT:
            return _bitsandbytes(settings, model)
        method = METHODS.get(name)
        problem = method.problem(settings) if method is not None else None
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise ModelCorrupt(
            f"model {model!r} is damaged: its quantization_config is not one of {name} ({error})"
        ) from error
    if method is None:
        raise _unsupported(name, model)
    if problem is not None:
        raise ModelFormatUnsupported(
            f"model {model!r} is quantized with {name} in a form that is not read: {problem}; "
            f"{_WAY_OUT}"
        )
    return Published(name, settings, method)


def _settings(description: Mapping[str, Any]) -> Any:
    """Of the model, or of the language model in it, under the name of today or of 2024."""
    for place in (description, *(description.get(name) for name in _PLACES)):
        if isinstance(place, Mapping):
            for key in ("quantization_config", "compression_config"):
                if place.get(key) is not None:
                    return place[key]
    return None


def _auto_round(settings: Settings) -> str:
    """The layout in which AutoRound has stored its weights."""
    packing = str(settings.get("packing_format", "auto_round:auto_gptq"))
    return {"auto_gptq": "gptq", "auto_awq": "awq"}.get(
        packing.removeprefix("auto_round:"), packing
    )


def _bitsandbytes(settings: Settings, model: str) -> Published:
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    if settings.get("load_in_8bit"):
        return Published("bitsandbytes INT8", settings, None, QUANTIZATIONS[8])
    if settings.get("load_in_4bit") and kind == "nf4":
        return Published("bitsandbytes NF4", settings, None, QUANTIZATIONS[4])
    raise ModelFormatUnsupported(
        f"model {model!r} is quantized with bitsandbytes in a form that is not read: "
        f"{kind!r} (NF4 and INT8 are read); {_WAY_OUT}"
    )


def _unsupported(name: str, model: str) -> ModelFormatUnsupported:
    if name in OTHERS:
        return ModelFormatUnsupported(
            f"model {model!r} is quantized with {name}, which is not read here: {_WAY_OUT}"
        )
    return ModelFormatUnsupported(
        f"model {model!r} is quantized with {name!r}, which is not known: {_WAY_OUT}"
    )


def fold(
    tensors: Mapping[str, Stored], published: Published | None, model: str
) -> dict[str, Stored]:
    """The weights that the tensors of a checkpoint stand for, and all others as they are.

    Args:
        tensors: of the checkpoint, by name.
        published: its quantization.
        model: its name, for messages.

    Raises:
        ModelCorrupt: parts of a weight are missing, or do not fit together.
        ModelFormatUnsupported: tensors are in a format that its configuration does not name.
    """
    method = None if published is None else published.method
    if published is None or method is None:
        if published is None:
            _refuse_unnamed(tensors, model)
        else:
            _check_kept(tensors, published, model)
        return dict(tensors)
    weights: dict[str, dict[str, Stored]] = defaultdict(dict)
    folded: dict[str, Stored] = {}
    for name, stored in tensors.items():
        prefix, _, part = name.rpartition(".")
        if part in method.names:
            weights[prefix][part] = stored
        else:
            folded[name] = stored
    for prefix, parts in weights.items():
        if (weight := _weight(prefix, parts, method, published.settings, model)) is not None:
            folded[f"{prefix}.weight"] = weight
    return folded


def _weight(
    prefix: str, parts: Mapping[str, Stored], method: Method, settings: Settings, model: str
) -> Stored | None:
    """What the parts are together; None if they only quantize activations."""
    plain = parts.get("weight")
    if plain is not None and plain.dtype in _PLAIN:
        return plain
    packed = next((part for part in method.packed if part in parts), None)
    if packed is None:
        if plain is not None:
            return plain
        if not set(parts) - set(method.ignored):
            return None
        packed = method.packed[0]
        if prefix.endswith(".act"):
            raise ModelFormatUnsupported(
                f"model {model!r} is quantized with {method.name} in a form that is not read: it "
                f"scales activations ({prefix}.{min(parts)}); {_WAY_OUT}"
            )
        raise _damaged(prefix, f"{', '.join(sorted(parts))} and no {packed}", model)
    if parts[packed].dtype not in method.dtypes:
        raise ModelFormatUnsupported(
            f"model {model!r} has {prefix}.{packed} in {parts[packed].dtype}, which is not read in "
            f"{method.name} ({', '.join(method.dtypes)} are); {_WAY_OUT}"
        )
    if missing := [part for part in method.needed if part not in parts]:
        raise _damaged(prefix, f"{packed} and no {missing[0]}", model)
    try:
        shape = method.shape({part: stored.shape for part, stored in parts.items()}, settings)
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise _damaged(prefix, f"parts that do not fit together: {error}", model) from error
    return Stored(shape, "BF16")


def _check_kept(tensors: Mapping[str, Stored], published: Published, model: str) -> None:
    """Refuse weights of bitsandbytes without what it keeps beside them."""
    assert published.kept is not None
    dtype, needed = {8: ("I8", ("SCB",)), 4: ("U8", _NF4_PARTS)}[published.kept.bits]
    packed = [
        name.removesuffix(".weight")
        for name, stored in tensors.items()
        if name.endswith(".weight") and stored.dtype == dtype
    ]
    if tensors and not packed:
        raise ModelCorrupt(
            f"model {model!r} is damaged: its config.json says {published.name}, and it has no "
            "weights in it"
        )
    for prefix in packed:
        if missing := [part for part in needed if f"{prefix}.{part}" not in tensors]:
            raise _damaged(prefix, f"weight and no {missing[0]}", model)


def _damaged(prefix: str, has: str, model: str) -> ModelCorrupt:
    return ModelCorrupt(f"model {model!r} is damaged: {prefix} has {has}; copy the model again")


def _refuse_unnamed(tensors: Mapping[str, Stored], model: str) -> None:
    """Values of 8 bits, or packed ones, without the settings to read them would be noise."""
    for name, stored in tensors.items():
        if name.endswith(".qweight") or stored.dtype.startswith("F8_"):
            raise ModelFormatUnsupported(
                f"model {model!r} has {name} in {stored.dtype}, and its config.json has no "
                "quantization_config that says what it means"
            )
