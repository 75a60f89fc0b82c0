"""Other people's TLS as the other end: OpenSSL's own programs, over the loopback interface."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from OpenSSL import SSL

from minerva.pki.certificates import dump_pem
from minerva.pki.errors import PkiError
from minerva.pki.keys import dump_private_key
from minerva.tls.connection import TlsConnection
from minerva.tls.errors import TlsError
from minerva.tls.membership import check_peer
from tests.pki.certs import NOW, key
from tests.tls.ends import ALICE, BOB, ROOT, Node

SECONDS = 20

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")

ECDSA, RSA = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"
AES, CHACHA = "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"
CHAINED = Node.make(5, "rsa2048", ROOT.ca("Outer").ca("Inner", kind="rsa2048"))
NODES = {"p256": BOB, "p384": Node.make(4, "p384"), "chain": CHAINED}


class Outcome(NamedTuple):
    """How our end fared."""

    connection: TlsConnection
    heard: bytes
    error: Exception | None


def converse(connection: TlsConnection, transport: socket.socket, node: Node, greeting: bytes) -> Outcome:
    """Be one end of a connection: check the peer, greet it, and listen to its first line."""
    transport.settimeout(SECONDS)
    heard = b""
    error = None
    try:
        while not connection.closed_by_peer and b"\n" not in heard:
            transport.sendall(connection.data_to_send())
            data = transport.recv(65536)
            if not data:
                break
            connection.receive(data)
            if connection.handshake_done and connection.member is None:
                check_peer(connection, node.identity, when=NOW)
                connection.write(greeting)
            heard += connection.read()
    except (TlsError, PkiError, ConnectionError) as caught:
        error = caught
    connection.close()
    with suppress(ConnectionError):
        transport.sendall(connection.data_to_send())
    return Outcome(connection, heard, error)


def files(node: Node, folder: Path) -> list[str]:
    """Write what a program needs to be ``node``; return the options that tell it."""
    paths = [folder / name for name in ("cert.pem", "key.pem", "chain.pem")]
    paths[0].write_bytes(dump_pem([node.identity.certificate]))
    paths[1].write_bytes(dump_private_key(key(node.kind)))
    options = ["-cert", str(paths[0]), "-key", str(paths[1])]
    if node.identity.chain:
        paths[2].write_bytes(dump_pem(node.identity.chain))
        options += ["-cert_chain", str(paths[2])]
    return options


def s_client(node: Node, *options: str, context: SSL.Context | None = None) -> tuple[Outcome, str]:
    """Let ``openssl s_client`` connect to us as ``node``; return how we fared and what it says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        outcomes: list[Outcome] = []

        def serve() -> None:
            transport, _ = listener.accept()
            with transport:
                server = TlsConnection(context or node.context(), server_side=True)
                outcomes.append(converse(server, transport, node, b"welcome\n"))

        thread = threading.Thread(target=serve)
        thread.start()
        command = [str(OPENSSL), "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"]
        with subprocess.Popen(
            [*command, "-ign_eof", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as program:
            try:
                said, _ = program.communicate(b"hello\n", timeout=SECONDS)
            finally:
                program.kill()
        thread.join(SECONDS)
    assert outcomes, said.decode(errors="replace")
    return outcomes[0], said.decode(errors="replace")


@contextmanager
def s_server(*options: str) -> Iterator[int]:
    """Run ``openssl s_server``, which sends every line back reversed; yield its port."""
    with subprocess.Popen(
        [str(OPENSSL), "s_server", "-accept", "127.0.0.1:0", "-rev", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            for line in program.stdout:
                if found := re.match(r"ACCEPT .*:(\d+)$", line):
                    yield int(found[1])
                    break
            else:
                pytest.fail("openssl s_server does not listen")
        finally:
            program.kill()


def connect(port: int, node: Node = ALICE) -> Outcome:
    """Connect to a program."""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as transport:
        return converse(TlsConnection(node.context(), server_side=False), transport, node, b"hello\n")


# --- a stranger as client ---

ACCEPTED = {
    "TLS 1.3": ((), AES),
    "TLS 1.3, AES": (("-tls1_3", "-ciphersuites", AES), AES),
    "TLS 1.3, ChaCha": (("-tls1_3", "-ciphersuites", CHACHA), CHACHA),
    "TLS 1.3, P-256": (("-tls1_3", "-groups", "P-256"), AES),
    "TLS 1.3, P-384": (("-tls1_3", "-groups", "P-384"), AES),
    "TLS 1.2": (("-tls1_2",), None),
    "TLS 1.2, P-256": (("-tls1_2", "-groups", "P-256"), None),
    "TLS 1.2, P-384": (("-tls1_2", "-groups", "P-384:P-256"), None),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize(("options", "cipher"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_s_client_is_served(options: tuple[str, ...], cipher: str | None, name: str, tmp_path: Path) -> None:
    """What the ACP demands connects, whatever keys the two have.

    covers: 6.1-2, 6.1-3, 6.1-5, 6.1-6
    """
    node = NODES[name]
    if "P-256" in options and name == "p384" and "-tls1_2" in options:
        options = tuple("P-256:P-384" if option == "P-256" else option for option in options)
    outcome, said = s_client(node, *options, *files(CHAINED, tmp_path))
    assert outcome.error is None, said
    assert outcome.heard == b"hello\n"
    assert "welcome" in said
    assert outcome.connection.cipher == (cipher or (RSA if name == "chain" else ECDSA))
    assert outcome.connection.version == ("TLSv1.2" if "-tls1_2" in options else "TLSv1.3")
    assert outcome.connection.peer_chain == (CHAINED.identity.certificate, *CHAINED.identity.chain)
    if "-groups" in options:
        first = options[options.index("-groups") + 1].partition(":")[0]
        # In TLS 1.2 our own order decides, and P-256 stands first there.
        if first == "P-256" or outcome.connection.version == "TLSv1.3":
            assert outcome.connection.group == {"P-256": "secp256r1", "P-384": "secp384r1"}[first]


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_s_client_of_an_old_version_is_refused(version: str, tmp_path: Path) -> None:
    """covers: 6.1-1"""
    options = (version, "-cipher", "ALL:@SECLEVEL=0", *files(ALICE, tmp_path))
    outcome, said = s_client(CHAINED, *options)
    assert "unsupported protocol" in str(outcome.error)
    assert "alert protocol version" in said
    assert outcome.heard == b""


WEAK = {
    "AES-128 in TLS 1.3": ("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"),
    "CCM in TLS 1.3": ("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"),
    "AES-128 in TLS 1.2": ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"),
    "everything else in TLS 1.2": ("-tls1_2", "-cipher", f"ALL:!{ECDSA}:!{RSA}:@SECLEVEL=0"),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("options", WEAK.values(), ids=WEAK.keys())
def test_s_client_with_weak_suites_is_refused(options: tuple[str, ...], name: str, tmp_path: Path) -> None:
    """covers: 6.1-4, 6.1-5"""
    outcome, said = s_client(NODES[name], *options, *files(ALICE, tmp_path))
    assert "no shared cipher" in str(outcome.error)
    assert "alert handshake failure" in said
    assert outcome.heard == b""


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_without_a_certificate_is_refused(version: str) -> None:
    """covers: 6.9.2-4"""
    outcome, said = s_client(BOB, version)
    assert "did not return a certificate" in str(outcome.error)
    assert "welcome" not in said


def test_s_client_of_another_domain_is_refused(tmp_path: Path) -> None:
    """covers: 6.9.2-4"""
    leaf = ROOT.node("fd739fc23c34000002000000640000ff@other.example")
    other = Node(ALICE.identity, "p256")
    options = files(other, tmp_path)
    (tmp_path / "cert.pem").write_bytes(dump_pem([leaf]))
    outcome, said = s_client(BOB, *options)
    assert "rule 4 (domain)" in str(outcome.error)
    assert outcome.heard == b""
    assert "welcome" not in said


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_resumes_nothing(version: str, tmp_path: Path) -> None:
    """A session that a client kept is of no use to it: the server wants its certificate again."""
    session = tmp_path / "session.pem"
    options = (version, *files(ALICE, tmp_path))
    # One context, so that a server that did keep sessions would know this one again.
    context = BOB.context()
    outcome, said = s_client(BOB, *options, "-sess_out", str(session), context=context)
    assert outcome.error is None
    if version == "-tls1_2":
        assert "Session-ID: \n" in said
        assert not session.exists()
        return
    outcome, said = s_client(BOB, *options, "-sess_in", str(session), context=context)
    assert outcome.error is None
    assert "Reused, " not in said
    assert "New, " in said
    assert outcome.connection.peer_chain == (ALICE.identity.certificate,)


# --- a stranger as server ---

SERVED = {
    "everything": (),
    "TLS 1.3, ChaCha": ("-tls1_3", "-ciphersuites", CHACHA),
    "TLS 1.3, P-384": ("-tls1_3", "-groups", "P-384"),
    "TLS 1.2": ("-tls1_2",),
    "TLS 1.2, P-384": ("-tls1_2", "-groups", "P-384"),
}


@pytest.mark.parametrize("options", SERVED.values(), ids=SERVED.keys())
def test_s_server_is_talked_to(options: tuple[str, ...], tmp_path: Path) -> None:
    """covers: 6.1-2, 6.1-3, 6.1-5, 6.1-6"""
    with s_server("-Verify", "5", *options, *files(CHAINED, tmp_path)) as port:
        outcome = connect(port, NODES["p384"])
    assert outcome.error is None
    assert outcome.heard == b"olleh\n"
    assert outcome.connection.peer_chain == (CHAINED.identity.certificate, *CHAINED.identity.chain)
    if "P-384" in options:
        assert outcome.connection.group == "secp384r1"
    if "-tls1_2" in options:
        assert (outcome.connection.version, outcome.connection.cipher) == ("TLSv1.2", RSA)


@pytest.mark.parametrize(
    "options",
    [
        ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", f"ALL:!{ECDSA}:!{RSA}:@SECLEVEL=0"),
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"),
    ],
)
def test_s_server_that_offers_less_is_not_talked_to(options: tuple[str, ...], tmp_path: Path) -> None:
    """covers: 6.1-1, 6.1-4, 6.1-5"""
    with s_server(*options, *files(BOB, tmp_path)) as port:
        outcome = connect(port)
    assert isinstance(outcome.error, TlsError)
    assert not outcome.connection.handshake_done
    assert outcome.heard == b""


def test_s_server_of_a_stranger_is_not_talked_to(tmp_path: Path) -> None:
    """covers: 6.9.2-4"""
    options = files(BOB, tmp_path)
    (tmp_path / "cert.pem").write_bytes(dump_pem([ROOT.node(kind="p256")]))
    with s_server(*options) as port:
        outcome = connect(port)
    assert "rule 4 (domain)" in str(outcome.error)
    assert outcome.heard == b""
