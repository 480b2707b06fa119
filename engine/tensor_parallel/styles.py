"""How split layers are put together again, where transformers' own way would break the promise.

A sum over three or more ranks by all-reduce depends on where a number lies in the tensor: rings
begin to add at another rank for each part of it. A row would get other bits at another place in
the batch. Here the ranks' parts are gathered and added in the order of the ranks, in float32.

The embedding and the sum work on plain tensors, without DTensor's dispatch, whose masks wait for
the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.distributed.tensor_parallel import (
    ALL_PARALLEL_STYLES,
    EmbeddingParallel,
    Replicate,
    RowwiseParallel,
    Shard,
)

SUM = "rowwise_in_order"
SUM_OF_WHOLE = "rowwise_split_input_in_order"  # every rank has all inputs and takes its part
EMBEDDING = "embedding_rowwise_plain"


def sum_in_order(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of the ranks' tensors, the same bits on all ranks and at every place in them."""
    ranks = group.size()
    parts = part.new_empty(ranks * len(part), *part.shape[1:])
    dist.all_gather_single(parts, part.contiguous(), group=group)
    first, *others = parts.unflatten(0, (ranks, -1)).unbind()
    total = first.float()
    for other in others:
        total = total + other
    return total.to(part.dtype)


class _RowwiseInOrder(RowwiseParallel):  # type: ignore[misc]
    """A linear layer whose inputs are split: the ranks' outputs are summed."""

    def transform_output_post_forward(
        self, module: Any, output: torch.Tensor, mesh: Any
    ) -> torch.Tensor:
        total = sum_in_order(output, mesh.get_group())
        bias = module._parameters.get("bias")  # hidden from the layer, or each rank would add it
        return total if bias is None else total + bias


class _PlainEmbedding(EmbeddingParallel):  # type: ignore[misc]
    """An embedding of which each rank has some tokens; the others' vectors are zero there."""

    def transform_inputs_pre_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mesh: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mine = len(module.weight)
        full = -(-module.num_embeddings // mesh.size())  # but the last rank's may be fewer
        ids = args[0] - min(mesh.get_local_rank() * full, module.num_embeddings)
        module._not_mine = ((ids < 0) | (ids >= mine))[..., None]
        return (ids.clamp(0, mine - 1), *args[1:]), kwargs

    def transform_output_post_forward(
        self, module: Any, output: torch.Tensor, mesh: Any
    ) -> torch.Tensor:
        vectors = output.masked_fill(module._not_mine, 0)
        dist.all_reduce(vectors, group=mesh.get_group())  # with zeros: exact in any order
        return vectors


ALL_PARALLEL_STYLES.register(SUM, _RowwiseInOrder(input_layouts=Shard(-1)))
ALL_PARALLEL_STYLES.register(SUM_OF_WHOLE, _RowwiseInOrder(input_layouts=Replicate()))
ALL_PARALLEL_STYLES.register(EMBEDDING, _PlainEmbedding(shard_dim=0))


def keep_own_parts(model: torch.nn.Module) -> None:
    """Make plain tensors of a loaded model's split weights, shared ones still shared."""
    own: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if isinstance(weight, DTensor):
                if id(weight) not in own:
                    local = weight.to_local().detach()
                    own[id(weight)] = torch.nn.Parameter(local, requires_grad=False)
                module._parameters[name] = own[id(weight)]
