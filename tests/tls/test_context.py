"""What we offer, as bytes on the wire, read by Wireshark's dissector and not by us."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from minerva.linux.pcap import LinkType, PcapngWriter
from minerva.tls.connection import TlsConnection
from minerva.tls.context import make_context
from minerva.tls.errors import TlsUsageError
from tests.pki.certs import key, node_name
from tests.tls.ends import ALICE, BOB, ROOT, connected

FIELDS = (
    *(
        "tls.handshake.type",
        "tls.handshake.version",
        "tls.handshake.ciphersuite",
        "tls.handshake.comp_method",
    ),
    *("tls.handshake.extensions.supported_version", "tls.handshake.extensions_supported_group"),
    *("tls.handshake.extensions_key_share_group", "tls.handshake.sig_hash_alg"),
    *("tls.handshake.extensions_ec_point_format", "tls.handshake.extension.type"),
    *("tls.handshake.extensions_server_name", "_ws.malformed"),
)


def dissected(data: bytes, folder: Path) -> dict[str, list[str]]:
    """Return what tshark reads in ``data``, sent by a client to the port of GRASP: numbers in decimal."""
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("tshark is not installed")
    capture = folder / "hello.pcapng"
    tcp = struct.pack("!HHIIBBHHH", 40000, 7017, 1, 1, 5 << 4, 0x18, 65535, 0, 0) + data
    source, destination = (IPv6Address(f"fd89:b714:f3db:0:200:0:6400:{node}") for node in (2, 4))
    packet = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + source.packed + destination.packed + tcp
    with capture.open("wb") as stream:
        writer = PcapngWriter(stream)
        writer.write(writer.add_interface("acp", LinkType.IPV6), 1_700_000_000_000_000_000, packet)
        writer.flush()
    options = [part for name in FIELDS for part in ("-e", name)]
    done = subprocess.run(
        [program, "-n", "-r", str(capture), "-d", "tcp.port==7017,tls", "-T", "fields", *options],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(folder), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    values = done.stdout.rstrip("\n").split("\t")
    return {
        name: [_number(value) for value in text.split(",") if value]
        for name, text in zip(FIELDS, values, strict=True)
    }


def _number(text: str) -> str:
    try:
        return str(int(text, 0))
    except ValueError:
        return text


def test_client_hello_offers_what_the_acp_demands_and_nothing_else(tmp_path: Path) -> None:
    """The ClientHello of a node, dissected.

    covers: 6.1-1, 6.1-2, 6.1-3, 6.1-4, 6.1-5, 6.1-6
    """
    hello = dissected(TlsConnection(ALICE.context(), server_side=False).data_to_send(), tmp_path)
    assert hello["tls.handshake.type"] == ["1"]
    assert hello["_ws.malformed"] == []
    assert hello["tls.handshake.extensions.supported_version"] == [str(0x0304), str(0x0303)]
    assert [f"{int(suite):04x}" for suite in hello["tls.handshake.ciphersuite"]] == [
        *("1302", "1303"),  # TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256
        *("c02c", "c030"),  # TLS_ECDHE_ECDSA_ and TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
    ]
    secp256r1, secp384r1, secp521r1, x25519 = "23", "24", "25", "29"
    assert hello["tls.handshake.extensions_supported_group"] == [secp256r1, secp384r1, x25519, secp521r1]
    assert hello["tls.handshake.extensions_key_share_group"] == [secp256r1]
    assert {f"{int(algorithm):04x}" for algorithm in hello["tls.handshake.sig_hash_alg"]} == {
        *("0403", "0503", "0603"),
        *("0804", "0805", "0806"),
        *("0401", "0501", "0601"),
    }
    assert hello["tls.handshake.comp_method"] == ["0"]
    server_name, session_ticket, compress_certificate, pre_shared_key, early_data = (
        "0",
        "35",
        "27",
        "41",
        "42",
    )
    assert not {server_name, session_ticket, compress_certificate, pre_shared_key, early_data} & set(
        hello["tls.handshake.extension.type"]
    )


@pytest.mark.skipif(
    Binding.lib.OpenSSL_version_num() < 0x40000000,
    reason="OpenSSL before 4.0 also offers compressed points and has no way to be told not to",
)
@pytest.mark.parametrize("version", [None, SSL.TLS1_2_VERSION])
def test_client_offers_uncompressed_points_only(version: int | None, tmp_path: Path) -> None:
    """Also a client that knows TLS 1.2 alone, for which the RFC wants it.

    covers: 6.1-6, 6.1-7
    """
    hello = dissected(TlsConnection(ALICE.context(version), server_side=False).data_to_send(), tmp_path)
    assert hello["tls.handshake.extensions_ec_point_format"] == ["0"]
    assert {"23", "24"} <= set(hello["tls.handshake.extensions_supported_group"])


def test_server_name_is_asked_for(tmp_path: Path) -> None:
    client = TlsConnection(ALICE.context(), server_side=False, server_name="registrar.example.com")
    hello = dissected(client.data_to_send(), tmp_path)
    assert hello["tls.handshake.extensions_server_name"] == ["registrar.example.com"]


@pytest.mark.parametrize("name", ["", "fd89:b714:f3db::1", "192.0.2.1", "räuber.example", "a\0b", "a\nb"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(TlsUsageError):
        TlsConnection(ALICE.context(), server_side=False, server_name=name)


def test_a_server_asks_for_no_name() -> None:
    with pytest.raises(TlsUsageError):
        TlsConnection(ALICE.context(), server_side=True, server_name="registrar.example.com")


def test_key_of_another_certificate() -> None:
    with pytest.raises(TlsUsageError, match="mismatch"):
        make_context(ALICE.identity.certificate, (), key("p256/other"))
    with pytest.raises(TlsUsageError):
        make_context(ALICE.identity.certificate, (), key("rsa2048"))


def test_key_that_is_too_weak() -> None:
    with pytest.raises(TlsUsageError, match="too small"):
        make_context(ROOT.node(node_name(1), kind="rsa1024"), (), key("rsa1024"))


def test_one_context_serves_both_sides() -> None:
    alice, bob = ALICE.context(), BOB.context()
    assert connected(alice, bob)[0].peer_chain == connected(bob, alice)[1].peer_chain
