"""Lines for ``ikev2_decryption_table`` of Wireshark, so that an operator can read captured packets."""

from __future__ import annotations

from minerva.ikev2.constants import EncryptionId
from minerva.ikev2.events import KeyLog

_ENCRYPTION = "AES-GCM-256 with 16 octet ICV [RFC5282]"
_INTEGRITY = "NONE [RFC4306]"


def ikev2_decryption_table_line(event: KeyLog) -> str | None:
    """Return the line of ``ikev2_decryption_table`` that opens the messages of an IKE SA.

    ``None`` for a cipher that Wireshark does not decrypt: it would refuse the whole table for one such line.
    """
    if event.algorithm is not EncryptionId.ENCR_AES_GCM_16:
        return None
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
