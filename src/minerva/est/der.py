"""A reader of BER and DER that knows no types: tags, lengths, and the bytes between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from minerva.core.reader import Reader
from minerva.est.errors import EstDecodeError

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
IA5_STRING = 0x16
SEQUENCE = 0x30
SET = 0x31

MAX_INTEGER_SIZE = 2_048
"""The longest INTEGER accepted, in bytes."""

MAX_DEPTH = 16
"""How deep elements of indefinite length may be nested."""

_END_OF_CONTENTS = 0x00
_INDEFINITE = 0x80
_CONTEXT = 0x80
_CONSTRUCTED = 0x20
_MORE = 0x80


def context(number: int, *, constructed: bool = True) -> int:
    """Return the tag that ASN.1 writes as ``[number]``."""
    return _CONTEXT | (_CONSTRUCTED if constructed else 0) | number


@dataclass(frozen=True, slots=True)
class Element:
    """One element: ``tag`` is its first byte, ``content`` what is in it, ``encoded`` all of it."""

    tag: int
    content: bytes
    encoded: bytes

    def expect(self, tag: int, what: str) -> Element:
        """Return the element itself. Raises :class:`EstDecodeError` if its tag is not ``tag``."""
        if self.tag != tag:
            raise EstDecodeError(f"{what}: ASN.1 tag {self.tag:#04x}, not {tag:#04x}")
        return self

    def children(self, what: str, limit: int) -> list[Element]:
        """Return the elements in this one. Raises :class:`EstDecodeError` for more than ``limit``."""
        return list(_elements(self.content, what, limit))


def read(data: bytes, what: str) -> Element:
    """Return the one element that ``data`` is. Raises :class:`EstDecodeError`."""
    if not data:
        raise EstDecodeError(f"{what}: empty")
    (element,) = _elements(data, what, 1)
    return element


def encode(tag: int, *contents: bytes) -> bytes:
    """Return the DER of an element with ``contents`` one after the other."""
    content = b"".join(contents)
    size = len(content)
    if size < _INDEFINITE:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, _INDEFINITE | len(length))) + length + content


def encode_integer(value: int) -> bytes:
    """Return the DER of an INTEGER that is not negative."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def decode_integer(element: Element) -> int:
    """Return the value of an INTEGER. Raises :class:`EstDecodeError`."""
    content = element.expect(INTEGER, "INTEGER").content
    if not 1 <= len(content) <= MAX_INTEGER_SIZE:
        raise EstDecodeError(f"INTEGER of {len(content)} bytes")
    return int.from_bytes(content, signed=True)


def encode_oid(oid: x509.ObjectIdentifier) -> bytes:
    """Return the DER of ``oid``."""
    first, second, *rest = (int(arc) for arc in oid.dotted_string.split("."))
    return encode(OBJECT_IDENTIFIER, *(_base128(arc) for arc in (40 * first + second, *rest)))


def decode_oid(element: Element) -> x509.ObjectIdentifier:
    """Return the OBJECT IDENTIFIER that ``element`` is. Raises :class:`EstDecodeError`."""
    content = element.expect(OBJECT_IDENTIFIER, "OBJECT IDENTIFIER").content
    arcs, arc = [], 0
    for octet in content:
        if not arc and octet == _MORE:
            raise EstDecodeError("OBJECT IDENTIFIER: not in DER")
        arc = arc << 7 | octet & 0x7F
        if not octet & _MORE:
            arcs.append(arc)
            arc = 0
    if not content or content[-1] & _MORE:
        raise EstDecodeError("OBJECT IDENTIFIER: cut off")
    first = min(arcs[0] // 40, 2)
    try:
        return x509.ObjectIdentifier(".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:]))))
    except ValueError as error:
        raise EstDecodeError(f"OBJECT IDENTIFIER of {len(content)} bytes: longer than any in use") from error


def _base128(arc: int) -> bytes:
    octets = [arc & 0x7F]
    while arc := arc >> 7:
        octets.append(arc & 0x7F | _MORE)
    return bytes(reversed(octets))


def _elements(data: bytes, what: str, limit: int) -> Iterator[Element]:
    reader = Reader(data, EstDecodeError)
    for _ in range(limit):
        if not reader.remaining:
            return
        yield _element(reader, data, what, MAX_DEPTH)
    if reader.remaining:
        raise EstDecodeError(f"{what}: more than {limit} element{'s' * (limit > 1)}")


def _element(reader: Reader, data: bytes, what: str, depth: int) -> Element:
    start = reader.position
    tag, length = _header(reader, what)
    begin = reader.position
    if length is not None:
        content = reader.read(length, what)
    elif not tag & _CONSTRUCTED:
        raise EstDecodeError(f"{what}: an indefinite length without elements in it")
    elif not depth:
        raise EstDecodeError(f"{what}: elements of indefinite length nested deeper than {MAX_DEPTH}")
    else:
        end = begin
        while True:
            inner = _element(reader, data, what, depth - 1)
            if inner.tag == _END_OF_CONTENTS:
                break
            end = reader.position
        content = data[begin:end]
    return Element(tag, content, data[start : reader.position])


def _header(reader: Reader, what: str) -> tuple[int, int | None]:
    """Return the tag and the length, ``None`` for an indefinite one."""
    tag = reader.u8(what)
    if tag & 0x1F == 0x1F:
        raise EstDecodeError(f"{what}: an ASN.1 tag of several bytes")
    length = reader.u8(what)
    if tag == _END_OF_CONTENTS and length:
        raise EstDecodeError(f"{what}: an end of contents with contents")
    if length == _INDEFINITE:
        return tag, None
    if length > _INDEFINITE:
        octets = reader.read(length & 0x7F, what)
        if len(octets.lstrip(b"\0")) > 4:
            raise EstDecodeError(f"{what}: a length of {len(octets)} bytes")
        length = int.from_bytes(octets)
    return tag, length
