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

POLL_S, GROWTH, MAX_POLL_S = 0.25, 1.4, 1.0


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


class Watch:
    """Asks a server again and again whether it is ready, and prints what it says when that changes.

    Attributes:
        pause_s: how long to wait before the next question.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._said = ""
        self.pause_s = POLL_S

    def is_ready(self) -> bool:
        """Ask once."""
        missing = what_is_missing(self._address)
        if missing is None:
            print(f"ready: {self._address}", flush=True)
            return True
        if missing and missing != self._said:
            print(f"not ready: {missing}", flush=True)
            self._said = missing
        if missing:  # Ray writes lines for each answer
            self.pause_s = min(self.pause_s * GROWTH, MAX_POLL_S)
        return False


def main() -> None:
    """Poll until the server is ready, or until the parent process has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    watch = Watch(address_of(parser.parse_args().config))
    parent = os.getppid()
    try:
        while not watch.is_ready() and os.getppid() == parent:
            time.sleep(watch.pause_s)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
