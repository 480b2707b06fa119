"""Mixtures of experts whose rows have the same bits in every batch.

A mixture sends each row to a few of its experts, so an expert's product has as many rows as have
chosen it, in this forward: others' tokens decide how many. Here an expert computes its rows at
counts whose results agree bit for bit, measured as batch sizes are, with padding; and what a row
gets from its experts is added in the order of the experts. So it is a function of the row.

transformers' modules hand their rows over through `ExpertsInterface`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from engine.execution.modules.int8_product import packed_if_int8
from engine.execution.modules.products import (
    MakeProduct,
    PackedProduct,
    Product,
    agreeing_counts,
    packed_product,
    padded,
    plain_product,
    probe_rows,
)
from engine.quantization.base import Quantization

NAME = "same bits in every batch"
"""Of the function below, among the implementations of `ExpertsInterface`."""

_ATTRIBUTE = "_exact"


@dataclass
class RealRows:
    """How many rows of the forward belong to tokens; all if None. The others choose no expert."""

    count: int | None = None

    @contextmanager
    def limited_to(self, count: int) -> Iterator[None]:
        """In the body, only so many rows are real."""
        self.count = count
        try:
            yield
        finally:
            self.count = None


class Experts(nn.Module):
    """The experts of one layer, beside transformers' module of them."""

    def __init__(self, owner: Any, real: RealRows, make: MakeProduct) -> None:
        """Take the weights of ``owner``."""
        super().__init__()
        self.real = real
        self.counts: tuple[int, ...] = ()
        self._up = _products(owner, "gate_up_proj" if owner.has_gate else "up_proj", make)
        self._down = _products(owner, "down_proj", make)
        layers = [one for one in (*self._up, *self._down) if isinstance(one, nn.Module)]
        self._layers = nn.ModuleList(layers)

    def stored(self) -> list[torch.Tensor]:
        """The tensors that it keeps in place of the owner's, but for those of its layers."""
        return [tensor for one in self.packed() for tensor in one.stored]

    def packed(self) -> list[PackedProduct]:
        """The products with packed weights."""
        return [one for one in (*self._up, *self._down) if isinstance(one, PackedProduct)]

    def one(self, owner: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """What an expert makes of rows [n, hidden], all at once."""
        inner = self._up[expert](rows)
        inner = owner._apply_gate(inner) if owner.has_gate else owner.act_fn(inner)
        output = self._down[expert](inner)
        if owner.has_post_expert_norm:
            output = owner.post_expert_norm(output)
        return output

    def padded(self, owner: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """What an expert makes of rows [n, hidden], at counts that agree."""
        return padded(partial(self.one, owner, expert), rows, self.counts)

    def mixed(
        self, owner: Any, rows: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """What the experts [rows, k] that rows [rows, hidden] have chosen make of them, mixed."""
        num_chosen = chosen.shape[1]
        real = len(rows) if self.real.count is None else self.real.count
        of_rows = chosen[:real].reshape(-1)
        order = of_rows.argsort(stable=True)
        outputs = rows.new_zeros(real * num_chosen, rows.shape[1])
        start = 0
        for expert, count in enumerate(of_rows.bincount(minlength=len(self._down)).tolist()):
            if count and expert < len(self._down):  # one beyond stands for none
                places = order[start : start + count]
                outputs[places] = self.padded(owner, expert, rows[places // num_chosen])
            start += count
        outputs = outputs * weights[:real].reshape(-1, 1)
        by_expert = chosen[:real].argsort(dim=1, stable=True)
        slots = outputs.view(real, num_chosen, -1).float()
        slots = slots.take_along_dim(by_expert[..., None], dim=1)
        mixed = slots[:, 0]
        for slot in range(1, num_chosen):
            mixed = mixed + slots[:, slot]
        return pad(mixed.to(rows.dtype), (0, 0, 0, len(rows) - real))


# --- Products ------------------------------------------------------------------------------------


def _products(owner: Any, name: str, make: MakeProduct) -> list[Product]:
    """The products of all experts by one of the owner's weights, [experts, ...]."""
    weights, biases = getattr(owner, name), getattr(owner, f"{name}_bias", None)
    products = []
    for expert, weight in enumerate(weights.detach()):
        bias = None if biases is None else biases[expert].detach()
        products.append(make(weight.t() if owner.is_transposed else weight, bias))
    return products


# --- Setup ---------------------------------------------------------------------------------------


def _forward(
    owner: Any, rows: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What `ExpertsInterface` calls in place of the module's own forward."""
    return _of(owner).mixed(owner, rows, chosen, weights)


ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)


def _of(owner: Any) -> Experts:
    return cast(Experts, getattr(owner, _ATTRIBUTE))


def mixtures(model: Any) -> list[Any]:
    """The modules of a model that hold the experts of a layer, in transformers' one form."""
    return [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]


def has_other_mixtures(model: Any) -> bool:
    """Whether a model has experts in a form that is not known here.

    Not counted are those that do not know which rows have chosen them: each computes all rows.
    """
    known = {id(module) for module in mixtures(model)}
    return any(
        name.rpartition(".")[2] == "experts" and id(module) not in known and _is_told(module)
        for name, module in model.named_modules()
    )


def _is_told(module: nn.Module) -> bool:
    """Whether experts know which rows have chosen them: they are told, or choose themselves by
    layers within. Those in a list are called one by one.
    """
    several = len(signature(module.forward).parameters) > 1
    within = any(True for child in module.children() for _ in child.parameters())
    return isinstance(module, nn.ModuleList) or several or within


def real_rows(model: Any) -> RealRows:
    """What the experts of a model are told before a forward; nobody reads it if it has none."""
    found = [_of(owner) for owner in mixtures(model) if hasattr(owner, _ATTRIBUTE)]
    return found[0].real if found else RealRows()


def expert_counts(model: Any) -> list[tuple[int, ...]]:
    """Of each kind of experts of a model, the numbers of rows that they compute at once."""
    found = (_of(owner) for owner in mixtures(model) if hasattr(owner, _ATTRIBUTE))
    return sorted({experts.counts for experts in found})


@torch.inference_mode()
def use_exact_experts(model: Any, quantized: Quantization | None, *, packs: bool) -> None:
    """Replace what computes the experts of a model, in place; nothing if it has none.

    Args:
        model: the model.
        quantized: how their weights are quantized, if they are: libraries quantize layers, and the
            weights of experts are no layers.
        packs: whether to pack weights that are not quantized.

    Raises:
        BatchInvarianceError: a row's bits depend on the other rows of its expert.
    """
    real = RealRows()
    measured: dict[Any, tuple[int, ...]] = {}
    for owner in mixtures(model):
        first = owner.gate_up_proj if owner.has_gate else owner.up_proj
        kind = (first.shape, owner.down_proj.shape, first.dtype, first.device, type(owner))
        make: MakeProduct = plain_product
        if quantized is not None:
            make = packed_if_int8(quantized.layer)
        elif packs:
            make = packed_product
        experts = Experts(owner, real, make)
        setattr(owner, _ATTRIBUTE, experts)
        if kind not in measured:
            measured[kind] = _counts(owner, experts, first)
        experts.counts = measured[kind]
        if make is not plain_product:
            for name in ("gate_up_proj", "up_proj", "down_proj"):
                if getattr(owner, name, None) is not None:
                    setattr(owner, name, None)
        owner.config._experts_implementation = NAME


def _counts(owner: Any, experts: Experts, like: torch.Tensor) -> tuple[int, ...]:
    """The numbers of rows at which an expert gives a row the same bits, ascending."""
    width, inner = owner.down_proj.shape[1:]
    if owner.is_transposed:
        width, inner = inner, width
    probe = probe_rows(width, like)
    return agreeing_counts(partial(experts.one, owner, 0), probe, "an expert", rounded=inner)
