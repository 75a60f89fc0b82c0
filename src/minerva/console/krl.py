"""OpenSSH's lists of revoked keys (KRL), as ``ssh-keygen -k`` makes them, and what they are asked about.

The format is that of PROTOCOL.krl and PROTOCOL.certkeys in OpenSSH's sources. A list::

    uint64 0x5353484b524c0a00 ("SSHKRL\\n\\0"), uint32 version = 1, uint64 number, uint64 date, uint64 flags,
    string reserved, string comment, then sections: byte type, string data

Of certificates (type 1) there are, for each CA or with an empty name of a CA for all of them, lists, ranges
and bitmaps of serial numbers, and key ids. Keys are listed as they are (2), or by their SHA-1 (3) or SHA-256
(5). What is not known is an error if it is said to be critical, as for OpenSSH. Signatures (4) are passed
over, as OpenSSH does: a list is good because of where it comes from.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from minerva.core.errors import MinervaError

MAGIC: Final = b"SSHKRL\n\0"
VERSION: Final = 1
MAX_ENTRIES: Final = 1_000_000
"""What a list has at most, all together."""
MAX_BITMAP: Final = 16_384 // 8 + 1
"""Bytes of one bitmap: the largest number that OpenSSH reads."""

_LARGEST_SERIAL: Final = (1 << 64) - 1
_CERT_SUFFIX: Final = b"-cert-v01@openssh.com"
_KEY_FIELDS: Final = {
    b"ssh-ed25519": 1,
    b"ssh-ed448": 1,
    b"ssh-rsa": 2,
    b"ssh-dss": 4,
    b"ecdsa-sha2-nistp256": 2,
    b"ecdsa-sha2-nistp384": 2,
    b"ecdsa-sha2-nistp521": 2,
    b"ecdsa-sha2-1.3.132.0.10": 2,
    b"sk-ssh-ed25519@openssh.com": 2,
    b"sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
"""Of how many strings a public key consists, besides the name of its kind."""


class Section(enum.IntEnum):
    """What a list consists of; spelled as in PROTOCOL.krl, as the next."""

    CERTIFICATES = 1
    EXPLICIT_KEY = 2
    FINGERPRINT_SHA1 = 3
    SIGNATURE = 4
    FINGERPRINT_SHA256 = 5
    EXTENSION = 255


class CertSection(enum.IntEnum):
    """What is said of the certificates of one CA."""

    SERIAL_LIST = 0x20
    SERIAL_RANGE = 0x21
    SERIAL_BITMAP = 0x22
    KEY_ID = 0x23
    EXTENSION = 0x39


class DecodeError(MinervaError):
    """The bytes are not what they should be."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What somebody logged in by: a key, and what its certificate says, if it has one.

    Keys are in SSH's encoding. ``authority`` is the CA's; it is empty without a certificate.
    """

    key: bytes
    authority: bytes = b""
    serial: int = 0
    key_id: bytes = b""

    @classmethod
    def decode(cls, blob: bytes) -> Credential:
        """Return what a key or certificate in SSH's encoding is. Raises DecodeError."""
        reader = Reader(blob)
        kind = reader.string()
        if not kind.endswith(_CERT_SUFFIX):
            return cls(blob)
        kind = kind.removesuffix(_CERT_SUFFIX) + (b"@openssh.com" if kind.startswith(b"sk-") else b"")
        if kind not in _KEY_FIELDS:
            raise DecodeError("a certificate of an unknown kind of key")
        reader.string()  # the nonce
        parts = [kind, *(reader.string() for _ in range(_KEY_FIELDS[kind]))]
        key = b"".join(len(part).to_bytes(4) + part for part in parts)
        serial = reader.number(8)
        reader.number(4)  # for users or for hosts
        key_id = reader.string()
        reader.string()  # the names that it is for
        reader.take(16)  # from when and until when it is good
        for _ in ("critical options", "extensions", "reserved"):
            reader.string()
        return cls(key, reader.string(), serial, key_id)


class Reader:
    """Takes SSH's types from bytes (RFC 4251 section 5). Raises DecodeError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self._at + size
        if end > len(self._data):
            raise DecodeError("it ends in the middle")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        """Return the next number of so many bytes."""
        return int.from_bytes(self.take(size))

    def string(self) -> bytes:
        """Return the next string."""
        return self.take(self.number(4))

    def strings(self) -> Iterator[bytes]:
        """Yield all strings that are left."""
        while self.more:
            yield self.string()


@dataclass(slots=True)
class _OfAuthority:
    """What is revoked of one CA, or of all."""

    serials: set[int] = field(default_factory=set)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    bitmaps: list[tuple[int, bytes]] = field(default_factory=list)
    ids: set[bytes] = field(default_factory=set)

    def merge(self) -> None:
        """Put the ranges in order, without overlaps, so that one is found fast."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted(self.ranges):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        self.ranges = merged

    def has(self, serial: int, key_id: bytes) -> bool:
        if key_id in self.ids:
            return True
        if not serial:  # a certificate without a number
            return False
        if serial in self.serials:
            return True
        index = bisect_right(self.ranges, (serial, _LARGEST_SERIAL)) - 1
        if index >= 0 and serial <= self.ranges[index][1]:
            return True
        return any(_bit(bitmap, serial - offset) for offset, bitmap in self.bitmaps)


def _bit(bitmap: bytes, number: int) -> bool:
    place, bit = divmod(number, 8)
    return 0 <= place < len(bitmap) and bool(bitmap[-1 - place] >> bit & 1)


class RevokedKeys:
    """Keys and certificates that are good no more."""

    def __init__(self) -> None:
        self.entries = 0
        """Of how many entries the list is: a range or bitmap is one."""
        self._keys: set[bytes] = set()
        self._digests: dict[str, set[bytes]] = {"sha1": set(), "sha256": set()}
        self._certificates: dict[bytes, _OfAuthority] = {}

    def __contains__(self, shown: Credential) -> bool:
        """Return whether a key, its certificate, or the CA of that is revoked."""
        if self._has_key(shown.key):
            return True
        if not shown.authority:
            return False
        return self._has_key(shown.authority) or any(
            found.has(shown.serial, shown.key_id)
            for authority in (shown.authority, b"")
            if (found := self._certificates.get(authority)) is not None
        )

    def _has_key(self, key: bytes) -> bool:
        return key in self._keys or any(
            digests and hashlib.new(name, key, usedforsecurity=False).digest() in digests
            for name, digests in self._digests.items()
        )

    @classmethod
    def decode(cls, data: bytes) -> RevokedKeys:
        """Return what is in a file: a KRL, or text. Raises DecodeError."""
        found = cls()
        if data.startswith(MAGIC):
            found._read(Reader(data))
            for each in found._certificates.values():
                each.merge()
        else:
            found._read_text(data)
        return found

    def _count(self, number: int = 1) -> None:
        self.entries += number
        if self.entries > MAX_ENTRIES:
            raise DecodeError(f"it has more than {MAX_ENTRIES} entries")

    def _read(self, reader: Reader) -> None:
        reader.take(len(MAGIC))
        if (version := reader.number(4)) != VERSION:
            raise DecodeError(f"it is a KRL of version {version}; only {VERSION} is known")
        reader.take(24)  # number, date, flags
        reader.string()
        reader.string()
        while reader.more:
            kind = reader.number(1)
            section = Reader(reader.string())
            match kind:
                case Section.CERTIFICATES:
                    self._read_certificates(section)
                case Section.EXPLICIT_KEY:
                    self._add(self._keys, section)
                case Section.FINGERPRINT_SHA1:
                    self._add(self._digests["sha1"], section, 20)
                case Section.FINGERPRINT_SHA256:
                    self._add(self._digests["sha256"], section, 32)
                case Section.SIGNATURE:
                    reader.string()
                case Section.EXTENSION:
                    _pass_over(section)
                case _:
                    raise DecodeError(f"it has a section of the unknown type {kind}")

    def _add(self, to: set[bytes], section: Reader, size: int = 0) -> None:
        for each in section.strings():
            if not each or (size and len(each) != size):
                raise DecodeError("a key or digest is of a wrong length")
            self._count()
            to.add(each)

    def _read_certificates(self, reader: Reader) -> None:
        into = self._certificates.setdefault(reader.string(), _OfAuthority())
        reader.string()
        while reader.more:
            kind = reader.number(1)
            section = Reader(reader.string())
            match kind:
                case CertSection.SERIAL_LIST:
                    while section.more:
                        self._count()
                        into.serials.add(_serial(section))
                case CertSection.SERIAL_RANGE:
                    low, high = _serial(section), _serial(section)
                    if low > high:
                        raise DecodeError("a range of serial numbers ends before it begins")
                    self._count()
                    into.ranges.append((low, high))
                case CertSection.SERIAL_BITMAP:
                    offset, bitmap = section.number(8), section.string()
                    if len(bitmap) > MAX_BITMAP or bitmap[:1] > b"\x7f":
                        raise DecodeError("a bitmap of serial numbers is too long, or negative")
                    self._count()
                    into.bitmaps.append((offset, bitmap))
                case CertSection.KEY_ID:
                    for each in section.strings():
                        self._count()
                        into.ids.add(each)
                case CertSection.EXTENSION:
                    _pass_over(section)
                case _:
                    raise DecodeError(f"it has a section of certificates of the unknown type {kind}")
            if section.more:
                raise DecodeError("a section of certificates has something after its end")

    def _read_text(self, data: bytes) -> None:
        """Read a key or the SHA-256 of one (``SHA256:...``, as ssh-keygen -l shows it) on each line."""
        for number, line in enumerate(data.split(b"\n"), 1):
            words = line.split()
            if not words or words[0].startswith(b"#"):
                continue
            self._count()
            digest = words[0].startswith(b"SHA256:")
            text = words[0].removeprefix(b"SHA256:") if digest else b"".join(words[1:2])
            try:
                found = base64.b64decode(text + b"=" * (-len(text) % 4 if digest else 0), validate=True)
            except binascii.Error:
                found = b""
            if digest and len(found) == hashlib.sha256().digest_size:
                self._digests["sha256"].add(found)
            elif not digest and words[0] in _KEY_FIELDS and _names(found, words[0]):
                self._keys.add(found)
            else:
                raise DecodeError(
                    f"line {number} is neither a public key ('ssh-ed25519 AAAA...') nor the digest of one "
                    "('SHA256:...')"
                )


def _names(key: bytes, kind: bytes) -> bool:
    return key[4 : 4 + int.from_bytes(key[:4])] == kind


def _serial(reader: Reader) -> int:
    if not (serial := reader.number(8)):
        raise DecodeError("0 is no serial number")
    return serial


def _pass_over(section: Reader) -> None:
    """Pass over an extension that is not known, if that is allowed."""
    name, critical = section.string(), section.number(1)
    section.string()
    if critical:
        raise DecodeError(f"it has the critical extension {name!r}, which is not known")
