"""tshark as the judge: it opens what two endpoints said to each other, with the keys from the key log."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from minerva.core.secret import Secret
from minerva.esp.keylog import esp_sa_line
from minerva.ikev2.config import Config
from minerva.ikev2.constants import IKE_PORT, DhGroup, PrfId
from minerva.ikev2.endpoint import Established, KeyLog
from minerva.ikev2.keylog import ikev2_decryption_table_line
from tests.ikev2.nodes import A, B, Net

TSHARK = shutil.which("tshark")
needs_tshark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")

UDP, ESP = 17, 50
LINKTYPE_RAW = 101


def ipv6(source: IPv6Address, destination: IPv6Address, next_header: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 0x6000_0000, len(payload), next_header, 255)
    return head + source.packed + destination.packed + payload


def udp(source: IPv6Address, destination: IPv6Address, data: bytes) -> bytes:
    length = 8 + len(data)
    pseudo = source.packed + destination.packed + struct.pack("!IxxxB", length, UDP)
    segment = struct.pack("!HHHH", IKE_PORT, IKE_PORT, length, 0) + data
    words = pseudo + segment + b"\x00" * (length % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = ~total & 0xFFFF or 0xFFFF
    return ipv6(source, destination, UDP, segment[:6] + struct.pack("!H", checksum) + data)


def write_pcap(path: Path, packets: list[bytes]) -> None:
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, LINKTYPE_RAW)
    for number, packet in enumerate(packets):
        data += struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet
    path.write_bytes(data)


def dissect(folder: Path, packets: list[bytes], tables: dict[str, list[str]], *options: str) -> list[Any]:
    """Return what tshark makes of the packets, given these key tables."""
    assert TSHARK is not None
    for name, lines in tables.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    write_pcap(folder / "packets.pcap", packets)
    environment = os.environ | {"WIRESHARK_CONFIG_DIR": str(folder), "HOME": str(folder)}
    result = subprocess.run(
        [TSHARK, "-r", str(folder / "packets.pcap"), "-T", "json", "--no-duplicate-keys", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [packet["_source"]["layers"] for packet in json.loads(result.stdout)]


def values(tree: Any, key: str) -> list[str]:
    """Return all values of a field, wherever in what tshark says of a packet."""
    found: list[str] = []
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                found += value if isinstance(value, list) else [value]
            found += values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            found += values(value, key)
    return found


def line(event: KeyLog) -> str:
    found = ikev2_decryption_table_line(event)
    assert found is not None
    return found


@needs_tshark
@pytest.mark.parametrize(
    ("group", "prf"),
    [
        (DhGroup.ECP_256, PrfId.PRF_HMAC_SHA2_256),
        (DhGroup.ECP_384, PrfId.PRF_HMAC_SHA2_384),
        (DhGroup.CURVE25519, PrfId.PRF_HMAC_SHA2_512),
    ],
)
def test_tshark_reads_a_handshake(tmp_path: Path, group: DhGroup, prf: PrfId) -> None:
    """covers: 6.8.2-2, 6.8.3.1-3, 6.8.3.1.2-2, 6.8.3.1.2-5, 6.8.3.1.2-6"""
    config = Config(groups=(group,), prfs=(prf,), keylog=True, max_datagram=None)
    net = Net(config_a=config, config_b=config)
    net.handshake()
    net.run(4)
    (keys,) = net.a.events(KeyLog)
    assert net.b.events(KeyLog)[0].sk_ei == keys.sk_ei
    packets = [udp(packet.source, packet.destination, packet.data) for packet in net.link.carried]
    layers = dissect(
        tmp_path,
        packets,
        {"ikev2_decryption_table": [line(keys)]},
        "-o",
        "udp.check_checksum:TRUE",
    )
    assert len(layers) == len(packets)
    for layer in layers:
        assert "_ws.malformed" not in json.dumps(layer)
        assert set(values(layer, "udp.checksum.status")) <= {"1"}
    for layer, party, kind in ((layers[2], net.a.who, "35"), (layers[3], net.b.who, "36")):
        assert set(values(layer, "isakmp.enc.icd.status")) <= {"1"}
        types = values(layer, "isakmp.typepayload")
        for wanted in ("46", kind, "37", "39", "33", "44", "45"):
            assert wanted in types, f"payload {wanted}"
        address = party.identity.address.address
        assert [IPv6Address(a) for a in values(layer, "isakmp.id.data.ipv6_addr")] == [address]
        assert values(layer, "isakmp.auth.method") == ["14"]
        assert values(layer, "isakmp.cert.encoding")[0] == "4"
        assert "fe80" not in "".join(values(layer, "isakmp.ts.start_ipv6"))
        assert {IPv6Address(a) for a in values(layer, "isakmp.ts.start_ipv6")} == {IPv6Address(0)}
        assert {IPv6Address(a) for a in values(layer, "isakmp.ts.end_ipv6")} == {IPv6Address(2**128 - 1)}
    assert values(layers[2], "isakmp.notify.msgtype") == ["16384"], "INITIAL_CONTACT"


@needs_tshark
def test_tshark_reads_nothing_with_another_key(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    config = Config(keylog=True)
    net = Net(config_a=config)
    net.handshake()
    (keys,) = net.a.events(KeyLog)
    wrong = KeyLog(keys.sa, keys.spi_i, keys.spi_r, Secret(bytes(36)), Secret(bytes(36)))
    packets = [udp(packet.source, packet.destination, packet.data) for packet in net.link.carried]
    layers = dissect(tmp_path, packets, {"ikev2_decryption_table": [line(wrong)]})
    assert not values(layers[2], "isakmp.auth.method")


def esp_packet(source: IPv6Address, destination: IPv6Address, spi: int, key: Secret) -> bytes:
    """An ESP packet of RFC 4303 and 4106 around an inner IPv6 packet without content, for this test alone."""
    inner = ipv6(IPv6Address("fd00::1"), IPv6Address("fd00::2"), 59, b"")
    material, iv = key.reveal(), (7).to_bytes(8)
    head = struct.pack("!II", spi, 1)
    plaintext = inner + b"\x01\x02" + bytes((2, 41))
    sealed = AESGCM(material[:32]).encrypt(material[32:] + iv, plaintext, head)
    return ipv6(source, destination, ESP, head + iv + sealed)


@needs_tshark
def test_tshark_reads_the_child_sa(tmp_path: Path) -> None:
    """The lines of ``esp_sa`` open ESP packets made by hand with the keys that IKE reports."""
    net = Net()
    of_a, of_b = net.handshake()
    packets = [
        esp_packet(A, B, of_a.child.spi_out, of_a.child.key_out),
        esp_packet(B, A, of_b.child.spi_out, of_b.child.key_out),
    ]
    layers = dissect(
        tmp_path,
        packets,
        {
            "esp_sa": [
                esp_sa_line(B, A, of_a.child.spi_in, of_a.child.key_in),
                esp_sa_line(A, B, of_a.child.spi_out, of_a.child.key_out),
            ]
        },
        "-o",
        "esp.enable_encryption_decode:TRUE",
    )
    for layer in layers:
        assert values(layer, "esp.protocol") == ["0x29"], "next header 41: IPv6 in tunnel mode"
        assert "fd00::2" in values(layer, "ipv6.dst") + values(layer, "ipv6.addr")


def test_line() -> None:
    event = KeyLog(1, b"i" * 8, b"r" * 8, Secret(b"\x03" * 36), Secret(b"\x04" * 36))
    assert ikev2_decryption_table_line(event) == (
        f"{'69' * 8},{'72' * 8},{'03' * 36},{'04' * 36},"
        '"AES-GCM-256 with 16 octet ICV [RFC5282]",,,"NONE [RFC4306]"'
    )


def test_both_sides_log_the_same_keys() -> None:
    config = Config(keylog=True)
    net = Net(config_a=config, config_b=config)
    established, _ = net.handshake()
    (of_a,), (of_b,) = net.a.events(KeyLog), net.b.events(KeyLog)
    assert isinstance(established, Established)
    assert (of_a.spi_i, of_a.spi_r) == (established.ike_spi_i, established.ike_spi_r)
    assert (of_a.sk_ei, of_a.sk_er) == (of_b.sk_ei, of_b.sk_er)
