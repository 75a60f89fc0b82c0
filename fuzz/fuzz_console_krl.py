"""Fuzzes lists of revoked keys and SSH certificates, of which the first byte of the input chooses one."""

from __future__ import annotations

from contextlib import suppress

from _harness import run
from minerva.console.krl import MAGIC, Credential, DecodeError, RevokedKeys


def string(data: bytes) -> bytes:
    """Return a string of SSH."""
    return len(data).to_bytes(4) + data


def target(data: bytes) -> None:
    """Run one input."""
    with suppress(DecodeError):
        if data[:1] < b"\x80":
            shown = Credential.decode(data[1:])
            assert shown not in RevokedKeys()
        else:
            found = RevokedKeys.decode(data[1:])
            for serial in (0, 1, 7, (1 << 64) - 1):
                inside = Credential(b"key", b"CA", serial, b"id") in found
                assert not inside or found.entries


ED25519 = string(b"ssh-ed25519") + string(bytes(32))
CERTIFICATE = b"".join(
    [
        string(b"ssh-ed25519-cert-v01@openssh.com"),
        string(bytes(32)),
        string(bytes(32)),
        bytes(12),
        string(b"id"),
        string(string(b"name")),
        bytes(16),
        string(b"") * 3,
        string(ED25519),
        string(b"signature"),
    ]
)
HEAD = MAGIC + b"\0\0\0\1" + bytes(32)
OF_CA = string(b"CA") + string(b"")

if __name__ == "__main__":
    run(
        target,
        [
            b"\x00" + CERTIFICATE,
            b"\x00" + ED25519,
            b"\x80" + HEAD + b"\x02" + string(string(ED25519)) + b"\x05" + string(string(bytes(32))),
            b"\x80" + HEAD + b"\x01" + string(OF_CA + b"\x20" + string(bytes(7) + b"\x07")),
            b"\x80" + HEAD + b"\x01" + string(OF_CA + b"\x21" + string((bytes(7) + b"\x07") * 2)),
            b"\x80" + HEAD + b"\x01" + string(OF_CA + b"\x22" + string(bytes(8) + string(b"\x01"))),
            b"\x80" + HEAD + b"\x01" + string(OF_CA + b"\x23" + string(string(b"id"))),
            b"\x80SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nssh-ed25519 AAAA\n",
        ],
    )
