"""The requests of frameworks, as files."""

from __future__ import annotations

import json
from typing import Any

from tests.serve_app.clients.frameworks import HERE, Framework
from tests.serve_app.clients.recorder import Exchange

# Headers that say something of the client, or that the server may read.
_HEADERS = {"accept", "content-type", "user-agent", "authorization", "x-api-key"}
_PREFIXES = ("openai-", "anthropic-")


def write(framework: Framework, exchanges: list[Exchange]) -> None:
    """Write a framework's requests to ``recorded/NAME.json``."""
    found = {
        "framework": framework.title,
        "package": framework.package,
        "version": framework.version,
        "requests": [_request(exchange) for exchange in exchanges],
    }
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (HERE / f"recorded/{framework.name}.json").write_text(text, encoding="utf-8")


def recorded(framework: Framework) -> Any:
    """What `write` has written."""
    return json.loads((HERE / f"recorded/{framework.name}.json").read_text(encoding="utf-8"))


def _request(exchange: Exchange) -> dict[str, Any]:
    headers = {
        name: value
        for name, value in sorted(exchange.headers.items())
        if name in _HEADERS or name.startswith(_PREFIXES)
    }
    return {
        "method": exchange.method,
        "path": exchange.path,
        "headers": headers,
        "body": exchange.body,
        "status": exchange.status,
    }
