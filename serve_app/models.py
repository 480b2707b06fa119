"""``python -m serve_app.models [serve_config.yaml]``: what a running server serves, as a table."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve_app.ready import address_of

TIMEOUT_S = 30.0
GIB = 2**30


def main(arguments: list[str] | None = None) -> int:
    """Ask the server and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.models", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    parser.add_argument("--address", help="such as http://127.0.0.1:8000; else from CONFIG")
    parser.add_argument("--json", action="store_true", help="the answer of GET /v1/models itself")
    options = parser.parse_args(arguments)
    try:
        address = options.address or address_of(options.config)
        listed = fetch(address)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"no list of models: {error}", file=sys.stderr)
        return 1
    print(json.dumps(listed, indent=2) if options.json else table(listed["data"]))
    return 0


def fetch(address: str) -> dict[str, Any]:
    """The answer of ``GET /v1/models``.

    Raises:
        ValueError: the address is none, or something else answers there.
        OSError, http.client.HTTPException: nobody answers.
    """
    url = urlsplit(address if "//" in address else f"//{address}")
    if url.scheme not in ("", "http") or url.hostname is None:
        raise ValueError(f"{address!r} is no address such as http://127.0.0.1:8000")
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{url.path.rstrip('/')}/v1/models")
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    try:
        listed = json.loads(body) if response.status == http.HTTPStatus.OK else None
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise ValueError(f"{address} answers {response.status} and is not this server")
    return listed


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
        lines.append("  no replica runs: it starts with its first task")
    return "\n".join(lines)


def _title(model: dict[str, Any]) -> str:
    bits = "" if model["quantize_bits"] is None else f", INT{model['quantize_bits']}"
    return f"{model['id']} ({model['dtype']}{bits}), {model['deployment']}"


def _rows(card: dict[str, Any]) -> list[tuple[str, object]]:
    memory = card["memory"]
    weights, cache = memory["weights_bytes"] / GIB, memory["kv_cache_bytes"] / GIB
    bits = card["quantize_bits"]
    return [
        ("source", card["source"]),
        ("revision", card["revision"] or f"a directory, SHA-256 {card['weights'][:12]}"),
        ("dtype", card["dtype"]),
        ("quantization", "none" if bits is None else f"INT{bits}"),
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
