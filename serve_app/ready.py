"""``python -m serve_app.ready serve_config.yaml``: waits for the server and says when it answers.

``serve run`` says that it has submitted the graph, seconds before anything answers, and no more.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import time
from pathlib import Path

import yaml

POLL_S = 0.5


def address_of(config: Path) -> str:
    """Where a configuration serves, as a client on this machine writes it."""
    options = yaml.safe_load(config.read_text(encoding="utf-8")).get("http_options") or {}
    host = options.get("host", "127.0.0.1")
    # All interfaces are no address to connect to.
    reachable = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
    return f"http://{reachable}:{options.get('port', 8000)}"


def is_ready(address: str) -> bool:
    """Whether every model that is always on answers."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    """Poll until the server is ready, or until whoever started this is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    address = address_of(parser.parse_args().config)
    parent = os.getppid()
    try:
        while not is_ready(address):
            if os.getppid() != parent:
                return
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return
    sys.stdout.write(f"ready: {address}\n")


if __name__ == "__main__":
    main()
