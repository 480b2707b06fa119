"""Images over HTTP: from hosts that are allowed, at public addresses, within limits."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import aiohttp
from yarl import URL

from schema.errors import ImageDownloadError, TaskArgsInvalid
from schema.json_values import clipped
from serve_app.config.image_url_args import BYTES_PER_MB, ImageUrlArgs, is_host_name
from serve_app.replicas.images.addresses import CheckedResolver, Lookup, system_lookup

CONNECTIONS = 8
"""The most connections of one request at the same time."""
_STANDARD_PORTS = {"https": 443, "http": 80}
_REDIRECTS = (301, 302, 303, 307, 308)
_TRY_AGAIN = (408, 429)  # the two client errors that are not about the address
_HEADERS = {
    "Accept": "image/*",
    # Nothing is decompressed here, so no small body can become a large one.
    "Accept-Encoding": "identity",
    "User-Agent": "gpt-task-serve",
}


@dataclass
class Budget:
    """How many bytes the fetched images of a request may still have."""

    limit_mb: float
    left: int
    _lock: threading.Lock  # files are read in threads

    @classmethod
    def of(cls, args: ImageUrlArgs) -> Budget:
        """The budget of a new request."""
        return cls(args.max_mb, int(args.max_mb * BYTES_PER_MB), threading.Lock())

    def check(self, size: int) -> None:
        """Raises `TaskArgsInvalid` if an image of ``size`` bytes is too large."""
        if size > self.left:
            raise TaskArgsInvalid(
                f"with this image the fetched images of the request have more than "
                f"{self.limit_mb:g} MB together, which is the limit"
            )

    def take(self, size: int) -> None:
        """Count bytes that were received. Raises `TaskArgsInvalid` if they are too many."""
        with self._lock:
            self.check(size)
            self.left -= size


def refuse_odd_characters(url: str) -> None:
    """Refuse characters that URL parsers read in different ways. Raises `TaskArgsInvalid`."""
    if not url.isprintable() or " " in url or "\\" in url:
        raise TaskArgsInvalid(
            "must not have spaces, backslashes or control characters; write them as %20 and so on"
        )


class Fetcher:
    """Fetches as one configuration allows. Nothing is kept from one request to the next."""

    def __init__(
        self,
        args: ImageUrlArgs,
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        """``tls`` is aiohttp's: True verifies with the system's certificates."""
        self.args = args
        self._lookup = lookup
        self._tls = tls

    def session(self) -> aiohttp.ClientSession:
        """A session for one request: a context manager that is passed to `fetch`."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self.args.networks, self._lookup),
                use_dns_cache=False,
                force_close=True,
                limit=CONNECTIONS,
                ssl=self._tls,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None),  # the caller has a deadline
            trust_env=False,  # no proxy, no .netrc
        )

    async def fetch(self, session: aiohttp.ClientSession, address: str, budget: Budget) -> bytes:
        """The content at ``address``; it is not checked to be an image.

        Raises:
            TaskArgsInvalid: the address is refused, or its host says that there is no image.
            ImageDownloadError: its host failed.
        """
        url = self._checked(address)
        try:
            for _ in range(self.args.max_redirects + 1):
                async with session.get(url, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        return await _body(response, budget)
                    url = self._redirected(url, response.headers)
        except (aiohttp.ClientError, OSError) as error:
            raise ImageDownloadError(_reason(error)) from error
        raise TaskArgsInvalid(f"is redirected more than {self.args.max_redirects} times")

    def _checked(self, address: str, base: URL | None = None) -> URL:
        """The URL to fetch; it is the same object that was checked."""
        refuse_odd_characters(address)
        try:
            url = URL(address) if base is None else base.join(URL(address))
            scheme, host, port = url.scheme, url.raw_host or "", url.port
            authority = url.raw_authority
        except ValueError as error:
            raise TaskArgsInvalid("is not a URL") from error
        if scheme not in _STANDARD_PORTS or scheme not in self.args.schemes:
            raise TaskArgsInvalid(
                f"has the scheme {clipped(scheme)!r}, which is not allowed by configuration"
            )
        if "@" in authority:
            raise TaskArgsInvalid("must not have a user or a password")
        host = host.removesuffix(".")
        if not is_host_name(host):
            raise TaskArgsInvalid("must have the name of its host, not an IP address")
        if port is None or not self.args.allows(host, port, _STANDARD_PORTS[scheme]):
            raise TaskArgsInvalid(
                f"has the host {clipped(host)!r} with port {port}, which is not one of those that "
                "this server may fetch from"
            )
        return url.with_host(host).with_fragment(None)

    def _redirected(self, url: URL, headers: Mapping[str, str]) -> URL:
        try:
            target = self._checked(headers.get("location", ""), base=url)
            if url.scheme == "https" and target.scheme != "https":
                raise TaskArgsInvalid("leaves https")
        except TaskArgsInvalid as error:
            raise TaskArgsInvalid(f"is redirected to an address that {error.message}") from None
        return target


async def _body(response: aiohttp.ClientResponse, budget: Budget) -> bytes:
    """The body of a successful answer."""
    if response.status != 200:
        _refuse_status(response.status)
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise TaskArgsInvalid("was sent compressed, and this server does not decompress images")
    if response.content_length is not None:
        budget.check(response.content_length)
    body = bytearray()
    async for piece in response.content.iter_any():
        budget.take(len(piece))
        body += piece
    return bytes(body)


def _refuse_status(status: int) -> NoReturn:
    message = f"was not delivered: its host answered with status {status}"
    if 400 <= status < 500 and status not in _TRY_AGAIN:
        raise TaskArgsInvalid(message)
    raise ImageDownloadError(message)


def _reason(error: Exception) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "was not delivered: its host cannot be found"
        case aiohttp.ClientSSLError():
            return "was not delivered: its host has no valid certificate (TLS)"
        case aiohttp.ClientConnectorError():
            return "was not delivered: its host cannot be reached"
    return "was not delivered: its host broke off or did not answer in valid HTTP"
