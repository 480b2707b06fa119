"""Which IP addresses may be connected to, and a resolver that returns only these."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from schema.errors import TaskArgsInvalid

Lookup = Callable[[str], Awaitable[list[str]]]
"""From a host's name to its IP addresses. Raises `OSError` if there are none."""

_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NEVER = (
    # Tunnels that hold an IPv4 address; both are out of use.
    IPv6Network("2001::/32"),  # Teredo
    IPv6Network("2002::/16"),  # 6to4
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    # `ipaddress` of older Pythons takes parts of this for global; Oracle's metadata is there.
    IPv4Network("192.0.0.0/24"),
    IPv4Network("168.63.129.16/32"),  # Azure's platform services, on a public address
)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does; else the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public internet and to a single host."""
    address = _plain(address)
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False  # hosts of the public internet have no other addresses
    return (
        address.is_global
        and not address.is_private
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NEVER)
    )


async def system_lookup(host: str) -> list[str]:
    """The addresses that the system knows for ``host``."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(sockaddr[0]) for *_, sockaddr in found]


class CheckedResolver(AbstractResolver):
    """Resolves names for aiohttp and checks each address.

    aiohttp connects to what this returns without another look-up, so the checked address is the one
    that is connected to. It does not ask about hosts that are IP addresses: those must be refused
    before.
    """

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network], lookup: Lookup) -> None:
        self._networks = networks
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of ``host``; if one of them is not allowed, the host is refused.

        Raises:
            TaskArgsInvalid: it has an address that is not allowed.
            OSError: it has no address.
        """
        found = [ip_address(text) for text in await self._lookup(host)]
        if not found:
            raise OSError("no address")
        for address in found:
            if not is_public(address) and not self._is_opened(address):
                # The address is not named: it would show clients this server's network.
                raise TaskArgsInvalid(
                    "its host has an address that is private, local or reserved, and such "
                    "addresses are not fetched from"
                )
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """There is nothing to close."""

    def _is_opened(self, address: IPv4Address | IPv6Address) -> bool:
        return any(_plain(address) in network for network in self._networks)
