"""``python -m serve_app.ready serve_config.yaml``: waits for the server and says when it answers.

``serve run`` only reports that it has submitted the graph, seconds before a model answers. This
command prints which models do not answer yet, and why if that is known, when that changes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import time
from pathlib import Path

import yaml

POLL_S, GROWTH, MAX_POLL_S = 0.5, 1.4, 2.0


def address_of(config: Path) -> str:
    """The address of a configuration's server, for a client on this machine."""
    options = yaml.safe_load(config.read_text(encoding="utf-8")).get("http_options") or {}
    host = options.get("host", "127.0.0.1")
    # "All interfaces" is not an address that a client can connect to.
    reachable = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
    return f"http://{reachable}:{options.get('port', 8000)}"


def what_is_missing(address: str) -> str | None:
    """The server's own message about why it is not ready; empty if it has none, None if ready."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    if response.status == http.HTTPStatus.OK:
        return None
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ""  # Ray's proxy, before it knows the application


def main() -> None:
    """Poll until the server is ready, or until the parent process has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    address = address_of(parser.parse_args().config)
    parent = os.getppid()
    said, pause = "", POLL_S
    try:
        while (missing := what_is_missing(address)) is not None:
            if os.getppid() != parent:
                return
            if missing and missing != said:
                print(f"not ready: {missing}", flush=True)
                said = missing
            time.sleep(pause)
            if missing:  # Ray writes lines for each answer
                pause = min(pause * GROWTH, MAX_POLL_S)
    except KeyboardInterrupt:
        return
    print(f"ready: {address}", flush=True)


if __name__ == "__main__":
    main()
