"""Servers of the web as the other end: who is believed, and what is said of the others."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from minerva.https.client import HttpClient
from minerva.https.errors import HttpTimeout, HttpUsageError, NotTrustedError, StreamError
from minerva.https.stream import web_stream
from minerva.pki.certificates import dump_pem
from minerva.pki.keys import dump_private_key
from tests.https.ends import TODAY, certificate_for, run
from tests.pki.certs import Ca, key

ROOT = Ca.root("Web root", **TODAY)
INNER = ROOT.ca("Web inner", **TODAY)
OTHER = Ca.root("Another root", kind="p384", **TODAY)
LOCALHOST = x509.DNSName("localhost")
LOOPBACK = x509.IPAddress(ip_address("::1"))
PAST = {"start": datetime.now(UTC) - timedelta(days=9), "end": datetime.now(UTC) - timedelta(days=1)}
FUTURE = {"start": datetime.now(UTC) + timedelta(days=1), "end": datetime.now(UTC) + timedelta(days=9)}

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Seen:
    """What the server saw of its client."""

    name: str | None = None
    subject: object = None
    request = b""


def both_families() -> socket.socket:
    """A listener for whatever address ``localhost`` has here."""
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)


@asynccontextmanager
async def web_server(
    folder: Path,
    certificate: x509.Certificate,
    chain: tuple[x509.Certificate, ...] = (),
    *,
    client_root: Ca | None = None,
    version: ssl.TLSVersion | None = None,
) -> AsyncIterator[tuple[int, Seen]]:
    """A server made with the standard library."""
    path = folder / "server.pem"
    path.write_bytes(dump_private_key(key("p256")) + dump_pem((certificate, *chain)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if version is not None:
        context.maximum_version = context.minimum_version = version
    if client_root is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=dump_pem([client_root.certificate]).decode())
    seen = Seen()

    def named(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        seen.name = name

    context.sni_callback = named

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("peercert")
        seen.subject = certificate and certificate["subject"]
        seen.request = await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await reader.read()
        writer.close()

    sock = both_families()
    server = await asyncio.start_server(handle, sock=sock, ssl=context)
    try:
        yield sock.getsockname()[1], seen
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)


async def fetch(host: str, port: int, **options: object) -> bytes:
    stream = await web_stream(host, port, **options)  # type: ignore[arg-type]
    client = HttpClient(stream, f"{host}:{port}")
    try:
        return (await client.request("GET", "/")).body
    finally:
        await client.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_name_and_an_address(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A name is sent as SNI and compared with dNSName, an address is compared with iPAddress.

    covers: R-32
    """
    server = certificate_for(INNER, LOCALHOST, LOOPBACK)

    async def test() -> None:
        async with web_server(tmp_path, server, INNER.chain, version=version) as (port, seen):
            for anchors in ((ROOT.certificate,), (OTHER.certificate, ROOT.certificate), (INNER.certificate,)):
                assert await fetch("localhost", port, anchors=anchors) == b"ok"
                assert seen.name == "localhost"
            assert await fetch("::1", port, anchors=(ROOT.certificate,)) == b"ok"
            assert await fetch("[::1]", port, anchors=(ROOT.certificate,)) == b"ok"
            assert seen.name is None

    run(test())


REFUSED = {
    "another name": (
        certificate_for(ROOT, x509.DNSName("example.com")),
        "localhost",
        "its certificate is for another name than localhost",
    ),
    "another address": (
        certificate_for(ROOT, x509.IPAddress(ip_address("::2"))),
        "::1",
        "its certificate is not for the address ::1",
    ),
    "an address as a name": (
        certificate_for(ROOT, x509.DNSName("localhost")),
        "::1",
        "its certificate is not for the address ::1",
    ),
    "unknown issuer": (
        certificate_for(OTHER, LOCALHOST),
        "localhost",
        "no trust anchor has issued its certificate",
    ),
    "expired": (certificate_for(ROOT, LOCALHOST, **PAST), "localhost", "its certificate has expired"),
    "not yet": (certificate_for(ROOT, LOCALHOST, **FUTURE), "localhost", "its certificate is not valid yet"),
}


@pytest.mark.parametrize(("server", "host", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_who_is_not_believed(tmp_path: Path, server: x509.Certificate, host: str, sentence: str) -> None:
    """covers: R-32"""

    async def test() -> None:
        async with web_server(tmp_path, server) as (port, seen):
            with pytest.raises(NotTrustedError) as caught:
                await fetch(host, port, anchors=(ROOT.certificate,))
            assert sentence in str(caught.value)
            assert f":{port} is not trusted" in str(caught.value)
            assert seen.request == b""

    run(test())


def test_our_own_cas_are_not_those_of_the_system(tmp_path: Path) -> None:
    async def test() -> None:
        async with web_server(tmp_path, certificate_for(ROOT, LOCALHOST)) as (port, _):
            for anchors in ("web", None):
                with pytest.raises(NotTrustedError, match="no trust anchor"):
                    await fetch("localhost", port, anchors=anchors)
            with pytest.raises(HttpUsageError, match="no trust anchor to check"):
                await fetch("localhost", port, anchors=())

    run(test())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_of_ours(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """It is shown with its chain; a server that wants one and gets none says so."""
    server = certificate_for(ROOT, LOCALHOST)
    ours = INNER.node(**TODAY)

    async def test() -> None:
        async with web_server(tmp_path, server, client_root=ROOT, version=version) as (port, seen):
            body = await fetch(
                "localhost",
                port,
                anchors=(ROOT.certificate,),
                certificate=ours,
                chain=INNER.chain,
                key=key("p256"),
            )
            assert body == b"ok"
            assert seen.subject == ((("commonName", "node"),),)
            with pytest.raises(StreamError, match=r"no connection with|closed the connection"):
                await fetch("localhost", port, anchors=(ROOT.certificate,))
        with pytest.raises(HttpUsageError, match="cannot use the client's certificate"):
            await web_stream("localhost", 1, certificate=ours, key=key("p384"))
        with pytest.raises(HttpUsageError, match="without its key"):
            await web_stream("localhost", 1, certificate=ours)

    run(test())
    assert [path.name for path in tmp_path.iterdir()] == ["server.pem"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_old_version_is_refused(tmp_path: Path) -> None:
    """covers: M-2"""
    path = tmp_path / "server.pem"
    path.write_bytes(dump_private_key(key("p256")) + dump_pem([certificate_for(ROOT, LOCALHOST)]))
    with both_families() as sock:
        port = sock.getsockname()[1]
    command = ["openssl", "s_server", "-accept", str(port), "-cert", path, "-key", path, "-tls1_1"]
    with subprocess.Popen(
        [*command, "-cipher", "ALL:@SECLEVEL=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while b"ACCEPT" not in process.stdout.readline():
            pass
        try:
            with pytest.raises(StreamError, match="no connection with"):
                asyncio.run(fetch("localhost", port, anchors=(ROOT.certificate,)))
        finally:
            process.kill()


def test_who_cannot_be_reached() -> None:
    async def test() -> None:
        with both_families() as sock:
            port = sock.getsockname()[1]
            with pytest.raises(HttpTimeout, match=r"localhost:\d+ could not be reached within 0\.05 s"):
                await web_stream("localhost", port, timeout=0.05)
        with pytest.raises(StreamError, match=r"no connection with localhost:\d+"):
            await web_stream("localhost", port)
        with pytest.raises(StreamError, match="no connection with nobody"):
            await web_stream("nobody.invalid", 443)
        with pytest.raises(HttpUsageError, match="not the name of a server"):
            await web_stream("a" * 64 + ".example", 443)

    run(test())
