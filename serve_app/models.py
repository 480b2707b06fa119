"""``python -m serve_app.models [serve_config.yaml]``: what a running server serves, as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from schema.model_variant import ModelVariant
from serve_app.status import Command, run, title

GIB = 2**30


def main(arguments: list[str] | None = None, prog: str = "python -m serve_app.models") -> int:
    """Ask the server and print; returns the exit status."""
    command = Command(
        prog,
        __doc__,
        "no list of models",
        report=lambda now, _: table(now.models),
        problems=lambda _: [],  # only `status` has an exit status for them
        watches=False,
    )
    return run(command, arguments)


def table(models: Sequence[dict[str, Any]]) -> str:
    """A block of lines for each model; replicas with the same card share one."""
    return "\n\n".join(_block(model) for model in models) or "nothing is configured or loaded"


def _block(model: dict[str, Any]) -> str:
    replicas = model["replicas"]
    lines = [f"{title(model)}, {model['deployment']}"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for replica in replicas:
        key = json.dumps(replica.get("card") or replica.get("error"), sort_keys=True)
        groups.setdefault(key, []).append(replica)
    for group in groups.values():
        card = group[0].get("card")
        rows = _rows(card) if card else [("cannot load", group[0]["error"]["message"])]
        lines += [f"  {name:<14}{value}" for name, value in [*rows, ("replicas", len(group))]]
    if not replicas:
        idle = "not yet" if model["min_replicas"] else "it starts with its first task"
        lines.append(f"  no replica runs: {model.get('problem') or idle}")
    return "\n".join(lines)


def _rows(card: dict[str, Any]) -> list[tuple[str, object]]:
    memory = card["memory"]
    weights, cache = memory["weights_bytes"] / GIB, memory["kv_cache_bytes"] / GIB
    return [
        ("source", card["source"]),
        ("revision", card["revision"] or f"a directory, SHA-256 {card['weights'][:12]}"),
        ("dtype", card["dtype"]),
        ("quantization", ModelVariant.of(card).quantization or "none"),
        ("device", card["device"]),
        ("memory", f"{weights + cache:.3f} GiB: weights {weights:.3f}, KV cache {cache:.3f}"),
        ("context", f"{card['context_length']} tokens"),
        ("batching", _batching(card)),
        ("deterministic", f"{_yes(card)}: {card['deterministic_reason']}"),
        ("fingerprint", card["system_fingerprint"]),
        *(
            ("adapter", f"{name}: {_adapter(adapter)}")
            for name, adapter in card.get("adapters", {}).items()
        ),
    ]


def _adapter(card: dict[str, Any]) -> str:
    size = card["memory_bytes"] / GIB
    return (
        f"rank {card['rank']}, {size:.3f} GiB, from {card['source']}, {card['system_fingerprint']}"
    )


def _yes(card: dict[str, Any]) -> str:
    return "yes" if card["deterministic"] or not card["continuous_batching"] else "no"


def _batching(card: dict[str, Any]) -> str:
    if card["continuous_batching"]:
        return "continuous"
    return f"none, a task at a time: {card['fallback_reason']}"


if __name__ == "__main__":
    sys.exit(main())
