"""Lets Wireshark read what an SA protects: for a laboratory, never for a network in use."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.core.secret import Secret


def esp_sa_line(source: IPv6Address, destination: IPv6Address, spi: int, key: Secret) -> str:
    """Return the line, without its end, for Wireshark's file ``esp_sa`` that decrypts one SA.

    The addresses are those of the outer packets. Wireshark decrypts only with the preference
    ``esp.enable_encryption_decode`` set. The line shows the key.
    """
    fields = (
        "IPv6",
        str(source),
        str(destination),
        f"0x{spi:08x}",
        "AES-GCM with 16 octet ICV [RFC4106]",
        f"0x{key.reveal().hex()}",
        # The ICV of an AEAD is its own; there is no second algorithm to name.
        "NULL",
        "",
    )
    return ",".join(f'"{field}"' for field in fields)
