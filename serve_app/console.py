"""What the commands that ask a running server share: their arguments, and the question."""

from __future__ import annotations

import argparse
import http.client
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve_app.ready import address_of

TIMEOUT_S = 30.0
KEY_VARIABLE = "API_KEY"


def server_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The arguments that say which server is asked, and by whom."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    parser.add_argument("--address", help="such as http://127.0.0.1:8000; else from CONFIG")
    parser.add_argument(
        "--key",
        default=os.environ.get(KEY_VARIABLE),
        help=f"where the server asks for keys; better in the environment, as {KEY_VARIABLE}: other "
        "users of this machine can read arguments",
    )
    parser.add_argument("--json", action="store_true", help="the answer of GET /v1/models itself")
    return parser


def models_of(options: argparse.Namespace) -> dict[str, Any]:
    """The answer of ``GET /v1/models`` of the server that the arguments name.

    Raises:
        ValueError: the address is none, the key is refused, or something else answers there.
        OSError, http.client.HTTPException: nobody answers.
    """
    if options.address is None and "//" in str(options.config).replace(":/", "://"):
        raise ValueError(f"{options.config} is no file; use --address for the server's address")
    address = options.address or address_of(options.config)
    url = urlsplit(address if "//" in address else f"//{address}")
    if url.scheme not in ("", "http") or url.hostname is None:
        raise ValueError(f"{address!r} is no address such as http://127.0.0.1:8000")
    if options.key and not (options.key.isascii() and options.key.isprintable()):
        raise ValueError("the key has characters that no key has")
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_S)
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    try:
        connection.request("GET", f"{url.path.rstrip('/')}/v1/models", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except ConnectionRefusedError:
        raise ValueError(f"nobody answers at {address}; --address names another server") from None
    finally:
        connection.close()
    if response.status == http.HTTPStatus.UNAUTHORIZED:
        raise ValueError(f"{address} asks for a key, or for another one: --key or {KEY_VARIABLE}")
    try:
        listed = json.loads(body) if response.status == http.HTTPStatus.OK else None
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise ValueError(f"{address} answers {response.status} and is not this server")
    return listed
