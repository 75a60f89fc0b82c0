"""Lines for ``ikev2_decryption_table`` of Wireshark, so that an operator can read captured packets."""

from __future__ import annotations

from minerva.ikev2.events import KeyLog

_ENCRYPTION = "AES-GCM-256 with 16 octet ICV [RFC5282]"
_INTEGRITY = "NONE [RFC4306]"


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
