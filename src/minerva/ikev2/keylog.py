"""Lines for the key tables of Wireshark, so that an operator can read captured packets.

Each is one line of a file of that name in Wireshark's configuration directory.
"""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.ikev2.events import ChildKeys, KeyLog

_ENCRYPTION = "AES-GCM-256 with 16 octet ICV [RFC5282]"
_INTEGRITY = "NONE [RFC4306]"
_ESP_ENCRYPTION = "AES-GCM with 16 octet ICV [RFC4106]"
_ESP_INTEGRITY = "NULL"


def ikev2_decryption_table_line(event: KeyLog) -> str:
    """Return the line of ``ikev2_decryption_table`` that opens the messages of an IKE SA."""
    fields = (
        event.spi_i.hex(),
        event.spi_r.hex(),
        event.sk_ei.reveal().hex(),
        event.sk_er.reveal().hex(),
        f'"{_ENCRYPTION}"',
        "",
        "",
        f'"{_INTEGRITY}"',
    )
    return ",".join(fields)


def esp_sa_lines(local: IPv6Address, remote: IPv6Address, child: ChildKeys) -> tuple[str, str]:
    """Return the lines of ``esp_sa`` that open the packets of a child SA: those to us, and those from us."""
    return (
        _esp_sa_line(remote, local, child.spi_in, child.key_in.reveal()),
        _esp_sa_line(local, remote, child.spi_out, child.key_out.reveal()),
    )


def _esp_sa_line(source: IPv6Address, destination: IPv6Address, spi: int, key: bytes) -> str:
    fields = (
        "IPv6",
        source,
        destination,
        f"0x{spi:08x}",
        _ESP_ENCRYPTION,
        f"0x{key.hex()}",
        _ESP_INTEGRITY,
        "",
    )
    return ",".join(f'"{field}"' for field in fields)
