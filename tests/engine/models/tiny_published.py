"""Tiny checkpoints in the quantizations in which people publish models.

Everything is packed here from the formats' definitions, with numpy and Python's integers, and comes
with the weights that it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Array = np.ndarray[Any, Any]
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors of a weight by the last part of their names, and the weight [out, in] in float32."""

GROUP = 16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def _words(values: Array, bits: int) -> torch.Tensor:
    """Each row as one number, the first value lowest, cut into words of 32 bits."""
    rows = []
    for row in values.astype(int).tolist():
        number = sum(value << bits * place for place, value in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(number >> 32 * word) & 0xFFFFFFFF for word in range(count)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def _integers(weight: Array, bits: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """Values from 0 [out, in], zero points and scales (float16) [out, groups]."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    high, low = grouped.max(-1), grouped.min(-1)
    most = 2**bits - 1
    if symmetric:
        scales = (2 * np.abs(grouped).max(-1) / most).astype(np.float16)
        zeros = np.full_like(scales, 2 ** (bits - 1))
    else:
        scales = ((high - low) / most).astype(np.float16)
        zeros = np.clip(np.round(-low / scales), 0, most)
    values = np.clip(np.round(grouped / scales[..., None]) + zeros[..., None], 0, most)
    return values.reshape(weight.shape), zeros.astype(int), scales


def _stands_for(values: Array, zeros: Array, scales: Array, order: Array) -> torch.Tensor:
    exact = scales.astype(np.float32)[:, order]
    return torch.from_numpy((values - zeros[:, order]).astype(np.float32) * exact)


def awq(weight: Array) -> Packed:
    values, zeros, scales = _integers(weight, 4, symmetric=False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def columns(numbers: Array) -> torch.Tensor:  # eight columns in a word, in this order
        return _words(numbers.reshape(len(numbers), -1, 8)[..., order].reshape(numbers.shape), 4)

    parts = {
        "qweight": columns(values.T),
        "qzeros": columns(zeros.T),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return parts, _stands_for(values, zeros, scales, np.arange(weight.shape[1]) // GROUP)


def _gptq(bits: int, offset: int, *, act_order: bool = False) -> Callable[[Array], Packed]:
    def pack(weight: Array) -> Packed:
        inputs = weight.shape[1]
        order = np.arange(inputs) // GROUP
        if act_order:
            order = np.random.default_rng(0).permutation(order)
        by_group = np.argsort(order, kind="stable")
        back = np.argsort(by_group, kind="stable")
        values, zeros, scales = _integers(weight[:, by_group], bits, symmetric=bits == 8)
        zeros = np.maximum(zeros, offset)
        values = values[:, back]
        parts = {
            "qweight": _words(values, bits).T.contiguous(),
            "qzeros": _words((zeros - offset).T, bits),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(order.astype(np.int32)),
        }
        return parts, _stands_for(values, zeros, scales, order)

    return pack


def _fp8(weight: Array, scale: Array) -> tuple[torch.Tensor, torch.Tensor]:
    stored = (torch.from_numpy(weight) / torch.from_numpy(scale)).to(torch.float8_e4m3fn)
    return stored, stored.float() * torch.from_numpy(scale)


def fp8_blocks(weight: Array) -> Packed:
    """Blocks of 48 and 48, which do not divide its sizes."""
    rows, columns = weight.shape
    scale = np.random.default_rng(1).uniform(0.001, 0.01, (-(-rows // 48), -(-columns // 48)))
    full = np.kron(scale, np.ones((48, 48)))[:rows, :columns].astype(np.float32)
    stored, stands_for = _fp8(weight, full)
    scales = torch.from_numpy(scale.astype(np.float32))
    return {"weight": stored, "weight_scale_inv": scales}, stands_for


def fp8_whole(weight: Array) -> Packed:
    scale = np.abs(weight).max().astype(np.float32) / 448
    stored, stands_for = _fp8(weight, np.full_like(weight, scale))
    parts = {"weight": stored, "weight_scale_inv": torch.tensor(scale)}
    return {**parts, "activation_scale": torch.tensor(0.5)}, stands_for


def fp8_rows(weight: Array) -> Packed:
    scale = (np.abs(weight).max(1, keepdims=True) / 448).astype(np.float32)
    stored, stands_for = _fp8(weight, scale)
    return {"weight": stored, "weight_scale": torch.from_numpy(scale)}, stands_for


def compressed_fp8_blocks(weight: Array) -> Packed:
    parts, stands_for = fp8_blocks(weight)
    return {"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"]}, stands_for


def compressed_int4(weight: Array) -> Packed:
    """With zero points, which are packed from row to row."""
    values, zeros, scales = _integers(weight, 4, symmetric=False)
    parts = {
        "weight_packed": _words(values, 4),
        "weight_zero_point": _words(zeros.T, 4).T.contiguous(),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(weight.shape),
    }
    return parts, _stands_for(values, zeros, scales, np.arange(weight.shape[1]) // GROUP)


def compressed_int8(weight: Array) -> Packed:
    scale = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    stored = np.round(weight / scale).astype(np.int8)
    parts = {"weight": torch.from_numpy(stored), "weight_scale": torch.from_numpy(scale)}
    return parts, torch.from_numpy(stored.astype(np.float32) * scale)


def _nvfp4(weight: Array) -> tuple[torch.Tensor, torch.Tensor, Array]:
    """Bytes of two values, scales of 16 values times 8, and the weight."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    scales = torch.from_numpy(np.abs(grouped).max(-1) / 6 * 8).to(torch.float8_e4m3fn)
    full = (scales.float().numpy() / 8)[..., None]
    nearest = np.abs(np.abs(grouped / full)[..., None] - E2M1).argmin(-1)
    codes = (nearest + 8 * (grouped < 0)).reshape(weight.shape)
    packed = torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
    values = np.where(codes >= 8, -1, 1).astype(np.float32) * E2M1[codes % 8]
    return packed, scales, (values.reshape(grouped.shape) * full).reshape(weight.shape)


def compressed_nvfp4(weight: Array) -> Packed:
    packed, scales, stands_for = _nvfp4(weight)
    parts = {"weight_packed": packed, "weight_scale": scales}
    return {**parts, "weight_global_scale": torch.tensor([8.0])}, torch.from_numpy(stands_for)


def modelopt_nvfp4(weight: Array) -> Packed:
    packed, scales, stands_for = _nvfp4(weight)
    parts = {"weight": packed, "weight_scale": scales, "weight_scale_2": torch.tensor(1 / 8)}
    return {**parts, "input_scale": torch.tensor(1.0)}, torch.from_numpy(stands_for)


def modelopt_fp8(weight: Array) -> Packed:
    parts, stands_for = fp8_whole(weight)
    return {"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"]}, stands_for


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


PUBLISHED: dict[str, tuple[Callable[[Array], Packed], dict[str, Any]]] = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "gptq": (_gptq(4, 1), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq-act-order": (
        _gptq(4, 1, act_order=True),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    ),
    "gptq-v2-3-bits": (
        _gptq(3, 0),
        {"quant_method": "gptq", "bits": 3, "checkpoint_format": "gptq_v2"},
    ),
    "gptq-8-bits": (_gptq(8, 1), {"quant_method": "gptq", "bits": 8}),
    "auto-round": (
        awq,
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4},
    ),
    "fp8-blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [48, 48]}),
    "fp8-whole": (fp8_whole, {"quant_method": "fp8", "weight_block_size": None}),
    "fp8-of-autofp8": (modelopt_fp8, {"quant_method": "fp8", "activation_scheme": "static"}),
    "fbgemm_fp8": (fp8_rows, {"quant_method": "fbgemm_fp8"}),
    "compressed-int4": (
        compressed_int4,
        _compressed("pack-quantized", num_bits=4, type="int", group_size=GROUP),
    ),
    "compressed-int8": (compressed_int8, _compressed("int-quantized", num_bits=8, type="int")),
    "compressed-fp8": (fp8_rows, _compressed("float-quantized", num_bits=8, type="float")),
    "compressed-fp8-blocks": (
        compressed_fp8_blocks,
        _compressed("float-quantized", num_bits=8, type="float", block_structure=[48, 48]),
    ),
    "compressed-nvfp4": (
        compressed_nvfp4,
        _compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=GROUP),
    ),
    "modelopt-fp8": (modelopt_fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "modelopt-nvfp4": (modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
}


def save_published(kind: str, model: Any, tokenizer: Any, directory: Path) -> None:
    """Save a model in a quantization; and give it the weights that are left of its own.

    Args:
        kind: of `PUBLISHED`.
        model: of transformers, in float32; its head and embedding stay as they are.
        tokenizer: saved with it.
        directory: to write.
    """
    pack, settings = PUBLISHED[kind]
    tensors: dict[str, torch.Tensor] = {}
    state = model.state_dict()
    for name, module in model.named_modules():
        experts = getattr(module, "gate_up_proj", None)
        if isinstance(experts, torch.nn.Parameter):  # one module for each, in checkpoints
            for number, (both, down) in enumerate(zip(experts, module.down_proj, strict=True)):
                gate, up = both.detach().chunk(2)
                for part, weight in {"gate": gate, "up": up, "down": down.detach()}.items():
                    packed, stands_for = pack(weight.numpy())
                    weight.copy_(stands_for)
                    prefix = f"{name}.{number}.{part}_proj"
                    tensors |= {f"{prefix}.{key}": value for key, value in packed.items()}
            for part in ("gate_up_proj", "down_proj"):
                del state[f"{name}.{part}"]
        elif isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            packed, stands_for = pack(module.weight.detach().numpy())
            module.weight.data.copy_(stands_for)
            tensors |= {f"{name}.{key}": value for key, value in packed.items()}
            del state[f"{name}.weight"]
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in (state | tensors).items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    change_config(directory, quantization_config=settings)


def save_mxfp4(model: Any, tokenizer: Any, directory: Path) -> None:
    """Save a gpt-oss in MXFP4, the form in which it is published: of its experts only."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in [each for each in tensors if each.endswith(("gate_up_proj", "down_proj"))]:
        experts = tensors.pop(name)  # [experts, in, out], packed along the inputs
        grouped = experts.transpose(1, 2).unflatten(-1, (-1, 32)).numpy()
        exponents = np.ceil(np.log2(np.abs(grouped).max(-1, keepdims=True) / 6))
        scaled = grouped / np.exp2(exponents)
        codes = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(-1) + 8 * (scaled < 0)
        values = np.where(codes >= 8, -1, 1) * E2M1[codes % 8] * np.exp2(exponents)
        stands_for = torch.from_numpy(values.astype(np.float32)).flatten(-2).transpose(1, 2)
        model.get_parameter(name).data.copy_(stands_for)
        blocks = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
        tensors[f"{name}_blocks"] = torch.from_numpy(blocks)
        tensors[f"{name}_scales"] = torch.from_numpy((exponents[..., 0] + 127).astype(np.uint8))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(packed, directory / "model.safetensors", {"format": "pt"})
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    change_config(directory, quantization_config=settings)


def change_config(directory: Path, **changes: Any) -> None:
    """Change fields of a model's configuration; None removes one."""
    path = directory / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
