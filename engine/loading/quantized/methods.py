"""The quantizations in which checkpoints are published: their tensors, and what they stand for.

Nothing here needs torch or a library: a check of a configuration reads no weights. How the values
are unpacked is in `engine.loading.quantized.unpack`, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
Parts = Mapping[str, Shape]
"""The shapes of the tensors that together are one weight, by the last part of their names."""
Settings = Mapping[str, Any]
"""The ``quantization_config`` of a checkpoint."""

_E4M3 = "F8_E4M3"
_FP8_BLOCK = (128, 128)  # of checkpoints that do not say it

KEPT = "bitsandbytes"
"""The quantization that is computed with as it is stored."""


@dataclass(frozen=True)
class Method:
    """A quantization whose weights are dequantized while they are loaded.

    Attributes:
        name: as ``quant_method`` says it.
        parts: last parts of the names of the tensors that are one weight.
        packed: of these, the one that has its values; the first that a weight has.
        needed: of these, those without which the values mean nothing.
        dtypes: of the values, as safetensors names them.
        ignored: of these, those that only quantize activations.
        shape: of the weight, from its parts'; raises a `ValueError` if they do not fit together.
        problem: what of the settings is not read here; None if all is.
    """

    name: str
    parts: tuple[str, ...]
    packed: tuple[str, ...]
    needed: tuple[str, ...]
    dtypes: tuple[str, ...]
    shape: Callable[[Parts, Settings], Shape]
    problem: Callable[[Settings], str | None]
    ignored: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All last parts of names that belong to a weight."""
        return tuple(dict.fromkeys(("weight", *self.parts, *self.ignored)))


def _no_problem(_: Settings) -> None:
    return None


def scale_block(weight: Shape, scale: Shape, settings: Settings) -> tuple[int, int]:
    """Rows and columns of a weight that share a scale; the last block may be cut.

    Args:
        weight: its shape.
        scale: the shape of its scales.
        settings: of the checkpoint.

    Raises:
        ValueError: they do not fit together.
    """
    rows, columns = weight[-2:]
    high, wide = _scales(scale, rows)
    of_fp8 = settings.get("quant_method") == "fp8"
    blocks = [each.get("block_structure") for each in groups_of(settings)]
    if of_fp8:
        blocks = [settings.get("weight_block_size", _FP8_BLOCK)]
    named = [(int(block[0]), int(block[1])) for block in blocks if block]
    for block in named:
        if (high, wide) == (_up(rows, block[0]), _up(columns, block[1])):
            return block
    if rows % high or columns % wide or (of_fp8 and named and high * wide > 1):
        raise ValueError(f"scales of the shape {list(scale)} for a weight of {list(weight)}")
    return rows // high, columns // wide


def _scales(scale: Shape, rows: int) -> tuple[int, int]:
    """How many scales there are from row to row, and from column to column."""
    if len(scale) == 2:
        return scale[0], scale[1]
    if scale in ((), (1,)):
        return 1, 1
    if scale == (rows,):
        return rows, 1
    raise ValueError(f"scales of the shape {list(scale)}")


def _expect(found: Shape, *wanted: Shape) -> None:
    if found not in wanted:
        raise ValueError(f"a shape of {list(found)} where {list(wanted[0])} is right")


def _up(size: int, block: int) -> int:
    return -(-size // block)


# --- AWQ -----------------------------------------------------------------------------------------


def _awq_shape(parts: Parts, _: Settings) -> Shape:
    """qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]."""
    inputs, packed = parts["qweight"]
    groups, outputs = parts["scales"]
    _expect((packed,), (outputs // 8,))
    if "qzeros" in parts:
        _expect(parts["qzeros"], (groups, packed))
    if inputs % groups:
        raise ValueError(f"{groups} groups of {inputs} inputs")
    return outputs, inputs


def _awq_problem(settings: Settings) -> str | None:
    version = str(settings.get("version", "gemm")).lower()
    if version != "gemm":
        return f"version {version!r} (gemm is read)"
    bits = settings.get("bits", settings.get("w_bit", 4))
    return None if bits == 4 else f"bits {bits!r} (4 are read)"


# --- GPTQ ----------------------------------------------------------------------------------------


def gptq_bits(parts: Parts) -> int:
    """Bits of a value, which may differ from layer to layer: as many as the zero points have."""
    bits, rest = divmod(32 * parts["qzeros"][1], parts["scales"][1])
    if rest or bits not in (2, 3, 4, 8):
        raise ValueError("zero points that do not fit its scales")
    return bits


def _gptq_shape(parts: Parts, _: Settings) -> Shape:
    """qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales [groups, out]."""
    packed, outputs = parts["qweight"]
    groups, _outputs = parts["scales"]
    _expect((outputs,), (_outputs,))
    inputs = packed * 32 // gptq_bits(parts)
    _expect(parts["qzeros"][:1], (groups,))
    if "g_idx" in parts:
        _expect(parts["g_idx"], (inputs,))
    elif inputs % groups:
        raise ValueError(f"{groups} groups of {inputs} inputs")
    return outputs, inputs


def _gptq_problem(settings: Settings) -> str | None:
    form = settings.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2") or settings.get("is_marlin_format"):
        return f"checkpoint_format {form!r} (gptq and gptq_v2 are read)"
    bits = settings.get("bits", 4)
    return None if bits in (2, 3, 4, 8) else f"bits {bits!r} (2, 3, 4 and 8 are read)"


# --- FP8 -----------------------------------------------------------------------------------------


def _fp8_shape(parts: Parts, settings: Settings) -> Shape:
    """weight [out, in], a scale for the whole or each block."""
    scale = parts.get("weight_scale_inv", parts.get("weight_scale"))  # the latter is AutoFP8's
    if scale is None:
        raise ValueError("no weight_scale_inv")
    scale_block(parts["weight"], scale, settings)
    return parts["weight"]


def _fp8_problem(settings: Settings) -> str | None:
    form = settings.get("fmt", "e4m3")
    return None if form in ("e4m3", None) else f"fmt {form!r} (e4m3 is read)"


def _scaled_shape(parts: Parts, settings: Settings) -> Shape:
    scale_block(parts["weight"], parts["weight_scale"], settings)
    return parts["weight"]


# --- compressed-tensors and ModelOpt -------------------------------------------------------------

# Weights of 8 bits are as they are, smaller ones are packed; a checkpoint may have both.
_READ_FORMATS = (
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
)


def groups_of(settings: Settings) -> list[Mapping[str, Any]]:
    """The schemes of a compressed-tensors checkpoint, of its weights."""
    found = settings.get("config_groups")
    schemes = found.values() if isinstance(found, Mapping) else ()
    weights = (scheme.get("weights") for scheme in schemes if isinstance(scheme, Mapping))
    return [each for each in weights if isinstance(each, Mapping)]


def packed_bits(settings: Settings, packed: int, inputs: int) -> int:
    """Bits of a value of a row of ``inputs`` values in ``packed`` words of 32 bits."""
    known = sorted({int(each.get("num_bits", 4)) for each in groups_of(settings)}) or [4, 8]
    for bits in known:
        if packed in (_up(inputs * bits, 32), _up(inputs, 32 // bits)):
            return bits
    raise ValueError(f"{packed} words for {inputs} values")


def _compressed_shape(parts: Parts, settings: Settings) -> Shape:
    if "weight_packed" not in parts:
        return _scaled_shape(parts, settings)
    rows, packed = parts["weight_packed"]
    if "weight_shape" not in parts:  # two values of 4 bits in a byte
        scale_block((rows, 2 * packed), parts["weight_scale"], {})
        return rows, 2 * packed
    groups = parts["weight_scale"][-1]
    sizes = {int(each.get("group_size") or 0) for each in groups_of(settings)}
    if len(sizes) == 1 and (size := sizes.pop()) > 0:
        return rows, groups * size
    return rows, packed * 32 // min(int(each.get("num_bits", 4)) for each in groups_of(settings))


def _compressed_problem(settings: Settings) -> str | None:
    forms = {settings.get("format", "dense")}
    found = settings.get("config_groups")
    if isinstance(found, Mapping):
        forms |= {scheme.get("format") for scheme in found.values() if isinstance(scheme, Mapping)}
    if unread := sorted(str(each) for each in forms - {None, *_READ_FORMATS}):
        return f"format {unread[0]!r} ({', '.join(_READ_FORMATS[1:])} are read)"
    sparsity = settings.get("sparsity_config") or {}
    if (form := sparsity.get("format", "dense")) != "dense":
        return f"sparsity format {form!r} (dense is read)"
    if settings.get("transform_config"):
        return "transform_config: its activations have to be rotated"
    if any(int(each.get("num_bits", 4)) not in (2, 3, 4, 8) for each in groups_of(settings)):
        return "num_bits other than 2, 3, 4 and 8"
    return None


def _modelopt_shape(parts: Parts, _: Settings) -> Shape:
    if "weight_scale_2" not in parts:
        return _scaled_shape(parts, {})
    rows, packed = parts["weight"]  # NVFP4: two values in a byte, a scale for each 16, one for all
    scale_block((rows, 2 * packed), parts["weight_scale"], {})
    return rows, 2 * packed


def _modelopt_problem(settings: Settings) -> str | None:
    algorithm = str(settings.get("quant_algo", "")).upper()
    read = ("FP8", "NVFP4")
    return (
        None if algorithm in read else f"quant_algo {algorithm!r} ({' and '.join(read)} are read)"
    )


_COMPRESSED = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_global_scale",
    "weight_shape",
    "weight_g_idx",
)
_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale")

METHODS = {
    method.name: method
    for method in (
        Method(
            "awq", ("qweight", "qzeros", "scales"), ("qweight",), ("scales",), ("I32",),
            _awq_shape, _awq_problem,
        ),
        Method(
            "gptq", ("qweight", "qzeros", "scales", "g_idx"), ("qweight",), ("qzeros", "scales"),
            ("I32",), _gptq_shape, _gptq_problem,
        ),
        Method(
            "fp8", ("weight_scale_inv", "weight_scale"), ("weight",), (), (_E4M3,),
            _fp8_shape, _fp8_problem, ("activation_scale", "input_scale"),
        ),
        Method(
            "fbgemm_fp8", ("weight_scale",), ("weight",), ("weight_scale",), (_E4M3,),
            _scaled_shape, _no_problem, ("input_scale_ub", "input_scale"),
        ),
        Method(
            "compressed-tensors", _COMPRESSED, ("weight_packed", "weight"), ("weight_scale",),
            ("I32", "U8", "I8", _E4M3), _compressed_shape, _compressed_problem, _ACTIVATIONS,
        ),
        Method(
            "modelopt", ("weight_scale", "weight_scale_2"), ("weight",), ("weight_scale",),
            ("U8", _E4M3), _modelopt_shape, _modelopt_problem, _ACTIVATIONS,
        ),
        # The weights of experts only, which transformers unpacks.
        Method("mxfp4", (), (), (), (), lambda parts, _: parts["weight"], _no_problem),
    )
}  # fmt: skip
"""All of them, by name."""

OTHERS = (
    "aqlm", "bitnet", "eetq", "fouroversix", "fp_quant", "gemma", "higgs", "hqq", "metal", "nvfp4",
    "quanto", "quark", "sinq", "spqr", "torchao", "vptq",
)  # fmt: skip
"""Quantizations that transformers knows and that are not read here."""
