"""How the parts of split layers are joined, where transformers' own way would break the promise.

A sum over three or more ranks by all-reduce depends on the place of a number in the tensor: rings
start to add at another rank for each part of it. A row would get other bits at another place in
the batch. Here the ranks' parts are gathered and added in the order of the ranks, in float32.

All styles work on plain tensors, without DTensor's dispatch, whose masks wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.functional import pad
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
from transformers.distributed.tensor_parallel import (
    ColwiseParallel,
    EmbeddingParallel,
    RowwiseParallel,
)

WHOLE_OUTPUT = "colwise_gather_output_plain"
SUM = "rowwise_in_order"
SUM_OF_WHOLE = "rowwise_split_input_in_order"  # every rank has all inputs and takes its part
EMBEDDING = "embedding_rowwise_plain"


def _of_all(part: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, ...]:
    """The ranks' tensors, of one shape, in the order of the ranks."""
    ranks = group.size()
    parts = part.new_empty(ranks * len(part), *part.shape[1:])
    dist.all_gather_single(parts, part.contiguous(), group=group)
    of_ranks: tuple[torch.Tensor, ...] = parts.unflatten(0, (ranks, -1)).unbind()
    return of_ranks


def _part_size(size: int, mesh: Any) -> int:
    """How much of a dimension each rank has; the last ones may have less."""
    return -(-size // int(mesh.size()))


def sum_in_order(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of the ranks' tensors, the same bits on all ranks and at every place in them."""
    first, *others = _of_all(part, group)
    total: torch.Tensor = first.float()
    for other in others:
        total = total + other
    return total.to(part.dtype)


class _WholeOutput(ColwiseParallel):
    """A linear layer whose outputs are split, and needed by all ranks, as the head's are."""

    def transform_output_post_forward(
        self, module: Any, output: torch.Tensor, mesh: Any
    ) -> torch.Tensor:
        padding = _part_size(module.out_features, mesh) - output.shape[-1]
        parts = _of_all(pad(output, (0, padding)), mesh.get_group())
        return torch.cat(parts, dim=-1)[..., : module.out_features]


class _RowwiseInOrder(RowwiseParallel):
    """A linear layer whose inputs are split: the ranks' outputs are summed."""

    def transform_inputs_pre_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mesh: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(self.input_layouts, Replicate):
            size = _part_size(module.in_features, mesh)
            args = (args[0].split(size, dim=-1)[mesh.get_local_rank()], *args[1:])
        return args, kwargs

    def transform_output_post_forward(
        self, module: Any, output: torch.Tensor, mesh: Any
    ) -> torch.Tensor:
        total = sum_in_order(output, mesh.get_group())
        bias = module._parameters.get("bias")  # hidden from the layer, or each rank would add it
        return total if bias is None else total + bias


class _PlainEmbedding(EmbeddingParallel):
    """An embedding of which each rank has some tokens; the others' vectors are zero there."""

    def install_forward(self, module: Any, mesh: Any) -> Any:
        module.padding_idx = None  # is for training, and may not be among this rank's tokens
        return super().install_forward(module, mesh)  # type: ignore[no-untyped-call]

    def transform_inputs_pre_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mesh: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mine = len(module.weight)
        ids = args[0] - mesh.get_local_rank() * _part_size(module.num_embeddings, mesh)
        module._not_mine = ((ids < 0) | (ids >= mine))[..., None]
        return (ids.clamp(0, mine - 1), *args[1:]), kwargs

    def transform_output_post_forward(
        self, module: Any, output: torch.Tensor, mesh: Any
    ) -> torch.Tensor:
        vectors = output.masked_fill(module._not_mine, 0)
        dist.all_reduce(vectors, group=mesh.get_group())  # with zeros: exact in any order
        return vectors


_OURS: dict[str, Any] = {
    WHOLE_OUTPUT: _WholeOutput(),
    SUM: _RowwiseInOrder(input_layouts=Shard(-1)),
    SUM_OF_WHOLE: _RowwiseInOrder(input_layouts=Replicate()),
    EMBEDDING: _PlainEmbedding(shard_dim=0),
}
for _name, _style in _OURS.items():
    ALL_PARALLEL_STYLES.register(_name, _style)


def keep_own_parts(model: torch.nn.Module) -> None:
    """Make plain tensors of a loaded model's split weights, shared ones still shared."""
    own: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        parameters: dict[str, Any] = module._parameters
        for name, weight in parameters.items():
            if isinstance(weight, DTensor):
                if id(weight) not in own:
                    local = weight.to_local().detach()
                    own[id(weight)] = torch.nn.Parameter(local, requires_grad=False)
                parameters[name] = own[id(weight)]
