"""Which replica fits on which GPU: first the replicas that are always on, then as many as may be.

Ray decides where replicas go, by shares of GPUs and types only; it does not look at memory. This
finds one way that fits memory too, and says where Ray could choose another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cluster.gpus import GIB, GpuType, Node
from cluster.needs import Need
from engine.lanes import CUDA_FREE_SHARE

# What a replica takes beside weights and KV cache: CUDA's context, workspaces of libraries,
# activations. An assumption, of the size that other engines report; nothing here has measured it.
PROCESS_BYTES = GIB
# A KV cache that holds less serves hardly any task.
LEAST_KV_TOKENS = 2048
_EPSILON = 1e-9  # shares like 0.3 do not add up exactly


@dataclass(frozen=True)
class Resident:
    """A replica on a GPU, in bytes."""

    need: Need
    weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        """All that it takes."""
        return PROCESS_BYTES + self.weights + self.kv_cache

    @property
    def kv_tokens(self) -> int:
        """Tokens that its KV cache holds; 0 where nobody knows."""
        return self.kv_cache // self.need.kv_per_token if self.need.kv_per_token else 0


@dataclass
class Gpu:
    """One GPU of a node, and who lives on it."""

    node: str
    index: int
    type: GpuType
    residents: list[Resident] = field(default_factory=list)

    @property
    def free_share(self) -> float:
        """What Ray can still give away of it."""
        return 1.0 - sum(resident.need.gpus for resident in self.residents)

    @property
    def free(self) -> int:
        """Bytes that nobody takes."""
        return self.type.memory - sum(resident.total for resident in self.residents)

    def takes(self, need: Need) -> Resident | str:
        """The replica as it would live here beside the others, or why it cannot."""
        if need.accelerator_type not in (None, self.type.accelerator_type):
            return f"no {need.accelerator_type}"
        if need.gpus > self.free_share + _EPSILON:
            return "taken"
        if need.weights is None:
            return Resident(need, 0, 0)
        room = self.free - PROCESS_BYTES - need.weights
        if room < 0:
            return "weights"
        kv_cache = need.kv_tokens * need.kv_per_token
        if not need.kv_is_fixed:
            # The engine takes so much of what it finds free, unless it can use less.
            kv_cache = min(kv_cache, int(CUDA_FREE_SHARE * room))
        least = min(need.context_length, LEAST_KV_TOKENS) * need.kv_per_token
        if kv_cache > room or (not need.kv_is_fixed and kv_cache < least):
            return "KV cache"
        return Resident(need, need.weights, kv_cache)


@dataclass
class Packing:
    """What fits where. ``placed`` counts the replicas of each deployment."""

    nodes: list[Node]
    needs: list[Need]
    gpus: list[Gpu]
    placed: Counter[str] = field(default_factory=Counter)

    def missing(self) -> Iterator[tuple[Need, int]]:
        """Deployments with fewer replicas than are always on, and how many those are short of.

        One that may scale to zero needs room for one replica all the same.
        """
        for need in self.needs:
            short = max(1, need.min_replicas) - self.placed[need.deployment]
            if need.device == "cuda" and short > 0:
                yield need, short


def pack(nodes: Sequence[Node], needs: Sequence[Need]) -> Packing:
    """Place the replicas that are always on, then further ones in turns."""
    gpus = [Gpu(n.name, i, n.gpu, []) for n in nodes if n.gpu for i in range(n.num_gpus)]
    packing = Packing(list(nodes), list(needs), gpus)
    # The choosiest first: of one type only, then large shares, then large weights.
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


def _place(packing: Packing, need: Need) -> bool:
    """Put one replica on the GPU that it fills best; False if it fits on none."""
    fitting = [
        (gpu, resident) for gpu in packing.gpus if isinstance(resident := gpu.takes(need), Resident)
    ]
    if not fitting:
        return False
    gpu, resident = min(fitting, key=lambda pair: (pair[0].free_share, pair[0].type.memory))
    gpu.residents.append(resident)
    packing.placed[need.deployment] += 1
    return True


def why_not(packing: Packing, need: Need) -> str:
    """Why no further replica of a deployment fits, and what would help."""
    reasons = [gpu.takes(need) for gpu in packing.gpus]
    types = sorted({gpu.type.accelerator_type for gpu in packing.gpus})
    if not packing.gpus:
        return "there is no GPU; device: cpu runs it without"
    if need.accelerator_type is not None and need.accelerator_type not in types:
        return f"no node has a {need.accelerator_type}; there are {', '.join(types)}"
    alone = [Gpu(gpu.node, gpu.index, gpu.type).takes(need) for gpu in packing.gpus]
    if not any(isinstance(resident, Resident) for resident in alone):
        return _too_large(packing, need, "KV cache" in alone)
    if "weights" in reasons or "KV cache" in reasons:
        return (
            "GPUs have a share free for it, but not the memory: whoever loads first takes "
            f"{CUDA_FREE_SHARE:.0%} of what is free for its KV cache. Set engine.kv_cache_tokens "
            "of the deployments that share a GPU"
        )
    return f"all GPUs that it may use are taken; each replica wants {need.gpus:g}"


def _too_large(packing: Packing, need: Need, weights_fit: bool) -> str:
    largest = max(
        (
            gpu.type
            for gpu in packing.gpus
            if need.accelerator_type in (None, gpu.type.accelerator_type)
        ),
        key=lambda gpu: gpu.memory,
    )
    weights = (need.weights or 0) / GIB
    of = f"the largest GPU that it may use, {largest.name} with {largest.memory_gib:g} GiB"
    if weights_fit:
        return (
            f"{weights:.1f} GiB of weights leave too little of {of}, for its KV cache: lower "
            "engine.kv_cache_tokens, or quantize the weights (quantize_bits)"
        )
    return (
        f"{weights:.1f} GiB of weights and {PROCESS_BYTES / GIB:g} GiB beside them do not fit into "
        f"{of}: quantize them (quantize_bits: 8 or 4), or use larger GPUs"
    )


def misplaceable(packing: Packing, need: Need) -> list[GpuType]:
    """Types of GPUs to which Ray may send a replica although it cannot live there."""
    if need.device != "cuda" or not packing.placed[need.deployment]:
        return []
    types = {gpu.type.name: gpu.type for gpu in packing.gpus}
    return [gpu for gpu in types.values() if Gpu("", 0, gpu).takes(need) in ("weights", "KV cache")]


def tokens_per_s(need: Need, gpu: GpuType, rows: int, context: int) -> float | None:
    """Tokens a second that the GPU's memory bandwidth allows at most; None where unknown.

    A decode step reads the weights once, and the keys and values of ``rows`` sequences that have
    ``context`` tokens behind them. The replica has the GPU to itself.
    """
    if not need.decode_weights:
        return None
    read = need.decode_weights + rows * context * need.kv_per_token
    return rows * gpu.bandwidth_gb_s * 1e9 / read
