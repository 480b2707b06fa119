"""Weights of published quantizations as plain numbers: a function for each method.

Each gets the tensors of one weight by the last part of their names, and returns float32
[out, in]. The tables of `engine.loading.quantized.methods` have the shapes. Sources of the layouts:

* AWQ: https://github.com/casper-hansen/AutoAWQ (``awq/utils/packing_utils.py``)
* GPTQ: https://github.com/ModelCloud/GPTQModel (``docs``, ``gptqmodel/nn_modules/qlinear``)
* FP8 in blocks: https://github.com/deepseek-ai/DeepSeek-V3 (``inference/fp8_cast_bf16.py``)
* compressed-tensors: https://github.com/vllm-project/compressed-tensors
* NVFP4: https://github.com/NVIDIA/Model-Optimizer
* FP4 and shared exponents: https://www.opencompute.org (Microscaling Formats specification)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from engine.loading.quantized.methods import Settings, gptq_bits, packed_bits, scale_block

Tensors = Mapping[str, torch.Tensor]

_WORD = 32
# AWQ's columns of eight, in the order in which a word has them.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Values of ``bits`` bits without gaps, the lowest bits of the first word first.

    Args:
        words: int32 [..., words].
        bits: of a value.
        count: of values; there may be padding after them.

    Returns:
        int32 [..., count], from 0.
    """
    values: torch.Tensor
    if _WORD % bits == 0:
        shifts = torch.arange(0, _WORD, bits, device=words.device, dtype=torch.int32)
        values = (words.unsqueeze(-1) >> shifts) & (2**bits - 1)
        values = values.flatten(-2)
        return values[..., :count]
    # A value may lie in two words: look at both as one of 64 bits.
    starts = torch.arange(count, device=words.device) * bits
    low = words.long() & 0xFFFFFFFF
    pairs = low | torch.nn.functional.pad(low[..., 1:], (0, 1)) << _WORD
    values = pairs[..., starts // _WORD] >> (starts % _WORD)
    values = (values & (2**bits - 1)).int()
    return values


def _by_group(values: torch.Tensor, inputs: int, order: torch.Tensor | None) -> torch.Tensor:
    """Of [..., groups], the value of each input's group."""
    if order is not None:
        return values.index_select(-1, order.long())
    return values.repeat_interleave(inputs // values.shape[-1], dim=-1)


def _awq(parts: Tensors, _: Settings) -> torch.Tensor:
    inputs, outputs = parts["qweight"].shape[0], parts["scales"].shape[1]
    order = torch.tensor(_AWQ_ORDER, device=parts["qweight"].device)

    def columns(words: torch.Tensor) -> torch.Tensor:
        eights: torch.Tensor = unpack_words(words, 4, outputs).unflatten(-1, (-1, 8))
        return eights[..., order].flatten(-2)

    values = columns(parts["qweight"]).t()
    scales = _by_group(parts["scales"].float().t(), inputs, None)
    zeros = parts.get("qzeros")
    if zeros is not None:
        return (values - _by_group(columns(zeros).t(), inputs, None)) * scales
    exact: torch.Tensor = (values - 8) * scales
    return exact


def _gptq(parts: Tensors, settings: Settings) -> torch.Tensor:
    bits = gptq_bits({name: tuple(tensor.shape) for name, tensor in parts.items()})
    packed, outputs = parts["qweight"].shape
    inputs = packed * _WORD // bits
    values = unpack_words(parts["qweight"].t().contiguous(), bits, inputs)
    zeros = unpack_words(parts["qzeros"], bits, outputs).t()
    if settings.get("checkpoint_format", "gptq") == "gptq":  # which stores one less
        zeros = (zeros + 1) & (2**bits - 1)
    order = parts.get("g_idx")
    scales = parts["scales"].float().t()
    return (values - _by_group(zeros, inputs, order)) * _by_group(scales, inputs, order)


def _exact(scale: torch.Tensor) -> torch.Tensor:
    """A scale as float32; one byte is the exponent of a power of two."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - 127)
    return scale.float()


def _fp4(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] -> float32 [..., 2 n]: the low half first, the highest bit is the sign."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=packed.device)
    packed = packed.view(torch.uint8)
    halves = torch.stack((packed & 15, packed >> 4), dim=-1)
    return table[halves.long()].flatten(-2)


def _scaled(values: torch.Tensor, scale: torch.Tensor, settings: Settings) -> torch.Tensor:
    """[rows, columns] times a scale for all, each row, or each block, of which the last is cut."""
    rows, columns = values.shape
    high, wide = scale_block((rows, columns), tuple(scale.shape), settings)
    scale = _exact(scale).reshape(-(-rows // high), -1)
    full = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    return values * full


def _fp8(parts: Tensors, settings: Settings) -> torch.Tensor:
    scale = parts["weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"]
    return _scaled(parts["weight"].float(), scale, settings)


def _by_scale(parts: Tensors, settings: Settings) -> torch.Tensor:
    return _scaled(parts["weight"].float(), parts["weight_scale"], settings)


def _compressed(parts: Tensors, settings: Settings) -> torch.Tensor:
    scale, order = parts["weight_scale"], parts.get("weight_g_idx")
    packed = parts.get("weight_packed")
    if packed is None:
        values = parts["weight"].float()
        zeros = parts.get("weight_zero_point")
        if zeros is not None:  # of a row or of the whole
            values = values - zeros.float().reshape(-1, 1)
        return _scaled(values, scale, settings)
    if "weight_shape" not in parts:
        if (largest := parts.get("weight_global_scale")) is not None:
            scale = scale.float() / largest.float()
        return _scaled(_fp4(packed), scale, {})
    rows, inputs = (int(size) for size in parts["weight_shape"])
    bits = packed_bits(settings, packed.shape[1], inputs)
    values = unpack_words(packed, bits, inputs) - 2 ** (bits - 1)
    if (zeros := parts.get("weight_zero_point")) is not None:
        zeros = unpack_words(zeros.t().contiguous(), bits, rows).t() - 2 ** (bits - 1)
        values = values - _by_group(zeros, inputs, order)
    scales = scale.float().reshape(rows, -1)
    exact: torch.Tensor = values * _by_group(scales, inputs, order)
    return exact


def _modelopt(parts: Tensors, _: Settings) -> torch.Tensor:
    if "weight_scale_2" in parts:
        scale = parts["weight_scale"].float() * parts["weight_scale_2"].float()
        return _scaled(_fp4(parts["weight"]), scale, {})
    return _scaled(parts["weight"].float(), parts["weight_scale"], {})


UNPACK: dict[str, Callable[[Tensors, Settings], torch.Tensor]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": _by_scale,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}
"""For each of `METHODS`, but for those that transformers unpacks."""
