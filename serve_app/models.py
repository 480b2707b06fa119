"""``python -m serve_app.models [serve_config.yaml]``: what a running server serves, as a table."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence
from typing import Any

from schema.model_variant import ModelVariant
from serve_app.console import models_of, server_parser

GIB = 2**30


def main(arguments: list[str] | None = None) -> int:
    """Ask the server and print; returns the exit status."""
    options = server_parser("serve_app.models", __doc__).parse_args(arguments)
    try:
        listed = models_of(options)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"no list of models: {error}", file=sys.stderr)
        return 1
    print(json.dumps(listed, indent=2) if options.json else table(listed["data"]))
    return 0


def table(models: Sequence[dict[str, Any]]) -> str:
    """A block of lines for each model; replicas with the same card share one."""
    return "\n\n".join(_block(model) for model in models) or "nothing is configured or loaded"


def _block(model: dict[str, Any]) -> str:
    replicas = model["replicas"]
    lines = [_title(model)]
    told: dict[str, list[dict[str, Any]]] = {}
    for replica in replicas:
        key = json.dumps(replica.get("card") or replica.get("error"), sort_keys=True)
        told.setdefault(key, []).append(replica)
    for group in told.values():
        card = group[0].get("card")
        rows = _rows(card) if card else [("cannot load", group[0]["error"]["message"])]
        lines += [f"  {name:<14}{value}" for name, value in [*rows, ("replicas", len(group))]]
    if not replicas:
        idle = "not yet" if model["min_replicas"] else "it starts with its first task"
        lines.append(f"  no replica runs: {model.get('problem') or idle}")
    return "\n".join(lines)


def _title(model: dict[str, Any]) -> str:
    return f"{ModelVariant.of(model)}, {model['deployment']}"


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
        ("lanes", ", ".join(card["lanes"])),
        ("deterministic", f"{_yes(card)}: {card['deterministic_reason']}"),
        ("fingerprint", card["system_fingerprint"]),
    ]


def _yes(card: dict[str, Any]) -> str:
    return "yes" if card["deterministic"] or "batched" not in card["lanes"] else "no"


if __name__ == "__main__":
    sys.exit(main())
