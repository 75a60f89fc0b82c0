"""Two ends back to back: what works, what is refused, and what no bytes can do."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from OpenSSL._util import lib

import minerva.tls.connection
from minerva.tls.connection import MAX_BACKLOG, MAX_HANDSHAKE_SIZE, TlsConnection
from minerva.tls.errors import TlsError, TlsPeerError, TlsRefusedError, TlsUsageError
from minerva.tls.membership import check_peer
from tests.pki.certs import NOW, key
from tests.tls.ends import (
    ALERT,
    ALICE,
    APPLICATION_DATA,
    BOB,
    HANDSHAKE,
    ROOT,
    TLS11,
    TLS12,
    Node,
    admitted,
    alert,
    carry,
    client_hello,
    connected,
    ends,
    message,
    record,
    server_hello,
)

VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]
FATAL, PROTOCOL_VERSION, HANDSHAKE_FAILURE, ILLEGAL_PARAMETER, RECORD_OVERFLOW = 2, 70, 40, 47, 22

both_versions = pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])


def feed(connection: TlsConnection, pieces: Iterable[bytes]) -> None:
    """Hand over the pieces one by one."""
    for piece in pieces:
        connection.receive(piece)


def talk(connection: TlsConnection, times: int) -> Iterator[bytes]:
    """Say 16,000 bytes so many times; return what goes over the wire."""
    for _ in range(times):
        connection.write(bytes(16_000))
        yield connection.data_to_send()


def hoard(connection: TlsConnection, times: int) -> None:
    """Say 16,000 bytes so many times and send nothing of it."""
    for _ in range(times):
        connection.write(bytes(16_000))


# --- what works ---


@both_versions
def test_both_sides_talk(version: int) -> None:
    """A handshake, both certificates, bytes in both directions, the end.

    covers: 6.1-1, 6.1-2, 6.9.2-4
    """
    one, other = admitted(version)
    assert one.version == other.version == {VERSIONS[0]: "TLSv1.2", VERSIONS[1]: "TLSv1.3"}[version]
    assert one.cipher == other.cipher
    assert one.group == other.group == "secp256r1"
    assert one.peer_chain == (BOB.identity.certificate,)
    assert other.peer_chain == (ALICE.identity.certificate,)
    one.write(b"request")
    carry(one, other)
    assert other.read() == b"request"
    assert other.read() == b""
    other.write(bytes(100_000))
    other.write(b"end")
    carry(one, other)
    assert one.read() == bytes(100_000) + b"end"
    one.close()
    carry(one, other)
    assert other.closed_by_peer
    assert not other.closed
    other.close()
    assert one.closed
    assert other.closed


def test_the_best_is_chosen() -> None:
    """covers: 6.1-2, 6.1-5"""
    one, _ = connected()
    assert (one.version, one.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")


@both_versions
@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072"])
def test_all_kinds_of_certificates_with_two_intermediates(kind: str, version: int) -> None:
    """The chain arrives whole, on either side, and TLS 1.2 takes the suite that the key needs.

    covers: 6.1-3
    """
    ca = ROOT.ca("Outer", kind="rsa3072").ca("Inner", kind="p256")
    node = Node.make(3, kind, ca)
    one, other = connected(node.context(version), node.context(version))
    expected = (node.identity.certificate, *node.identity.chain)
    assert len(expected) == 3
    assert one.peer_chain == other.peer_chain == expected
    assert check_peer(one, ALICE.identity, when=NOW).node_name == node.identity.node_name
    if version == SSL.TLS1_2_VERSION:
        suite = "ECDHE-RSA-AES256-GCM-SHA384" if kind.startswith("rsa") else "ECDHE-ECDSA-AES256-GCM-SHA384"
        assert one.cipher == suite


@both_versions
def test_cut_anywhere(version: int) -> None:
    """However the transport cuts the two streams, the outcome is the same."""
    client, server = ALICE.context(version), BOB.context(version)
    for cut in count(1):
        one, other = ends(client, server)
        passed = {one: 0, other: 0}
        while True:
            flights = [(one, other, one.data_to_send()), (other, one, other.data_to_send())]
            if not any(data for _, _, data in flights):
                break
            for source, target, data in flights:
                at = max(cut - passed[source], 0)
                passed[source] += len(data)
                for piece in (data[:at], data[at:]):
                    target.receive(piece)
        assert one.handshake_done
        assert other.handshake_done
        assert one.peer_chain == (BOB.identity.certificate,)
        if cut > max(passed.values()):
            break
    assert cut > 500


@both_versions
def test_byte_by_byte(version: int) -> None:
    one, other = ends(ALICE.context(version), BOB.context(version))
    while True:
        flights = [(other, one.data_to_send()), (one, other.data_to_send())]
        if not any(data for _, data in flights):
            break
        for target, data in flights:
            for byte in data:
                target.receive(bytes([byte]))
    assert one.handshake_done
    assert other.handshake_done


# --- the membership check stands before the application ---


def test_nothing_passes_before_the_peer_is_admitted() -> None:
    """What an unchecked peer says stays where it is, and nothing is said to it.

    covers: 6.9.2-4
    """
    one, other = connected()
    check_peer(one, ALICE.identity, when=NOW)
    one.write(b"early")
    carry(one, other)
    assert other.read() == b""
    with pytest.raises(TlsUsageError, match="membership"):
        other.write(b"secret")
    assert other.data_to_send() == b""
    check_peer(other, BOB.identity, when=NOW)
    assert other.read() == b"early"


def test_nothing_is_said_before_the_handshake_is_done() -> None:
    one, _ = ends()
    with pytest.raises(TlsUsageError):
        one.write(b"early")
    with pytest.raises(TlsUsageError, match="handshake"):
        check_peer(one, ALICE.identity, when=NOW)
    member = check_peer(connected()[0], ALICE.identity, when=NOW)
    with pytest.raises(TlsUsageError):
        one.admit(member)
    assert one.member is None


def test_only_the_peer_itself_is_admitted() -> None:
    one, other = connected()
    member = check_peer(other, BOB.identity, when=NOW)
    with pytest.raises(TlsUsageError):
        one.admit(member)


# --- old versions and weak suites ---


@pytest.mark.parametrize("version", [0x0300, 0x0301, TLS11])
def test_old_versions_are_refused(version: int) -> None:
    """A ClientHello of TLS 1.1, or older, is answered with protocol_version.

    covers: 6.1-1
    """
    _, other = ends()
    with pytest.raises(TlsPeerError, match=r"unsupported protocol|version too low"):
        other.receive(client_hello(version, [0xC02C, 0xC030, 0xC014]))
    assert alert(other.data_to_send()) == (FATAL, PROTOCOL_VERSION)
    assert other.closed


def test_a_peer_that_nobody_checks() -> None:
    """Enrolment lets bytes pass between strangers; not before the handshake, and nobody becomes a member."""
    one, other = ends()
    with pytest.raises(TlsUsageError, match="before the handshake"):
        one.admit_unchecked()
    carry(one, other)
    one.admit_unchecked()
    one.write(b"hello")
    carry(one, other)
    assert other.read() == b""
    other.admit_unchecked()
    assert other.read() == b"hello"
    assert one.member is other.member is None
    other.refuse()
    assert other.read() == b""
    with pytest.raises(TlsUsageError):
        other.write(b"x")


def test_only_enrolment_lets_strangers_in() -> None:
    """covers: 6.9.2-4"""
    source = Path(minerva.tls.connection.__file__).parents[1]
    users = {
        path.relative_to(source).parts[0]
        for path in source.rglob("*.py")
        if "admit_unchecked" in path.read_text()
    }
    assert users == {"tls", "https"}


def test_a_server_of_an_old_version_is_refused() -> None:
    """covers: 6.1-1"""
    one, _ = ends()
    one.data_to_send()
    with pytest.raises(TlsPeerError, match="unsupported protocol"):
        one.receive(server_hello(TLS11, 0xC014))
    assert alert(one.data_to_send()) == (FATAL, PROTOCOL_VERSION)


WEAK = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": 0xC02B,
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": 0xC02F,
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384": 0xC024,
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": 0xCCA9,
    "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384": 0x009F,
    "TLS_RSA_WITH_AES_256_GCM_SHA384": 0x009D,
    "TLS_ECDHE_ECDSA_WITH_NULL_SHA": 0xC006,
}


@pytest.mark.parametrize("suite", WEAK.values(), ids=WEAK.keys())
def test_other_suites_of_tls12_are_refused(suite: int) -> None:
    """covers: 6.1-4"""
    _, other = ends()
    with pytest.raises(TlsPeerError, match="cipher"):
        other.receive(client_hello(TLS12, [suite]))
    assert alert(other.data_to_send()) == (FATAL, HANDSHAKE_FAILURE)


@pytest.mark.parametrize("suite", [0x1301, 0x1304, 0x1305])
def test_other_suites_of_tls13_are_refused(suite: int) -> None:
    """TLS_AES_128_GCM_SHA256, which the library would take, and the two of CCM.

    covers: 6.1-4, 6.1-5
    """
    _, other = ends()
    with pytest.raises(TlsPeerError, match="cipher"):
        other.receive(client_hello(TLS12, [suite], tls13=True))
    assert alert(other.data_to_send()) == (FATAL, HANDSHAKE_FAILURE)


@pytest.mark.parametrize(
    ("suites", "tls13"), [([0x1301, 0x1302], True), ([0x1303], True), ([0xC02B, 0xC02C], False)]
)
def test_the_same_hello_with_a_good_suite_is_answered(suites: list[int], tls13: bool) -> None:
    """The hellos above are refused for their suites and for nothing else."""
    _, other = ends()
    other.receive(client_hello(TLS12, suites, tls13=tls13))
    answer = other.data_to_send()
    assert answer[0] == HANDSHAKE
    assert answer[44:46] == suites[-1].to_bytes(2)


@pytest.mark.parametrize("suite", [0xC02B, 0xC02F, 0x009D])
def test_a_server_that_takes_what_was_not_offered_is_refused(suite: int) -> None:
    """covers: 6.1-4"""
    one, _ = ends()
    one.data_to_send()
    with pytest.raises(TlsPeerError, match="cipher"):
        one.receive(server_hello(TLS12, suite))
    assert alert(one.data_to_send()) == (FATAL, ILLEGAL_PARAMETER)


# --- no certificate, and others ---


@both_versions
def test_client_without_a_certificate(version: int) -> None:
    """covers: 6.9.2-4"""
    bare = SSL.Context(SSL.TLS_METHOD)
    one, other = ends(bare, BOB.context(version))
    with pytest.raises(TlsPeerError, match="did not return a certificate"):
        carry(one, other)
    with pytest.raises(TlsRefusedError) as caught:
        one.receive(other.data_to_send())
    assert caught.value.alert in ("certificate required", "handshake failure")
    assert not other.handshake_done


def test_certificate_that_only_openssl_reads() -> None:
    """A certificate of a version that does not exist is an error of this package and of no other."""
    der = ALICE.identity.certificate.public_bytes(Encoding.DER)
    assert der.count(bytes.fromhex("a003020102")) == 1
    strange = crypto.load_certificate(
        crypto.FILETYPE_ASN1, der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"))
    )
    context = ALICE.context()
    with pytest.warns(DeprecationWarning, match="X509 objects"):
        context.use_certificate(strange)
    one, other = ends(context)
    with pytest.raises(TlsPeerError, match="cannot be read"):
        carry(one, other)
    assert not other.handshake_done
    assert other.closed


def test_certificate_with_a_key_of_no_use() -> None:
    """A key that the ACP does not know cannot prove anything."""
    leaf = ROOT.node(kind="ed25519")
    other = SSL.Context(SSL.TLS_METHOD)
    other.use_certificate(leaf)
    other.use_privatekey(key("ed25519"))
    with pytest.raises(TlsError):
        carry(*ends(other))


@both_versions
def test_no_session_is_resumed(version: int) -> None:
    """A client that keeps and offers its sessions has to show its certificate again."""
    server = BOB.context(version)
    client = SSL.Context(SSL.TLS_METHOD)
    client.set_max_proto_version(version)
    client.use_certificate(ALICE.identity.certificate)
    client.use_privatekey(key("p256"))
    first, other = connected(client, server)
    assert first._ssl is not None
    session = first._ssl.get_session()
    assert session is not None
    first.close()
    carry(first, other)
    again = SSL.Connection(client, None)
    again.set_session(session)
    again.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        again.do_handshake()
    other = TlsConnection(server, server_side=True)
    other.receive(again.bio_read(65536))
    again.bio_write(other.data_to_send())
    try:
        again.do_handshake()
    except SSL.WantReadError:
        assert version == SSL.TLS1_2_VERSION
    other.receive(again.bio_read(65536))
    assert other.handshake_done
    assert other.peer_chain == (ALICE.identity.certificate,)
    # In a resumed session the server would have sent no certificate, in no version.
    assert again.get_session() is not session
    assert again.get_peer_certificate(as_cryptography=True) == BOB.identity.certificate


@pytest.mark.parametrize("server_side", [False, True], ids=["client", "server"])
def test_no_renegotiation(server_side: bool) -> None:
    """A peer that wants another handshake in the same connection does not get it, whichever side it is."""
    loose = SSL.Context(SSL.TLS_METHOD)
    loose.set_max_proto_version(SSL.TLS1_2_VERSION)
    loose.use_certificate(ALICE.identity.certificate)
    loose.use_privatekey(key("p256"))
    if server_side:
        other, one = connected(BOB.context(), loose)
    else:
        one, other = connected(loose, BOB.context())
    check_peer(other, BOB.identity, when=NOW)
    peer = one._ssl
    assert peer is not None
    assert peer.renegotiate()
    # A server only sends a HelloRequest and is done with it; a client sends a ClientHello and waits.
    with suppress(SSL.WantReadError):
        peer.do_handshake()
    other.receive(peer.bio_read(65536))
    answer = other.data_to_send()
    # One warning, encrypted: no_renegotiation.
    assert answer[0] == ALERT
    assert len(answer) < 40
    other.write(b"still here")


# --- bytes that do not belong there ---


@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: registrar\r\n\r\n",
        bytes(64),
        b"\xff" * 64,
        record(APPLICATION_DATA, b"hello" * 10),
        record(99, b"hello"),
        record(HANDSHAKE, b""),
        message(20, bytes(12)),
        message(1, b""),
        message(2, bytes(70)),
        message(11, bytes(3)),
    ],
)
def test_plaintext_instead_of_a_handshake(data: bytes, server_side: bool) -> None:
    connection = TlsConnection(BOB.context(), server_side=server_side)
    with pytest.raises(TlsError):
        feed(connection, [data] * 100)
    assert connection.closed
    assert not connection.handshake_done
    with pytest.raises(TlsUsageError, match="over"):
        connection.receive(data)
    with pytest.raises(TlsUsageError, match="over"):
        connection.write(data)
    connection.close()


@pytest.mark.parametrize(
    ("level", "description", "name"),
    [
        (2, 48, "unknown ca"),
        (2, 40, "handshake failure"),
        (2, 70, "protocol version"),
        (1, 0, "close notify"),
    ],
)
def test_alert_instead_of_a_handshake(level: int, description: int, name: str) -> None:
    """The operator is told what the peer said."""
    one, _ = ends()
    one.data_to_send()
    with pytest.raises(TlsRefusedError, match=name) as caught:
        one.receive(record(ALERT, bytes([level, description])))
    assert caught.value.alert == name
    assert one.closed
    assert not one.closed_by_peer


@both_versions
@pytest.mark.parametrize(
    "data", [b"garbage" * 100, record(APPLICATION_DATA, bytes(100)), client_hello(TLS12, [1])]
)
def test_garbage_after_the_handshake(version: int, data: bytes) -> None:
    """What was said before the garbage counts; the connection does not survive it."""
    one, other = admitted(version)
    one.write(b"good")
    with pytest.raises(TlsPeerError):
        other.receive(one.data_to_send() + data)
    assert other.read() == b"good"
    assert other.closed
    with pytest.raises(TlsRefusedError):
        one.receive(other.data_to_send())
    assert one.closed


@both_versions
def test_oversize_records(version: int) -> None:
    one, other = admitted(version)
    del one
    with pytest.raises(TlsPeerError):
        other.receive(record(APPLICATION_DATA, bytes(0xFFFF)))
    _, fresh = ends()
    with pytest.raises(TlsPeerError):
        fresh.receive(record(HANDSHAKE, bytes(0xFFFF)))
    assert alert(fresh.data_to_send()) == (FATAL, RECORD_OVERFLOW)


def test_a_message_that_never_ends() -> None:
    """A handshake message that says it is 16 MiB long is refused for its length, not collected."""
    _, other = ends()
    with pytest.raises(TlsPeerError, match="excessive message size"):
        other.receive(record(HANDSHAKE, b"\x01\xff\xff\xff" + bytes(1000)))


def test_the_size_of_a_handshake_is_limited() -> None:
    """What the library would still take, in records almost without content, is too much for us."""
    _, other = ends()
    slow = b"".join(record(HANDSHAKE, bytes([byte])) for byte in message(1, bytes(30_000))[5:])
    assert len(slow) > MAX_HANDSHAKE_SIZE
    pieces = [slow[start : start + 600] for start in range(0, len(slow), 600)]
    with pytest.raises(TlsPeerError, match="handshake is not done"):
        feed(other, pieces)
    assert other.closed


@both_versions
def test_every_byte_of_the_handshake_changed(version: int) -> None:
    """No change of one byte makes anything but an error of this package, or leads to another peer."""
    client, server = ALICE.context(version), BOB.context(version)
    rng = random.Random(1)
    outcomes = {True: 0, False: 0}
    for position in count():
        one, other = ends(client, server)
        passed = 0
        error = None
        try:
            while True:
                flights = [(other, one.data_to_send()), (one, other.data_to_send())]
                if not any(data for _, data in flights):
                    break
                for target, data in flights:
                    changed = bytearray(data)
                    if passed <= position < passed + len(data):
                        changed[position - passed] ^= rng.randrange(1, 256)
                    passed += len(data)
                    target.receive(bytes(changed))
        except TlsError as caught:
            error = caught
        if position >= passed:
            if error is None:
                break
            continue
        outcomes[error is None] += 1
        for connection, peer in ((one, BOB), (other, ALICE)):
            if connection.handshake_done:
                assert connection.peer_chain == (peer.identity.certificate,)
    assert outcomes[False] > 1000


# --- bounds and misuse ---


def test_what_is_not_read_is_bounded() -> None:
    """An owner that does not read is told so; the connection bears no harm."""
    one, other = admitted()
    with pytest.raises(TlsUsageError, match="read"):
        feed(other, talk(one, 100))
    unread = len(other.read())
    assert MAX_BACKLOG < unread < MAX_BACKLOG + 20_000
    one.write(b"more")
    assert not other.closed


def test_what_is_not_sent_is_bounded() -> None:
    one, other = admitted()
    with pytest.raises(TlsUsageError, match="sent"):
        hoard(one, 100)
    with pytest.raises(TlsUsageError, match="sent"):
        one.receive(b"x")
    kept = one.data_to_send()
    assert MAX_BACKLOG < len(kept) < MAX_BACKLOG + 20_000
    other.receive(kept)
    assert len(other.read()) > MAX_BACKLOG
    one.write(b"more")


@both_versions
def test_after_the_end(version: int) -> None:
    one, other = admitted(version)
    one.write(b"last words")
    one.close()
    one.close()
    with pytest.raises(TlsUsageError, match="over"):
        one.write(b"x")
    end = one.data_to_send()
    other.receive(end + b"anything")
    assert other.read() == b"last words"
    assert other.closed_by_peer
    other.receive(b"anything")
    other.write(b"too late")
    one.receive(other.data_to_send())
    one.receive(b"anything")
    assert one.read() == b""


def test_close_in_the_middle_of_a_handshake() -> None:
    one, other = ends()
    other.receive(one.data_to_send())
    one.close()
    other.close()
    assert one.closed
    assert other.closed
    assert not one.handshake_done
    fresh = TlsConnection(BOB.context(), server_side=True)
    fresh.close()
    assert fresh.data_to_send() == b""


def leave_an_error_behind() -> None:
    """Do what some other user of the library in this thread might: fail, and not ask why."""
    context = lib.SSL_CTX_new(lib.TLS_method())
    assert lib.SSL_CTX_set_cipher_list(context, b"nonsense") == 0
    assert lib.ERR_peek_error() != 0
    lib.SSL_CTX_free(context)


@both_versions
def test_errors_of_others_are_not_blamed_on_a_connection(version: int) -> None:
    """The library remembers errors by thread, and takes them for those of whatever comes next."""
    one, other = ends(ALICE.context(version), BOB.context(version))
    for _ in range(4):
        leave_an_error_behind()
        other.receive(one.data_to_send())
        leave_an_error_behind()
        one.receive(other.data_to_send())
    leave_an_error_behind()
    check_peer(one, ALICE.identity, when=NOW)
    check_peer(other, BOB.identity, when=NOW)
    leave_an_error_behind()
    one.write(b"fine")
    leave_an_error_behind()
    other.receive(one.data_to_send())
    assert other.read() == b"fine"
    leave_an_error_behind()
    one.close()
    leave_an_error_behind()
    other.receive(one.data_to_send())
    assert other.closed_by_peer
    lib.ERR_clear_error()


@both_versions
def test_errors_of_others_are_not_told_as_the_reason(version: int) -> None:
    one, other = admitted(version)
    del one
    leave_an_error_behind()
    with pytest.raises(TlsPeerError) as caught:
        other.receive(b"garbage" * 100)
    assert "cipher match" not in str(caught.value)
