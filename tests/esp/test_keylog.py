"""Wireshark reads our packets with the keys that we give it: a judge of both."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.core.secret import Secret
from minerva.esp.keylog import esp_sa_line
from minerva.esp.sa import OutboundSA
from minerva.linux.icmp import Echo, EchoType
from minerva.linux.pcap import LinkType, PcapngWriter

SOURCE, DESTINATION = IPv6Address("fe80::a"), IPv6Address("fe80::b")
INNER_SOURCE, INNER_DESTINATION = IPv6Address("fd89:b714:f3db::1"), IPv6Address("fd89:b714:f3db::2")
SPI = 0x00C0FFEE
KEY = Secret(bytes(range(100, 136)))
ICMPV6, ESP = 58, 50


def test_line() -> None:
    assert esp_sa_line(SOURCE, DESTINATION, SPI, KEY) == (
        '"IPv6","fe80::a","fe80::b","0x00c0ffee","AES-GCM with 16 octet ICV [RFC4106]",'
        f'"0x{bytes(range(100, 136)).hex()}","NULL",""'
    )


def ipv6(next_header: int, source: IPv6Address, destination: IPv6Address, payload: bytes) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64)
        + source.packed
        + destination.packed
        + payload
    )


def echo_request(sequence: int) -> bytes:
    """Return an IPv6 packet with an echo request, checksum included (RFC 4443 section 2.3)."""
    message = Echo(EchoType.ECHO_REQUEST, 0xBEEF, sequence, b"x" * sequence).encode()
    pseudo = INNER_SOURCE.packed + INNER_DESTINATION.packed + struct.pack("!II", len(message), ICMPV6)
    total = pseudo + message + bytes(len(message) % 2)
    words = sum(struct.unpack(f"!{len(total) // 2}H", total))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    message = message[:2] + struct.pack("!H", ~words & 0xFFFF) + message[4:]
    return ipv6(ICMPV6, INNER_SOURCE, INNER_DESTINATION, message)


def tshark(capture: Path, folder: Path, *arguments: str) -> str:
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("tshark is not installed")
    done = subprocess.run(
        [program, "-n", "-r", str(capture), *arguments],
        env={**os.environ, "WIRESHARK_CONFIG_DIR": str(folder), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "esp_sa" not in done.stderr, done.stderr
    return done.stdout


FIELDS = (
    *("esp.spi", "esp.sequence", "ipv6.src", "ipv6.dst", "icmpv6.type", "icmpv6.echo.sequence_number"),
    *("icmpv6.checksum.status", "esp.icv_good", "esp.icv_bad", "_ws.malformed", "_ws.expert.message"),
)
COUNT = 8


def judged(folder: Path, link_type: LinkType, key: Secret) -> list[list[str]]:
    """Return what tshark finds in ``COUNT`` packets sealed with ``KEY`` if it is told ``key``, by FIELDS."""
    sa = OutboundSA(SPI, KEY)
    capture = folder / "esp.pcapng"
    writer = PcapngWriter(capture.open("wb"))
    interface = writer.add_interface("eth0", link_type)
    ethernet = bytes.fromhex("02000000000b 02000000000a 86dd") if link_type is LinkType.ETHERNET else b""
    for sequence in range(1, COUNT + 1):
        packet = ipv6(ESP, SOURCE, DESTINATION, sa.seal(echo_request(sequence)))
        writer.write(interface, 1_700_000_000_000_000_000 + sequence, ethernet + packet)
    writer.close()
    (folder / "esp_sa").write_text(esp_sa_line(SOURCE, DESTINATION, SPI, key) + "\n")
    (folder / "preferences").write_text(
        "esp.enable_encryption_decode: TRUE\nesp.enable_authentication_check: TRUE\n"
    )
    options = [part for name in FIELDS for part in ("-e", name)]
    lines = tshark(capture, folder, "-T", "fields", "-E", "separator=;", *options).splitlines()
    assert len(lines) == COUNT
    return [line.split(";") for line in lines]


@pytest.mark.parametrize("link_type", LinkType)
def test_tshark_decrypts(tmp_path: Path, link_type: LinkType) -> None:
    """Another implementation finds the inner packet, its checksum and the ICV right.

    covers: 6.8.3.1.1-2
    """
    for sequence, found in enumerate(judged(tmp_path, link_type, KEY), start=1):
        assert found == [
            f"0x{SPI:08x}",
            str(sequence),
            f"{SOURCE},{INNER_SOURCE}",
            f"{DESTINATION},{INNER_DESTINATION}",
            "128",
            str(sequence),
            "1",
            "1",
            "0",
            "",
            "",
        ]


def test_tshark_would_notice_a_wrong_key(tmp_path: Path) -> None:
    for found in judged(tmp_path, LinkType.IPV6, Secret(bytes(36))):
        assert found[2:6] == [str(SOURCE), str(DESTINATION), "", ""]
        assert found[7:9] == ["0", "1"]
