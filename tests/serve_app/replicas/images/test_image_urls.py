"""Addresses of images that attack: each is refused with its reason."""

from collections.abc import AsyncIterator
from ipaddress import ip_address
from urllib.parse import quote

import pytest

from serve_app.config.image_url_args import ImageUrlArgs
from serve_app.replicas.images.addresses import is_public
from serve_app.replicas.images.fetch import Fetcher
from tests.serve_app.replicas.images.fake_internet import (
    CLOSED,
    IMAGE,
    OPEN,
    Hosts,
    Names,
    fetched,
    refused,
    running_hosts,
)


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with running_hosts() as hosts:
        yield hosts


@pytest.mark.parametrize(
    ("url", "said"),
    [
        # Addresses of this machine and its neighbours in every spelling that resolvers read.
        ("http://127.0.0.1/", "not an IP address"),
        ("http://127.0.0.1./", "not an IP address"),
        ("http://2130706433/", "not an IP address"),
        ("http://0177.0.0.1/", "not an IP address"),
        ("http://0x7f.1/", "not an IP address"),
        ("http://0x7f000001/", "not an IP address"),
        ("http://127.1/", "not an IP address"),
        ("http://0/", "not an IP address"),
        ("http://a.0x/", "not an IP address"),
        ("http://[::1]/", "not an IP address"),
        ("http://[::ffff:127.0.0.1]/", "not an IP address"),
        ("http://[::ffff:7f00:1]/", "not an IP address"),
        ("http://[64:ff9b::7f00:1]/", "not an IP address"),
        ("http://[fe80::1%25eth0]/", "not an IP address"),
        ("http://\uff11\uff12\uff17.0.0.1/", "not an IP address"),
        ("http://127\u30020\u30020\u30021/", "not an IP address"),
        ("http://169.254.169.254/latest/meta-data/", "not an IP address"),
        ("http://%31%32%37.0.0.1/", ""),
        ("http:///etc/passwd", ""),
        ("http:", ""),
        ("https://", ""),
        ("http://a..test/", ""),
        ("http://-a.test/", ""),
        (f"http://{'a' * 64}.test/", ""),
        (f"http://{'a.' * 130}test/", ""),
        # Parsers read the host in different ways.
        ("http://user:secret@images.test/", "user or a password"),
        ("http://images.test@127.0.0.1/", "user or a password"),
        ("http://127.0.0.1%2f@images.test/", "user or a password"),
        ("http://images.test\\@127.0.0.1/", "backslashes"),
        ("http://images.test/a b", "spaces"),
        ("http://images.test/\r\nX-Header: 1", "control characters"),
        ("http://images\t.test/", "control characters"),
        ("http://images.test/\0", "control characters"),
        ("http://images.test/\u202egnp", "control characters"),
        ("http://images.test\ud800/", "control characters"),
        # Other services of a host.
        ("http://images.test:22/", "port 22"),
        ("http://images.test:443/", "port 443"),
        ("https://images.test:80/", "port 80"),
        ("http://images.test:0/", "port 0"),
        ("http://images.test:99999/", "not a URL"),
        ("http://images.test:x/", "not a URL"),
        # Other protocols.
        ("ftp://images.test/a.png", "scheme 'ftp'"),
        ("gopher://images.test/_x", "scheme 'gopher'"),
        ("jar:http://images.test!/", "scheme 'jar'"),
    ],
)
async def test_addresses_are_refused_before_any_request(url: str, said: str) -> None:
    names = Names({})
    args = ImageUrlArgs(allow_hosts=["*"], allow_http=True, allow_networks=["0.0.0.0/0"])
    assert said in await refused(Fetcher(args, names), url)
    assert names.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "images.test.evil.test",
        "evilimages.test",
        "example.test",
        "evilexample.test",
        "a.example.test.evil.test",
        "\u0131mages.test",  # an i without its dot
        "localhost",
    ],
)
async def test_only_hosts_of_the_list_are_asked(hosts: Hosts, host: str) -> None:
    names = Names({host: [[OPEN]]})
    assert "not one of those" in await refused(hosts.fetcher(names), hosts.url("/", host))
    assert names.asked == []


async def test_http_has_its_own_option(hosts: Hosts) -> None:
    fetcher = hosts.fetcher(Names({}), allow_http=False)
    assert "'http', which is not allowed" in await refused(fetcher, hosts.url("/image/a.png"))


PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.32.0.1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::1111"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "addresses",
    [[CLOSED], [OPEN, CLOSED], [f"::ffff:{CLOSED}"], ["8.8.8.8", CLOSED], ["10.0.0.1"], ["::1"]],
)
async def test_a_name_with_a_private_address_is_refused(hosts: Hosts, addresses: list[str]) -> None:
    fetcher = hosts.fetcher(Names({"images.test": [addresses]}))
    message = await refused(fetcher, hosts.url("/image/a.png"))
    assert "private, local or reserved" in message
    assert not any(address in message for address in addresses)
    assert hosts.seen == []


async def test_the_checked_address_is_the_one_connected_to(hosts: Hosts) -> None:
    """A name service whose second answer has another address than the first."""
    names = Names({"images.test": [[OPEN], [CLOSED]]})
    fetcher = hosts.fetcher(names)
    assert await fetched(fetcher, hosts.url("/image/a.png")) == [IMAGE]
    assert "private" in await refused(fetcher, hosts.url("/image/a.png"))
    names = Names({"images.test": [[OPEN], [CLOSED]]})
    redirect = hosts.url("/redirect?to=" + quote(hosts.url("/image/a.png")))
    assert "private" in await refused(hosts.fetcher(names), redirect)
    assert not hosts.reached_closed


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("http://127.0.0.2:{port}/image/a.png", "not an IP address"),
        ("//2130706434:{port}/", "not an IP address"),
        ("http://closed.example.test:{port}/", "private"),
        ("http://evil.test:{port}/", "not one of those"),
        ("http://images.test/", "port 80"),
        ("http://user@images.test:{port}/", "user or a password"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("data:image/png;base64,aaaa", "scheme 'data'"),
        ("ftp://images.test:{port}/", "scheme 'ftp'"),
        ("http://images.test:{port}\\@evil.test/", "backslashes"),
        ("http://[", "not a URL"),
        ("/redirect?to=/redirect?to=/redirect?to=/redirect?to=/image/a.png", "more than 3 times"),
        ("", "more than 3 times"),
    ],
)
async def test_redirects_are_checked_like_addresses(hosts: Hosts, to: str, said: str) -> None:
    names = Names({"images.test": [[OPEN]], "closed.example.test": [[CLOSED]]})
    fetcher = hosts.fetcher(names, file_roots=["/etc"])
    to = to.replace("{port}", str(hosts.port))
    # Each redirect of a chain is quoted once more than the one before.
    parts = to.split("?to=")
    while len(parts) > 1:
        last = parts.pop()
        parts[-1] += "?to=" + quote(last, safe="")
    url = hosts.url("/redirect?to=" + quote(parts[0], safe=""))
    assert said in await refused(fetcher, url)
    assert not hosts.reached_closed


async def test_no_redirects(hosts: Hosts) -> None:
    fetcher = hosts.fetcher(Names({"images.test": [[OPEN]]}), max_redirects=0)
    url = hosts.url("/redirect?to=/image/a.png")
    assert "more than 0 times" in await refused(fetcher, url)
    assert len(hosts.seen) == 1
