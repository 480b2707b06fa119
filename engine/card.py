"""What a loaded model is, for people and for comparison between machines."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

import torch

from engine.config import EngineConfig
from engine.loader import LoadedModel
from engine.runner import RowCounts

_LIBRARIES = ("torch", "transformers", "bitsandbytes")


def device_name(device: torch.device) -> str:
    """The kind of device, as its driver or kernel names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def model_card(
    config: EngineConfig,
    loaded: LoadedModel,
    row_counts: RowCounts | None,
    *,
    exclusive_reason: str | None,
    kv_cache_tokens: int,
) -> dict[str, Any]:
    """A JSON-able description of the engine.

    ``system_fingerprint`` covers everything in ``arithmetic``: two engines that serve the same
    weights and have the same fingerprint give the same bytes.
    """
    arithmetic = {
        "source": config.model,
        "revision": loaded.revision,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "quantize_bits": config.quantize_bits,
        "device": device_name(loaded.device),
        "threads": torch.get_num_threads() if loaded.device.type == "cpu" else None,
        "prefill_chunk": config.prefill_chunk,
        "row_counts": row_counts and {"decode": row_counts.decode, "prefill": row_counts.prefill},
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    digest = hashlib.sha256(json.dumps(arithmetic, sort_keys=True).encode()).hexdigest()
    return {
        "id": config.name,
        "system_fingerprint": f"fp_{digest[:12]}",
        "takes_images": loaded.takes_images,
        "context_length": loaded.context_length,
        "max_sequences": config.max_sequences,
        "kv_cache_tokens": kv_cache_tokens,
        "lanes": ["exclusive"] if exclusive_reason else ["batched", "exclusive"],
        "exclusive_reason": exclusive_reason,
        **arithmetic,
    }
