"""The description of a loaded model, for people and for comparison between machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.execution.batching import ContinuousBatching
from engine.execution.modules.experts import Experts, expert_counts
from engine.execution.modules.int8_product import is_int8
from engine.execution.modules.lora import loras
from engine.execution.modules.prepack import PackedLinear
from engine.loading.loaded_model import LoadedModel
from engine.platform.platforms import platform_of
from engine.requests.prompt import PromptRenderer
from schema.generation import DEFAULT_MAX_NEW_TOKENS

_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt"}
_LIBRARIES = (
    *("torch", "transformers", "tokenizers", "pillow", "bitsandbytes", "llguidance", "numba"),
)


def weights_digest(config: EngineConfig, loaded: LoadedModel) -> str:
    """The version of the model's files: a commit of the hub, or a digest of a directory.

    The digest reads the weights once more, through the page cache. It does not use torch, so it may
    run on another thread beside code that does.
    """
    if loaded.gguf is not None and loaded.revision is not None:
        return f"{loaded.revision}:{loaded.gguf}"  # others of the repository are other models
    return loaded.revision or _digest(Path(config.model), loaded.gguf)


def _digest(model: Path, gguf: str | None) -> str:
    """SHA-256 over the files of a local model that its answers depend on."""
    if gguf is not None:
        files = [model if model.is_file() else model / gguf]
    else:
        files = sorted(path for path in model.iterdir() if path.suffix in _MODEL_SUFFIXES)
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weight_bytes(model: Any) -> int:
    """Bytes of a loaded model's weights: shared ones once, quantized ones as they are stored."""
    seen: dict[int, int] = {}
    for tensor in _tensors(model):
        seen[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    for module in model.modules():
        if isinstance(module, PackedLinear | Experts):
            yield from module.stored()
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
                yield from _scales(tensor)


def _scales(weight: Any) -> Iterator[torch.Tensor]:
    """What bitsandbytes keeps beside a quantized weight."""
    state = getattr(weight, "quant_state", None)
    while state is not None:  # the scales may be quantized in their turn
        yield state.absmax
        yield state.code
        state = state.state2
    if (scales := getattr(weight, "SCB", None)) is not None:
        yield scales


def model_card(
    config: EngineConfig,
    loaded: LoadedModel,
    batching: ContinuousBatching,
    renderer: PromptRenderer,
    weights: str,
) -> dict[str, Any]:
    """A JSON-able description of the engine.

    ``system_fingerprint`` covers everything in ``arithmetic``, the model's files included: two
    engines with the same fingerprint give the same bytes. ``weights`` is of `weights_digest`. Each
    of ``adapters`` has a fingerprint of its own, which covers its files too.
    """
    formats = renderer.formats
    platform = platform_of(loaded.device)
    spread = loaded.spread
    devices = [stage.device for stage in spread.stages] if spread else [loaded.device]
    arithmetic: dict[str, Any] = {
        "weights": weights,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "quantize_bits": config.quantize_bits,
        "device": " and ".join(dict.fromkeys(platform.device_name(each) for each in devices)),
        **platform.arithmetic(devices),
        "threads": platform.compute_threads(),
        "deterministic": config.deterministic,
        "prefill_chunk": batching.prefill_chunk,
        "attention": batching.attention,
        "prepacked": batching.prepacked,
        "compiled": batching.compiled.card(),
        "batch_sizes": batching.batch_sizes
        and {"decode": batching.batch_sizes.decode, "prefill": batching.batch_sizes.prefill},
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    arithmetic |= _computed_by(loaded.model)
    if loaded.gguf is not None:
        arithmetic["libraries"]["gguf"] = version("gguf")
    if loaded.checkpoint.quantization is not None:
        # What it was made of is in the weights' digest; this is how.
        arithmetic["checkpoint"] = loaded.checkpoint.card()
    if counts := expert_counts(loaded.model):
        arithmetic["expert_rows"] = counts
    if config.default_max_new_tokens != DEFAULT_MAX_NEW_TOKENS:
        arithmetic["default_max_new_tokens"] = config.default_max_new_tokens
    if config.layout is not None:
        arithmetic["layout"] = spread.name if spread else config.layout
    # Hashed under its first name: a fingerprint changes with the arithmetic, and not with a word.
    hashed = {"row_counts" if name == "batch_sizes" else name: v for name, v in arithmetic.items()}
    return {
        "id": config.name,
        "source": config.model,
        "revision": loaded.revision,
        "system_fingerprint": _fingerprint(hashed),
        "adapters": _adapters(loaded, hashed),
        "checkpoint": loaded.checkpoint.card(),
        "takes_images": loaded.takes_images,
        **renderer.card(),
        "tool_format": formats.tools.name if formats.tools else None,
        "reasoning_format": formats.reasoning.name if formats.reasoning else None,
        "context_length": loaded.context_length,
        "max_sequences": config.max_sequences,
        "kv_cache_tokens": batching.cache.capacity_tokens,
        "num_devices": config.num_devices,
        "layout": config.layout,
        "memory": {  # of this rank, as all are alike; of all devices if layers are split
            "weights_bytes": weight_bytes(loaded.model),
            "kv_cache_bytes": batching.cache.num_bytes,
            "states_bytes": batching.states.num_bytes,
        },
        "continuous_batching": batching.problem is None,
        "speculation": _speculation(config, batching),
        "fallback_reason": batching.problem,
        "deterministic_reason": _why(config, batching),
        **arithmetic,
    }


def _computed_by(model: Any) -> dict[str, list[str]]:
    """What computes products with weights for which there are several ways, by their dtype.

    Our kernels (``vnni``, ``avx512_bf16``), bitsandbytes or oneDNN; for bfloat16 only what is
    packed counts.
    """
    found: dict[str, set[str]] = {"int8": set(), "bfloat16": set()}
    for module in model.modules():
        if is_int8(module):
            found["int8"].add("bitsandbytes")
        elif isinstance(module, PackedLinear | Experts):
            for each in module.packed():
                name = str(each.dtype).removeprefix("torch.")
                found.get(name, set()).add(each.computed_by)
    return {f"{name}_products": sorted(ways) for name, ways in found.items() if ways}


def _adapters(loaded: LoadedModel, hashed: dict[str, Any]) -> dict[str, Any]:
    """The adapters that tasks may name; ``hashed`` is what the model's own fingerprint covers."""
    own = loras(loaded.model)
    return {
        name: {
            "source": adapter.source,
            "revision": adapter.revision,
            "weights": adapter.digest,
            "rank": adapter.rank,
            "memory_bytes": adapter.num_bytes,
            "system_fingerprint": _fingerprint(
                hashed | {"adapter": adapter.digest, "adapter_rows": own.counts_of(adapter)}
            ),
        }
        for name, adapter in loaded.adapters.items()
    }


def _fingerprint(hashed: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    return f"fp_{digest[:12]}"


def _speculation(config: EngineConfig, batching: ContinuousBatching) -> str:
    """Whether next tokens are guessed. It needs decode steps whose bits do not change with rows."""
    can = batching.problem is None and config.deterministic
    return config.speculation if can else "off"


def _why(config: EngineConfig, batching: ContinuousBatching) -> str:
    """Why the same task gives the same bytes here, or may not."""
    if not config.deterministic:
        return (
            "deterministic is off: batch sizes depend on the load, so an answer may depend on "
            "other requests in the batch"
        )
    if batching.problem is not None or batching.batch_sizes is None:
        return f"each task runs alone on the device, because {batching.problem}"
    return "every forward has a batch size that was measured, at load, to give the same bits"
