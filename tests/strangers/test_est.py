"""strongSwan's ``pki`` as a client of EST: it reads our bodies, and we read its own.

The server here is the standard library's, and knows no more of EST than where the bodies go.
"""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from minerva.est.bodies import certs_only, decode_base64, encode_base64
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.keys import dump_private_key, generate_key
from minerva.pki.request import CertificateRequest, load_request

pytestmark = pytest.mark.skipif(shutil.which("pki") is None, reason="strongSwan's pki is not installed")

DAY = timedelta(days=1)


class Server(http.server.ThreadingHTTPServer):
    """A server of EST on 127.0.0.1, with a CA under a root."""

    def __init__(self, folder: Path, *, wrapped: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        root = CertificateAuthority.create("acp.example.com", folder / "root")
        self.ca = root.issue_ca(folder / "issuing")
        self.wrapped = wrapped
        self.requests: list[CertificateRequest] = []
        key = generate_key("p256")
        names = [x509.IPAddress(ip_address("127.0.0.1"))]
        certificate = self.ca.certify(key.public_key(), None, lifetime=DAY, extra_names=names)
        (folder / "server.pem").write_bytes(dump_pem([certificate, *self.ca.chain]) + dump_private_key(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: pki ends connections in a way that Python's ssl takes for an error."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers cacerts and simpleenroll."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path != "/.well-known/est/cacerts":
            self.send_error(404)
            return
        self._answer(certs_only((*self.server.ca.chain, *self.server.ca.anchors)))

    def do_POST(self) -> None:
        request = load_request(decode_base64(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.requests.append(request)
        ca = self.server.ca
        made = ca.certify(request.public_key, None, lifetime=DAY, subject=request.subject)
        self._answer(certs_only([made]))

    def _answer(self, der: bytes) -> None:
        body = encode_base64(der, wrapped=self.server.wrapped)
        self.send_response(200)
        self.send_header("Content-Type", "application/pkcs7-mime")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(folder: Path, *, wrapped: bool = False) -> Iterator[Server]:
    with Server(folder, wrapped=wrapped) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def pki(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["pki", *map(str, arguments)], capture_output=True, timeout=30, check=False)


def base(server: Server, folder: Path) -> tuple[str | Path, ...]:
    return (
        "--url", f"https://127.0.0.1:{server.server_port}",
        "--cacert", folder / "root" / "ca-cert.pem",
        "--cacert", folder / "issuing" / "ca-cert.pem",
        "--outform", "pem",
    )  # fmt: skip


def test_ca_certificates(tmp_path: Path) -> None:
    """covers: E-3, E-4"""
    with serving(tmp_path) as server:
        done = pki("--estca", *base(server, tmp_path), "--caout", tmp_path / "out.pem")
        assert done.returncode == 0, done.stderr.decode()
        found = {load_pem(path.read_bytes())[0] for path in tmp_path.glob("out*.pem")}
        assert found == {*server.ca.chain, *server.ca.anchors}


@pytest.mark.parametrize("kind", [("ecdsa", "256"), ("rsa", "2048")])
def test_enrolment(tmp_path: Path, kind: tuple[str, str]) -> None:
    """covers: E-3, E-5"""
    algorithm, size = kind
    key, request = tmp_path / "key.pem", tmp_path / "request.pem"
    key.write_bytes(pki("--gen", "--type", algorithm, "--size", size, "--outform", "pem").stdout)
    made = pki("--req", "--in", key, "--type", algorithm, "--dn", "CN=stranger", "--outform", "pem")
    request.write_bytes(made.stdout)
    with serving(tmp_path) as server:
        done = pki("--est", *base(server, tmp_path), "--in", request)
        assert done.returncode == 0, done.stderr.decode()
        (asked,) = server.requests
        (certificate,) = load_pem(done.stdout)
        assert certificate.public_key() == asked.public_key
        assert certificate.subject == asked.subject == x509.Name.from_rfc4514_string("CN=stranger")


def test_why_bodies_are_one_line(tmp_path: Path) -> None:
    """If this begins to fail, the default could be the 64 columns of the older RFCs."""
    version = pki("--help").stderr + pki("--help").stdout
    if b"strongSwan 5.9.8 " not in version:
        pytest.skip("what only strongSwan 5.9.8 is known not to read")
    with serving(tmp_path, wrapped=True) as server:
        done = pki("--estca", *base(server, tmp_path), "--caout", tmp_path / "out.pem")
        assert b"could not parse" in done.stderr
        assert not list(tmp_path.glob("out*.pem"))
