"""Which replica fits on which GPU: first replicas that are always on, then as many as allowed.

Ray places replicas by shares of GPUs and types only; it does not check memory. This finds one
placement that fits memory too, and reports where Ray could choose another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from cluster.planning.gpus import GIB, Node
from cluster.planning.needs import Need
from engine.platform.cuda import KEPT_SHARE, kv_room_of
from serve_app.config.accelerators import GpuType

# What a replica takes beside weights and KV cache: CUDA's context, workspaces of libraries,
# activations. An assumption, of the size that other engines report; it has not been measured here.
PROCESS_BYTES = GIB
# With a smaller KV cache hardly any task can run.
LEAST_KV_TOKENS = 2048
MOST_GPUS_OF_A_REPLICA = 16  # that are suggested
_EPSILON = 1e-9  # shares like 0.3 do not add up exactly


@dataclass(frozen=True)
class Resident:
    """A replica, or its part, on a GPU, in bytes; ``kv_tokens`` is 0 where unknown."""

    need: Need
    weights: int
    kv_cache: int
    kv_tokens: int = 0

    @property
    def total(self) -> int:
        """All that it takes."""
        return PROCESS_BYTES + self.weights + self.kv_cache


@dataclass
class Gpu:
    """One GPU of a node, and the replicas on it."""

    node: str
    index: int
    type: GpuType
    residents: list[Resident] = field(default_factory=list)

    @property
    def free_share(self) -> float:
        """The share of it that Ray can still give away."""
        return 1.0 - sum(resident.need.share for resident in self.residents)

    @property
    def free(self) -> int:
        """Bytes that are not used."""
        return self.type.memory - sum(resident.total for resident in self.residents)


Obstacle = Literal["other type", "taken", "divided", "weights", "KV cache"]
"""Why a replica does not fit on GPUs, or into their memory."""


def fit(gpus: Sequence[Gpu], need: Need) -> list[Resident] | Obstacle:
    """A replica as placed on these GPUs of one node, as many as it needs."""
    if any(need.accelerator_type not in (None, gpu.type.accelerator_type) for gpu in gpus):
        return "other type"
    if any(need.share > gpu.free_share + _EPSILON for gpu in gpus):
        return "taken"
    if need.undividable is not None:
        return "divided"
    if need.weights is None:
        return [Resident(need, 0, 0) for _ in gpus]
    parts = need.parts
    rooms = [gpu.free - PROCESS_BYTES - p.weights for gpu, p in zip(gpus, parts, strict=True)]
    if min(rooms) < 0:
        return "weights"
    pairs = [(room, p.kv_per_token) for room, p in zip(rooms, parts, strict=True) if p.kv_per_token]
    tokens = need.kv_tokens
    if need.kv_is_fixed:
        enough = all(tokens * each <= room for room, each in pairs)
    else:
        # As the engine does, unless it can use less.
        tokens = min([tokens, *(kv_room_of(room) // each for room, each in pairs)])
        enough = not pairs or tokens >= min(need.context_length, LEAST_KV_TOKENS)
    if not enough:
        return "KV cache"
    return [Resident(need, p.weights, tokens * p.kv_per_token, tokens) for p in parts]


@dataclass
class Packing:
    """What fits where. ``placed`` counts the replicas of each deployment."""

    nodes: list[Node]
    needs: list[Need]
    gpus: list[Gpu]
    placed: Counter[str] = field(default_factory=Counter)

    def missing(self) -> Iterator[tuple[Need, int]]:
        """Deployments with fewer replicas than are always on, and how many are missing.

        A deployment that may scale to zero still needs room for one replica.
        """
        for need in self.needs:
            short = max(1, need.min_replicas) - self.placed[need.deployment]
            if need.device == "cuda" and short > 0:
                yield need, short


def pack(nodes: Sequence[Node], needs: Sequence[Need]) -> Packing:
    """Place the replicas that are always on, then further ones in turns."""
    gpus = [Gpu(n.name, i, n.gpu, []) for n in nodes if n.gpu for i in range(n.num_gpus)]
    packing = Packing(list(nodes), list(needs), gpus)
    # The most constrained first: one type only, then large shares, then large weights.
    order = sorted(
        (need for need in needs if need.device == "cuda"),
        key=lambda need: (need.accelerator_type is None, -need.gpus, -(need.weights or 0)),
    )
    for need in order:
        while packing.placed[need.deployment] < max(1, need.min_replicas):
            if not _place(packing, need):
                break
    waiting = list(order)
    while waiting:
        waiting = [
            need
            for need in waiting
            if packing.placed[need.deployment] < need.max_replicas and _place(packing, need)
        ]
    return packing


def _choices(packing: Packing, need: Need) -> list[list[Gpu]]:
    """The GPUs to try for a replica: each by itself, or as many of a node as it needs."""
    if need.num_gpus == 1:
        return [[gpu] for gpu in packing.gpus]
    choices = []
    for _, group in groupby(packing.gpus, key=lambda gpu: gpu.node):
        # The free ones first; `fit` says that they are taken if there are not enough.
        gpus = sorted(group, key=lambda gpu: -gpu.free_share)
        if len(gpus) >= need.num_gpus:
            choices.append(sorted(gpus[: need.num_gpus], key=lambda gpu: gpu.index))
    return choices


def _place(packing: Packing, need: Need) -> bool:
    """Put one replica on the GPUs that it fills best; False if it fits on none."""
    fitting = [
        (gpus, residents)
        for gpus in _choices(packing, need)
        if isinstance(residents := fit(gpus, need), list)
    ]
    if not fitting:
        return False
    free = Counter(gpu.node for gpu in packing.gpus if not gpu.residents)
    gpus, residents = min(
        fitting,
        key=lambda pair: (
            pair[0][0].free_share,
            free[pair[0][0].node] if need.num_gpus > 1 else 0,
            pair[0][0].type.memory,
        ),
    )
    for gpu, resident in zip(gpus, residents, strict=True):
        gpu.residents.append(resident)
    packing.placed[need.deployment] += 1
    return True


def _alone(gpu: GpuType, need: Need) -> list[Resident] | Obstacle:
    """A replica on GPUs of this type that it has to itself."""
    return fit([Gpu("", index, gpu) for index in range(need.num_gpus)], need)


def why_not(packing: Packing, need: Need) -> str:
    """Why no further replica of a deployment fits, and what would help."""
    if not packing.gpus:
        return "there is no GPU; device: cpu runs it without"
    types = {gpu.type.name: gpu.type for gpu in packing.gpus}
    usable = [t for t in types.values() if need.accelerator_type in (None, t.accelerator_type)]
    if not usable:
        have = ", ".join(sorted({gpu.accelerator_type for gpu in types.values()}))
        return f"no node has a {need.accelerator_type}; there are {have}"
    if need.undividable is not None:
        return need.undividable
    alone = [_alone(gpu, need) for gpu in usable]
    if not any(isinstance(residents, list) for residents in alone):
        return _too_large(packing, need, usable, "KV cache" in alone)
    most = max(node.num_gpus for node in packing.nodes if node.gpu in usable)
    if most < need.num_gpus:
        return (
            f"each replica wants {need.num_gpus} GPUs of one node; the largest that it may use "
            f"has {most}"
        )
    obstacles = [fit(gpus, need) for gpus in _choices(packing, need)]
    if "weights" in obstacles or "KV cache" in obstacles:
        return (
            "GPUs have a share free for it, but not the memory: the replica that loads first takes "
            f"{1 - KEPT_SHARE:.0%} of the free memory for its KV cache. Set engine.kv_cache_tokens "
            "of the deployments that share a GPU"
        )
    return f"all GPUs that it may use are taken; each replica wants {need.gpus:g}"


def _too_large(packing: Packing, need: Need, usable: Sequence[GpuType], weights_fit: bool) -> str:
    largest = max(usable, key=lambda gpu: gpu.memory)
    weights = max(part.weights for part in need.parts) / GIB
    on_each = " on each GPU" if need.num_gpus > 1 else ""
    of = f"the largest GPU that it may use, {largest.name} with {largest.memory_gib:g} GiB"
    more = _more_gpus(packing, need, usable)
    if weights_fit:
        return (
            f"{weights:.1f} GiB of weights{on_each} leave too little of {of}, for its KV cache: "
            f"lower engine.kv_cache_tokens, or quantize the weights (quantize_bits){more}"
        )
    return (
        f"{weights:.1f} GiB of weights{on_each} and {PROCESS_BYTES / GIB:g} GiB beside them do not "
        f"fit into {of}: quantize them (quantize_bits: 8 or 4), or use larger GPUs{more}"
    )


def _more_gpus(packing: Packing, need: Need, usable: Sequence[GpuType]) -> str:
    """How many GPUs of one node would hold a replica that is too large, as a clause; or nothing."""
    if need.split is None:
        return ""
    counts = range(need.num_gpus + 1, MOST_GPUS_OF_A_REPLICA + 1)
    larger = [replace(need, gpus=float(count)) for count in counts]
    fewest = {
        gpu: next(
            (each.num_gpus for each in larger if isinstance(_alone(gpu, each), list)),
            None,
        )
        for gpu in usable
    }
    found = [(count, gpu) for gpu, count in fewest.items() if count is not None]
    if not found:
        return ""
    in_node = {gpu: max(n.num_gpus for n in packing.nodes if n.gpu == gpu) for gpu in usable}
    here = [(count, gpu) for count, gpu in found if count <= in_node[gpu]]
    count, gpu = min(here or found, key=lambda pair: (pair[0], pair[1].memory))
    needs = f"; it needs {count} GPUs of {gpu.memory_gib:g} GiB ({gpu.name})"
    if here:
        return f"{needs}: set num_gpus: {count}"
    return f"{needs} in one node, and here are nodes with {in_node[gpu]}"


def misplaceable(packing: Packing, need: Need) -> list[GpuType]:
    """Types of GPUs on which Ray may place a replica although it does not fit there."""
    if need.device != "cuda" or not packing.placed[need.deployment]:
        return []
    types = {gpu.type.name: gpu.type for gpu in packing.gpus}
    return [gpu for gpu in types.values() if _alone(gpu, need) in ("weights", "KV cache")]


def tokens_per_s(need: Need, gpu: GpuType, rows: int, context: int) -> float | None:
    """Tokens a second that the GPU's memory bandwidth allows at most; None where unknown.

    A decode step reads the weights once, and the keys and values of ``rows`` sequences with
    ``context`` tokens each. The replica does not share its GPUs. If its layers are split over them,
    they read one after the other; if each layer is split, they read their parts at the same time.
    """
    if not need.decode_weights:
        return None
    read = need.decode_weights + rows * context * need.kv_per_token
    if need.split == "tensor":
        shared = need.sharded + rows * context * need.kv_per_token
        read -= shared - shared // need.num_gpus
    return rows * gpu.bandwidth_gb_s * 1e9 / read
