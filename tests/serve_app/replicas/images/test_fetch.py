"""Images over HTTP: what is fetched, and what happens with slow, endless and broken hosts."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from schema.errors import ImageDownloadError, TaskArgsInvalid, TaskError
from serve_app.replicas.images.fetch import Fetcher
from serve_app.replicas.images.image_sources import load_images
from tests.serve_app.replicas.images.fake_internet import (
    IMAGE,
    OPEN,
    OTHER,
    PARAM,
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


@pytest.fixture
def names() -> Names:
    return Names({"images.test": [[OPEN]], "a.example.test": [[OPEN]]})


async def test_images_are_the_bytes_of_their_hosts(
    hosts: Hosts, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    fetcher = hosts.fetcher(names)
    urls = [
        hosts.url("/image/a.png"),
        "aGVsbG8=",
        hosts.url("/image/other.png?sig=a%2Fb#part", "A.Example.TEST."),
        hosts.url("/redirect?to=/image/other.png"),
        hosts.url("/redirect?status=308&to=" + quote(hosts.url("/image/a.png"))),
    ]
    assert await fetched(fetcher, *urls) == [IMAGE, "aGVsbG8=", OTHER, OTHER, IMAGE]
    assert await fetched(fetcher, urls[0]) == [IMAGE]
    for headers in hosts.headers:
        assert not {"Cookie", "Authorization", "Referer"} & set(headers)
        assert headers["User-Agent"] == "gpt-task-serve"
        assert headers["Accept-Encoding"] == "identity"
    # One look-up for each connection, and no other.
    assert len(names.asked) == len(hosts.seen)


@pytest.mark.parametrize("path", ["/huge", "/endless"])
async def test_an_endless_body_is_cut_off(hosts: Hosts, names: Names, path: str) -> None:
    message = await refused(hosts.fetcher(names, max_mb=0.2), hosts.url(path))
    assert "more than 0.2 MB together" in message
    await asyncio.wait_for(hosts.left.wait(), 30)


async def test_the_limit_is_of_all_images_of_a_request(hosts: Hosts, names: Names) -> None:
    size = len(IMAGE) / 1e6
    url = hosts.url("/image/a.png")
    assert await fetched(hosts.fetcher(names, max_mb=size * 2.5), url, url) == [IMAGE, IMAGE]
    with pytest.raises(TaskArgsInvalid, match="together"):
        await fetched(hosts.fetcher(names, max_mb=size * 1.5), url, url)


@pytest.mark.parametrize("path", ["/slow", "/silence"])
async def test_a_slow_host_has_until_the_deadline(hosts: Hosts, names: Names, path: str) -> None:
    fetcher = hosts.fetcher(names, timeout_s=0.3)
    message = await refused(fetcher, hosts.url(path), ImageDownloadError)
    assert "more than 0.3 seconds" in message
    await asyncio.wait_for(hosts.left.wait(), 30)


async def test_a_slow_name_service_has_until_the_deadline(hosts: Hosts) -> None:
    async def hang(host: str) -> list[str]:
        await asyncio.sleep(60)
        raise AssertionError(host)

    fetcher = Fetcher(hosts.args(timeout_s=0.1), hang)
    assert "0.1 seconds" in await refused(fetcher, hosts.url("/"), ImageDownloadError)


async def test_cancelling_a_request_closes_its_connections(hosts: Hosts, names: Names) -> None:
    task = asyncio.create_task(fetched(hosts.fetcher(names), hosts.url("/silence")))
    await asyncio.wait_for(hosts.waiting.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(hosts.left.wait(), 30)


async def test_one_refused_image_ends_the_others(hosts: Hosts, names: Names) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        await fetched(hosts.fetcher(names), hosts.url("/silence"), hosts.url("/status/404"))
    assert caught.value.param == f"{PARAM}1"


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/packed", TaskArgsInvalid, "compressed"),
        ("/status/404", TaskArgsInvalid, "status 404"),
        ("/status/204", ImageDownloadError, "status 204"),
        ("/status/206", ImageDownloadError, "status 206"),
        ("/status/429", ImageDownloadError, "status 429"),
        ("/status/500", ImageDownloadError, "status 500"),
    ],
)
async def test_answers_without_an_image(
    hosts: Hosts, names: Names, path: str, kind: type[TaskError], said: str
) -> None:
    assert said in await refused(hosts.fetcher(names), hosts.url(path), kind)


async def test_hosts_that_are_not_there(hosts: Hosts) -> None:
    fetcher = hosts.fetcher(Names({}))
    assert "cannot be found" in await refused(fetcher, hosts.url("/"), ImageDownloadError)
    unreachable = Names({"images.test": [["127.0.0.3"]]})
    fetcher = hosts.fetcher(unreachable, allow_networks=["127.0.0.3/32"])
    assert "cannot be reached" in await refused(fetcher, hosts.url("/"), ImageDownloadError)


async def test_a_host_that_does_not_speak_http(names: Names) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-x\r\n" * 10)
        writer.close()

    async with await asyncio.start_server(shout, OPEN, 0) as server:
        hosts = Hosts(port=server.sockets[0].getsockname()[1])
        message = await refused(hosts.fetcher(names), hosts.url("/"), ImageDownloadError)
    assert "did not answer in valid HTTP" in message


def _certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context with a certificate for ``name`` that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


async def test_https_verifies_the_host(tmp_path: Path, names: Names) -> None:
    trusted = ssl.create_default_context()
    async with running_hosts(_certificate(tmp_path, "images.test")) as hosts:
        trusted.load_verify_locations(tmp_path / "certificate.pem")
        url = hosts.url("/image/a.png", scheme="https")
        other = hosts.url("/image/a.png", "a.example.test", "https")
        assert await fetched(hosts.fetcher(names, trusted), url) == [IMAGE]
        # Unknown to the system; and a certificate of another name.
        assert "TLS" in await refused(hosts.fetcher(names), url, ImageDownloadError)
        assert "TLS" in await refused(hosts.fetcher(names, trusted), other, ImageDownloadError)
        down = hosts.url("/redirect?to=" + quote(hosts.url("/image/a.png")), scheme="https")
        assert "leaves https" in await refused(hosts.fetcher(names, trusted), down)


async def test_nothing_is_fetched_without_a_configuration() -> None:
    with pytest.raises(TaskArgsInvalid, match="not allowed"):
        await load_images(["https://images.test/"], [PARAM], None)
    assert await load_images(["aGVsbG8="], [PARAM], None) == ["aGVsbG8="]
