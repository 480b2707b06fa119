"""What one replica of each deployment needs: GPUs, weights, KV cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from engine.loading.estimate import estimate_memory
from engine.loading.sharding.layer_split import balanced
from engine.quantization.registry import quantization
from schema.errors import ModelNotDownloaded, TaskError
from serve_app.app import place
from serve_app.config.app_args import BYTES_PER_GB, AppArgs, ModelArgs, PoolArgs

Parameters = Mapping[str, float]
"""Parameters of models, by id, for those that are not on this machine."""

_HINT = re.compile(r"([^=]+)=(\d+(?:\.\d+)?(?:[eE]\d+)?)([BMbm]?)")
_SCALE = {"": 1.0, "m": 1e6, "b": 1e9}
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "auto": 2.0}


@dataclass(frozen=True)
class Part:
    """What one GPU of a replica has, in bytes."""

    weights: int
    kv_per_token: int


@dataclass(frozen=True)
class Need:
    """What one replica of a deployment needs, in bytes and tokens.

    Attributes:
        deployment: its name.
        device: where its replicas run.
        gpus: GPUs, which are of one node, or the share of one, that Ray gives each; 0 on a CPU.
        accelerator_type: the only type that they run on, if there is one.
        min_replicas: always on; 0 starts with the first task.
        max_replicas: at most.
        weights: None where unknown.
        decode_weights: the part of them that decoding a token reads.
        kv_per_token: 0 where unknown.
        kv_tokens: that the KV cache has, or may have at most if it is not ``kv_is_fixed``.
        kv_is_fixed: the configuration says ``kv_cache_tokens``.
        context_length: longest prompt plus answer; 0 where unknown.
        max_sequences: answers that are generated at once.
        unknown: why the weights are not known.
        split: how it is divided over more than one GPU; None if it cannot be.
        layers: of ``weights``, those of each decoder layer; empty where unknown.
        head: of ``weights``, the language model head's, if it is not part of something else.
        kv_heads: key/value heads; 0 where unknown.
    """

    deployment: str
    device: Literal["cpu", "cuda"]
    gpus: float
    accelerator_type: str | None
    min_replicas: int
    max_replicas: int
    weights: int | None = None
    decode_weights: int = 0
    kv_per_token: int = 0
    kv_tokens: int = 0
    kv_is_fixed: bool = False
    context_length: int = 0
    max_sequences: int = 0
    unknown: str | None = None
    split: Literal["tensor", "layers"] | None = None
    layers: tuple[int, ...] = ()
    head: int = 0
    kv_heads: int = 0

    @property
    def num_gpus(self) -> int:
        """The number of GPUs of a replica."""
        return max(1, int(self.gpus))

    @property
    def share(self) -> float:
        """Its share of each of them."""
        return min(1.0, self.gpus)

    @property
    def undividable(self) -> str | None:
        """Why it cannot be divided over its GPUs; None if it can."""
        num = self.num_gpus
        if num == 1:
            return None
        if self.split is None:
            return f"it cannot be divided over {num} GPUs"
        if self.split == "layers" and self.layers and len(self.layers) < num:
            return f"it has {len(self.layers)} layers, which {num} GPUs cannot share"
        if self.split == "tensor" and self.kv_heads % num:
            return (
                f"its {self.kv_heads} key/value heads do not divide among {num} GPUs: set another "
                "num_gpus, or split: layers"
            )
        return None

    @property
    def sharded(self) -> int:
        """The part of the weights that tensor parallelism divides; the rest is on every GPU."""
        return sum(self.layers) + self.head if self.layers else self.weights or 0

    @cached_property
    def parts(self) -> list[Part]:
        """What lies on each GPU of a replica that is not `undividable`."""
        num, weights = self.num_gpus, self.weights or 0
        if num == 1:
            return [Part(weights, self.kv_per_token)]
        if self.split == "layers" and self.layers:
            rest = weights - sum(self.layers)
            parts = [
                Part(sum(self.layers[a:b]), self.kv_per_token * (b - a) // len(self.layers))
                for a, b in pairwise(balanced(rest, self.layers, num))
            ]
            return [replace(parts[0], weights=parts[0].weights + rest), *parts[1:]]
        each = weights - self.sharded + self.sharded // num
        return [Part(each, self.kv_per_token // num)] * num


def parse_parameters(texts: list[str]) -> dict[str, float]:
    """Hints of the form ``ID=8e9`` or ``ID=8B``.

    Raises:
        ValueError: one is not of that form.
    """
    hints = {}
    for text in texts:
        match = _HINT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} must be ID=PARAMETERS, such as org/name=8e9 or org/name=8B")
        hints[match[1]] = float(match[2]) * _SCALE[match[3].lower()]
    return hints


def needs_of(args: AppArgs, gpus: float, parameters: Parameters) -> list[Need]:
    """The needs of all deployments, in the operator's order, in a cluster with ``gpus`` GPUs.

    Blocking: asks the hub for headers of models that are not here, unless ``HF_HUB_OFFLINE=1``.
    """
    needs = []
    for owner, device in zip(args.deployments, place(args.deployments, gpus), strict=True):
        need = Need(
            owner.deployment,
            device,
            owner.gpus_per_replica if device == "cuda" else 0.0,
            owner.accelerator_type,
            owner.min_replicas,
            owner.max_replicas,
        )
        if isinstance(owner, PoolArgs):
            needs.append(_of_pool(need, owner))
        else:
            assert isinstance(owner, ModelArgs)
            needs.append(_of_model(need, owner, parameters))
    return needs


def _of_pool(need: Need, pool: PoolArgs) -> Need:
    # The budget holds weights and KV caches; how it is divided is decided by the tasks.
    return replace(need, weights=int(pool.max_memory_gb * BYTES_PER_GB))


def _of_model(need: Need, model: ModelArgs, parameters: Parameters) -> Need:
    config = model.engine_config(device=need.device)
    need = replace(
        need,
        max_sequences=config.max_sequences,
        split="tensor" if config.replace(num_devices=2).tensor_parallel else "layers",
    )
    if model.id in parameters:
        quantized = quantization(model.quantize_bits)
        each = _BYTES[model.dtype] if quantized is None else quantized.bytes_per_weight
        weights = int(parameters[model.id] * each)
        return replace(need, weights=weights, decode_weights=weights)
    try:
        try:
            estimate = estimate_memory(config)
        except ModelNotDownloaded:
            estimate = estimate_memory(config, from_config=True)
    except TaskError as error:
        return replace(need, unknown=str(error))
    context = estimate.context_length
    return replace(
        need,
        weights=estimate.weights + estimate.states + estimate.adapters,
        decode_weights=estimate.decode_weights,
        kv_per_token=estimate.kv_per_token,
        kv_tokens=config.kv_cache_tokens or config.max_sequences * context,
        kv_is_fixed=config.kv_cache_tokens is not None,
        context_length=context,
        layers=estimate.layers,
        head=estimate.head,
        kv_heads=estimate.kv_heads,
    )
