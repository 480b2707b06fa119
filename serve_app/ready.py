"""``python -m serve_app.ready serve_config.yaml``: waits for the server and says when it answers.

``serve run`` says that it has submitted the graph, seconds before anything answers, and no more.
While a model does not answer this says which, and why if that is known: once, until it changes.
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
    """Where a configuration serves, as a client on this machine writes it."""
    options = yaml.safe_load(config.read_text(encoding="utf-8")).get("http_options") or {}
    host = options.get("host", "127.0.0.1")
    # All interfaces are no address to connect to.
    reachable = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
    return f"http://{reachable}:{options.get('port', 8000)}"


def what_is_missing(address: str) -> str | None:
    """Why the server is not ready, in its own words; empty if it says nothing, None if it is."""
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
    """Poll until the server is ready, or until whoever started this is gone."""
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
