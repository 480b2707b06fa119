"""A host of images that the running server fetches from: Python's own HTTP server."""

import queue
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from serve_app.config.app_args import REPOSITORY

IMAGES = REPOSITORY / "demo" / "images"
PATIENCE_S = 120.0


class ImageHost:
    """Serves the demo's images, and ``/silence``, which never answers.

    Attributes:
        left: gets an entry for each client that has left ``/silence``.
    """

    def __init__(self) -> None:
        self.left: queue.Queue[str] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, left=self.left))
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, left: queue.Queue[str]) -> None:
        self._left = left
        super().__init__(*args, directory=str(IMAGES))

    def do_GET(self) -> None:
        if self.path != "/silence":
            super().do_GET()
            return
        connection: socket.socket = self.connection
        connection.settimeout(PATIENCE_S)
        if connection.recv(1) == b"":  # the client closes the connection
            self._left.put(self.path)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
