"""``image_urls:`` under ``args:``: which addresses images may have, and the limits of fetching.

Without it a request must contain its images (``data:`` URLs), and no address is fetched.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from schema.validation.strict import NonNegativeInt, PositiveFloat, Strict

BYTES_PER_MB = 10**6
MAX_PORT = 65_535
MAX_HOST_CHARS = 253

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# A host whose last part is a number is read as an IPv4 address, in forms such as 127.1, 0x7f.1 or
# 2130706433 (https://url.spec.whatwg.org/#ends-in-a-number-checker); no top-level domain is one.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def is_host_name(host: str) -> bool:
    """Whether ``host`` is a name in lower-case ASCII, and not an IP address in any form."""
    return (
        len(host) <= MAX_HOST_CHARS
        and _NAME.fullmatch(host) is not None
        and _NUMBER.fullmatch(host.rpartition(".")[2]) is None
    )


def _host(entry: str) -> str:
    entry = entry.lower()
    name, colon, port = entry.partition(":")
    port_is_right = port.isdecimal() and port.isascii() and 1 <= int(port[:6]) <= MAX_PORT
    if (name != "*" and not is_host_name(name.removeprefix("*."))) or (colon and not port_is_right):
        raise ValueError(
            f"{entry!r} must be a host's name, *.name for all hosts below it or * for all, with or "
            "without :port; not an IP address, and names with non-ASCII letters as xn--..."
        )
    return entry


def _network(text: str) -> str:
    ip_network(text)  # raises a ValueError that says what is wrong
    return text


def _root(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or len(path.parts) == 1:
        raise ValueError(f"{text!r} must be an absolute path to a directory, without .. and not /")
    return text


class ImageUrlArgs(Strict):
    """Which addresses may be fetched; all others are refused.

    Attributes:
        allow_hosts: hosts of https addresses: ``name``, ``*.name`` (all below it) or ``*``; with
            ``:port`` for another port than the standard one. Redirects may lead only to these too.
        allow_http: the same hosts without TLS.
        allow_networks: private networks in which hosts may be; public addresses are always allowed.
        file_roots: directories whose files ``file://`` addresses may name.
        max_mb: of all fetched images of a request together, in MB (10**6 bytes).
        timeout_s: for all of them together.
        max_redirects: of one image.
    """

    allow_hosts: list[Annotated[str, AfterValidator(_host)]] = Field(default_factory=list)
    allow_http: bool = False
    allow_networks: list[Annotated[str, AfterValidator(_network)]] = Field(default_factory=list)
    file_roots: list[Annotated[str, AfterValidator(_root)]] = Field(default_factory=list)
    max_mb: PositiveFloat = 32.0
    timeout_s: PositiveFloat = 10.0
    max_redirects: NonNegativeInt = 3

    @model_validator(mode="after")
    def _check_use(self) -> Self:
        if not self.allow_hosts and not self.file_roots:
            raise ValueError(
                "allows nothing: give allow_hosts, file_roots or both, or leave it out"
            )
        if not self.allow_hosts and (self.allow_http or self.allow_networks):
            raise ValueError("allow_http and allow_networks have no meaning without allow_hosts")
        return self

    @property
    def schemes(self) -> frozenset[str]:
        """The schemes of the addresses that may be fetched."""
        opened = {
            "https": bool(self.allow_hosts),
            "http": self.allow_http,
            "file": bool(self.file_roots),
        }
        return frozenset(scheme for scheme, is_open in opened.items() if is_open)

    @property
    def networks(self) -> list[IPv4Network | IPv6Network]:
        """``allow_networks``, parsed."""
        return [ip_network(text) for text in self.allow_networks]

    def allows(self, host: str, port: int, standard_port: int) -> bool:
        """Whether images may be fetched from ``host`` (see `is_host_name`) on ``port``."""
        for entry in self.allow_hosts:
            name, _, only_port = entry.partition(":")
            if port == (int(only_port) if only_port else standard_port) and (
                host.endswith(name[1:]) if name.startswith("*") else host == name
            ):
                return True
        return False

    def plan(self) -> str:
        """One line that says what may be fetched."""
        opened = []
        if self.allow_hosts:
            schemes = "https and http" if self.allow_http else "https"
            opened.append(f"{schemes} from {', '.join(self.allow_hosts)}")
        if self.allow_networks:
            opened.append(f"also in the networks {', '.join(self.allow_networks)}")
        if self.file_roots:
            opened.append(f"files below {', '.join(self.file_roots)}")
        return (
            f"ImagePreprocessor: fetches images at addresses: {'; '.join(opened)}; "
            f"{self.max_mb:g} MB and {self.timeout_s:g} s for a request"
        )


def opened_schemes(args: ImageUrlArgs | None) -> frozenset[str]:
    """The schemes of the addresses that may be fetched; none without a configuration."""
    return frozenset() if args is None else args.schemes
