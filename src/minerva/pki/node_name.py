"""The acp-node-name: who a node is, in one string of its certificate (RFC 8994 section 6.2.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address

from cryptography import x509

from minerva.core.reader import Reader
from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import NodeNameError

ID_ON_ACP_NODE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.10")
"""id-on-AcpNodeName: the type of the otherName that holds an acp-node-name (RFC 8994 section 6.2.2.1)."""

MAX_NAME_LENGTH = 1024
"""The longest acp-node-name accepted, in characters. The RFC sets none; no honest one comes near."""

MAX_DOMAIN_LENGTH = 253
"""The longest routing-subdomain accepted, in characters: the 255 octets of RFC 1034 section 3.1."""

_IA5_STRING = 0x16

# RFC 1034 section 3.5: a label starts with a letter, ends with a letter or digit, and has at most 63.
_LABEL = r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"
_NODE_NAME = re.compile(
    r"(?P<address>[0-9A-Fa-f]{32}|0)?"
    rf"(?:\+(?P<rsub>{_SUBDOMAIN})?(?P<extensions>(?:\+[A-Za-z0-9!#$%&'*\-/=?^_`{{|}}~]+)*))?"
    rf"@(?P<domain>{_SUBDOMAIN})"
)


class AddressField(Enum):
    """What stands in the place of the acp-address."""

    ADDRESS = "32HEXDIG"
    ZERO = "0"
    OMITTED = ""


@dataclass(frozen=True, slots=True)
class AcpNodeName:
    """An acp-node-name, taken apart::

        acp-node-name = local-part "@" acp-domain-name
        local-part = [ acp-address ] [ "+" rsub extensions ]
        acp-address = 32HEXDIG / "0"
        rsub = [ <subdomain> ]
        extensions = *( "+" extension )
        routing-subdomain = [ rsub "." ] acp-domain-name

    ``address`` is there exactly if ``address_field`` is ``ADDRESS``. ``rsub`` is ``None`` without the "+"
    that introduces it, and empty where nothing follows the "+"; extensions need the "+". Domain and rsub
    keep the case they came in: compare and hash :attr:`acp_domain` and :attr:`routing_subdomain`.

    Raises :class:`NodeNameError` if the parts do not make a valid name.
    """

    domain: str
    address: IPv6Address | None = None
    rsub: str | None = None
    extensions: tuple[str, ...] = ()
    address_field: AddressField = AddressField.ADDRESS

    def __post_init__(self) -> None:
        if (self.address is None) is (self.address_field is AddressField.ADDRESS):
            raise NodeNameError(
                f"acp-node-name: address {self.address} with address field {self.address_field.name}"
            )
        if self.extensions and self.rsub is None:
            raise NodeNameError('acp-node-name: extensions follow the "+" of an rsub, which may be empty')
        _match(str(self))

    @classmethod
    def parse(cls, text: str) -> AcpNodeName:
        """Return the name that ``text`` is. Raises :class:`NodeNameError`."""
        match = _match(text)
        field, address = AddressField.ADDRESS, None
        if match["address"] is None:
            field = AddressField.OMITTED
        elif match["address"] == "0":
            field = AddressField.ZERO
        else:
            address = IPv6Address(bytes.fromhex(match["address"]))
        extensions = match["extensions"]
        return cls(
            domain=match["domain"],
            address=address,
            rsub=None if extensions is None else match["rsub"] or "",
            extensions=tuple(extensions[1:].split("+")) if extensions else (),
            address_field=field,
        )

    @classmethod
    def decode(cls, data: bytes) -> AcpNodeName:
        """Return the name in the DER of an IA5String. Raises :class:`NodeNameError`."""
        return cls.parse(_decode_ia5_string(data))

    @classmethod
    def of(cls, certificate: x509.Certificate) -> AcpNodeName:
        """Return the name that ``certificate`` holds as an otherName of its subjectAltName.

        Raises :class:`NodeNameError` if there is none, more than one, or an invalid one.
        """
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            raise NodeNameError("no acp-node-name in the certificate: it has no subjectAltName") from None
        except UNREADABLE as error:
            raise NodeNameError("the certificate's extensions cannot be read") from error
        names = [
            name.value
            for name in extension.value.get_values_for_type(x509.OtherName)
            if name.type_id == ID_ON_ACP_NODE_NAME
        ]
        if len(names) != 1:
            raise NodeNameError(f"{len(names) or 'no'} acp-node-names in the certificate, one wanted")
        return cls.decode(names[0])

    @property
    def acp_domain(self) -> str:
        """The acp-domain-name in lower case, as the membership check compares it."""
        return self.domain.lower()

    @property
    def routing_subdomain(self) -> str:
        """The routing-subdomain in lower case, as it is hashed into the ULA prefix."""
        return f"{self.rsub}.{self.domain}".lower() if self.rsub else self.acp_domain

    def __str__(self) -> str:
        address = self.address_field.value if self.address is None else f"{int(self.address):032x}"
        plus = "" if self.rsub is None else "+".join(["", self.rsub, *self.extensions])
        return f"{address}{plus}@{self.domain}"

    def encode(self) -> bytes:
        """Return the DER of the name as an IA5String."""
        content = str(self).encode("ascii")
        size = len(content)
        if size < 0x80:
            return bytes((_IA5_STRING, size)) + content
        length = size.to_bytes((size.bit_length() + 7) // 8)
        return bytes((_IA5_STRING, 0x80 | len(length))) + length + content

    def other_name(self) -> x509.OtherName:
        """Return the name as the GeneralName that goes into a subjectAltName."""
        return x509.OtherName(ID_ON_ACP_NODE_NAME, self.encode())


def is_domain(text: str) -> bool:
    """Return whether ``text`` can be an acp-domain-name or an rsub, as far as its characters go."""
    return re.fullmatch(_SUBDOMAIN, text) is not None


def _match(text: str) -> re.Match[str]:
    if len(text) > MAX_NAME_LENGTH:
        raise NodeNameError(f"acp-node-name of {len(text)} characters, at most {MAX_NAME_LENGTH} allowed")
    match = _NODE_NAME.fullmatch(text)
    if match is None:
        raise NodeNameError(f"not an acp-node-name: {text!a}")
    if len(f"{match['rsub'] or ''}.{match['domain']}".lstrip(".")) > MAX_DOMAIN_LENGTH:
        raise NodeNameError(f"acp-node-name with a domain longer than {MAX_DOMAIN_LENGTH} characters")
    return match


def _decode_ia5_string(data: bytes) -> str:
    reader = Reader(data, NodeNameError)
    if reader.u8("tag") != _IA5_STRING:
        raise NodeNameError(f"acp-node-name: ASN.1 tag {data[0]:#04x}, not an IA5String")
    length = reader.u8("length")
    if length >= 0x80:
        octets = reader.read(length & 0x7F, "length")
        length = int.from_bytes(octets)
        if not octets or octets[0] == 0 or length < 0x80:
            raise NodeNameError("acp-node-name: length is not in DER")
    content = reader.read(length, "acp-node-name")
    reader.expect_end("acp-node-name")
    if not content.isascii():
        raise NodeNameError("acp-node-name: not ASCII")
    return content.decode("ascii")
