"""Hosts of images on this machine, good and bad ones, and a name service for them."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from schema.errors import TaskArgsInvalid, TaskError
from serve_app.config.app_args import REPOSITORY
from serve_app.config.image_url_args import ImageUrlArgs
from serve_app.replicas.images.fetch import Fetcher
from serve_app.replicas.images.image_sources import load_images

IMAGE = (REPOSITORY / "demo" / "images" / "red_circle.png").read_bytes()
OTHER = (REPOSITORY / "demo" / "images" / "blue_star.png").read_bytes()

PARAM = "messages.0.content.1.base64"
OPEN, CLOSED = "127.0.0.1", "127.0.0.2"
"""Loopback addresses: the first stands for a public address, the second for a private one."""


@dataclass
class Names:
    """A name service: each name has answers that come one after the other; the last one stays."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("no such name")
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass
class Hosts:
    """One application, which listens on both addresses at one port and records its requests."""

    port: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str, host: str = "images.test", scheme: str = "http") -> str:
        """An address of this application."""
        return f"{scheme}://{host}:{self.port}{path}"

    def args(self, **fields: Any) -> ImageUrlArgs:
        """A configuration that allows the first of the addresses."""
        return ImageUrlArgs.model_validate(
            {
                "allow_hosts": [f"images.test:{self.port}", f"*.example.test:{self.port}"],
                "allow_http": True,
                "allow_networks": [f"{OPEN}/32"],
            }
            | fields
        )

    def fetcher(self, names: Names, tls: ssl.SSLContext | bool = True, **fields: Any) -> Fetcher:
        """A fetcher with that configuration, which asks ``names``."""
        return Fetcher(self.args(**fields), names, tls)

    @property
    def reached_closed(self) -> bool:
        """Whether the private address has got a request."""
        return any(address == CLOSED for address, _ in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Does what the path says."""
        assert request.transport is not None
        self.seen.append((request.transport.get_extra_info("sockname")[0], request.path))
        self.headers.append(dict(request.headers))
        return await _ACTS[request.path.split("/")[1]](self, request)


async def _image(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    body = OTHER if request.path.endswith("other.png") else IMAGE
    # The content type does not matter.
    return web.Response(body=body, content_type="text/plain", headers={"Set-Cookie": "a=b"})


async def _redirect(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    # Unchanged, even if it is not a URL.
    return web.Response(
        status=int(request.query.get("status", 302)), headers={"Location": request.query["to"]}
    )


async def _status(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    return web.Response(status=int(request.path.split("/")[2]), body=IMAGE)


async def _packed(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    body = gzip.compress(bytes(10_000_000))
    return web.Response(body=body, headers={"Content-Encoding": "gzip"})


async def _huge(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    # Announced and never sent: a client that ignores the length waits for the deadline.
    response = web.StreamResponse(headers={"Content-Length": "10000000000"})
    await response.prepare(request)
    return await _silence(hosts, request)


async def _endless(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    return await _pour(hosts, response, bytes(65536))


async def _slow(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    return await _pour(hosts, response, b"a", pause=0.01)


async def _silence(hosts: Hosts, request: web.Request) -> web.StreamResponse:
    hosts.waiting.set()
    try:
        await asyncio.sleep(120)
    finally:
        hosts.left.set()
    raise AssertionError("the client did not disconnect")


async def _pour(
    hosts: Hosts, response: web.StreamResponse, piece: bytes, pause: float = 0.0
) -> web.StreamResponse:
    try:
        while True:
            await response.write(piece)
            await asyncio.sleep(pause)
    finally:
        hosts.left.set()


_ACTS: dict[str, Callable[[Hosts, web.Request], Awaitable[web.StreamResponse]]] = {
    "image": _image,
    "redirect": _redirect,
    "status": _status,
    "packed": _packed,
    "huge": _huge,
    "endless": _endless,
    "slow": _slow,
    "silence": _silence,
}


@asynccontextmanager
async def running_hosts(tls: ssl.SSLContext | None = None) -> AsyncIterator[Hosts]:
    """Both hosts, while the body runs."""
    hosts = Hosts()
    app = web.Application()
    app.router.add_get("/{path:.*}", hosts.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, OPEN, 0, ssl_context=tls)
        await site.start()
        hosts.port = runner.addresses[0][1]
        await web.TCPSite(runner, CLOSED, hosts.port, ssl_context=tls).start()
        yield hosts
    finally:
        await runner.cleanup()


async def fetched(fetcher: Fetcher, *urls: str) -> list[str | bytes]:
    """The files at the addresses."""
    return await load_images(urls, [f"{PARAM}{index or ''}" for index in range(len(urls))], fetcher)


async def refused(fetcher: Fetcher, url: str, kind: type[TaskError] = TaskArgsInvalid) -> str:
    """The error message for an address that is not fetched."""
    with pytest.raises(TaskError) as caught:
        await fetched(fetcher, url)
    assert type(caught.value) is kind
    assert caught.value.param == PARAM
    assert caught.value.message.startswith(f"{PARAM} ")
    return caught.value.message
