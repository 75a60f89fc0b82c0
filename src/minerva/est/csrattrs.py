"""What an EST server demands of a certificate request (RFC 7030 section 4.5.2, RFC 9908).

::

    CsrAttrs  ::= SEQUENCE SIZE (0..MAX) OF AttrOrOID
    AttrOrOID ::= CHOICE { oid OBJECT IDENTIFIER, attribute Attribute }
    Attribute ::= SEQUENCE { type OBJECT IDENTIFIER, values SET OF ANY }

What RFC 7030 left open, servers fill with all kinds of things. A client takes what it understands: the
extensions that it has to copy, the type of key, and the template of RFC 9908, with which only that counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from minerva.est import der
from minerva.est.der import Element
from minerva.est.errors import EstDecodeError, EstError
from minerva.pki.errors import NodeNameError
from minerva.pki.keys import KeyType
from minerva.pki.node_name import ID_ON_ACP_NODE_NAME, AcpNodeName
from minerva.pki.request import RequestedExtension

EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
"""id-ExtensionReq: its one value is a list of extensions."""

EC_PUBLIC_KEY = x509.ObjectIdentifier("1.2.840.10045.2.1")
RSA_ENCRYPTION = x509.ObjectIdentifier("1.2.840.113549.1.1.1")

REQUEST_TEMPLATE = x509.ObjectIdentifier("1.2.840.113549.1.9.16.2.61")
"""id-aa-certificationRequestInfoTemplate: a request with gaps (RFC 9908 section 3.4)."""

EXTENSION_REQUEST_TEMPLATE = x509.ObjectIdentifier("1.2.840.113549.1.9.16.2.62")
"""id-aa-extensionReqTemplate: a list of extensions of which some have no value."""

MAX_SIZE = 16_384
"""The largest CsrAttrs accepted, in bytes of DER."""

MAX_ELEMENTS = 64
"""How many elements each list in it may have."""

_CURVES = {
    KeyType.P256: x509.ObjectIdentifier("1.2.840.10045.3.1.7"),
    KeyType.P384: x509.ObjectIdentifier("1.3.132.0.34"),
    KeyType.P521: x509.ObjectIdentifier("1.3.132.0.35"),
}
_RSA_BITS = {KeyType.RSA2048: 2048, KeyType.RSA3072: 3072}

_LEGACY_PREFIX = b"rfc8994+"
# What drafts of RFC 8994 began a name with; the RFC has no such prefix.


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute with its ``values``, each in DER."""

    oid: x509.ObjectIdentifier
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class KeyDemand:
    """The kind of key that a server wants: an algorithm, and the curve or the size in bits."""

    algorithm: x509.ObjectIdentifier
    curve: x509.ObjectIdentifier | None = None
    bits: int | None = None

    @property
    def key_type(self) -> KeyType | None:
        """The type of key to make, ``None`` if it is one that Minerva does not make."""
        if self.algorithm == EC_PUBLIC_KEY:
            if self.curve is None:
                return KeyType.P256
            return next((kind for kind, curve in _CURVES.items() if curve == self.curve), None)
        if self.algorithm == RSA_ENCRYPTION:
            if self.bits is None:
                return KeyType.RSA3072
            return next((kind for kind, bits in _RSA_BITS.items() if bits == self.bits), None)
        return None

    def __str__(self) -> str:
        if self.algorithm == EC_PUBLIC_KEY and self.curve is not None:
            return f"a key on the curve {self.curve.dotted_string}"
        if self.algorithm == RSA_ENCRYPTION and self.bits is not None:
            return f"an RSA key of {self.bits} bits"
        return f"a key for the algorithm {self.algorithm.dotted_string}"


@dataclass(frozen=True, slots=True)
class CsrAttributes:
    """A CsrAttrs: the ``items`` as they came, and what a client has to make of them.

    ``extensions`` are to be copied into the request as they are (RFC 9908 section 3.2); ``node_name`` is the
    acp-node-name in the subjectAltName among them. ``keys`` are the kinds of key, of which any will do.
    """

    items: tuple[x509.ObjectIdentifier | Attribute, ...]
    extensions: tuple[RequestedExtension, ...] = field(init=False)
    node_name: AcpNodeName | None = field(init=False)
    keys: tuple[KeyDemand, ...] = field(init=False)

    def __post_init__(self) -> None:
        attributes = [item for item in self.items if isinstance(item, Attribute)]
        templates = [attribute for attribute in attributes if attribute.oid == REQUEST_TEMPLATE]
        if templates:
            attributes, keys = _read_template(templates)
        else:
            keys = tuple(
                _key_demand(item) for item in self.items if _oid(item) in (EC_PUBLIC_KEY, RSA_ENCRYPTION)
            )
        extensions, node_name = _read_names(_extensions(attributes))
        object.__setattr__(self, "extensions", extensions)
        object.__setattr__(self, "node_name", node_name)
        object.__setattr__(self, "keys", keys)

    @classmethod
    def decode(cls, data: bytes) -> CsrAttributes:
        """Return what is in ``data``, in DER. Raises :class:`EstDecodeError`.

        What is not known is ignored, and so is an extension request that lists types instead of extensions,
        as in the example of RFC 7030. A name in the form of drafts of RFC 8994 is turned into that of the
        RFC, also in ``extensions``.
        """
        if len(data) > MAX_SIZE:
            raise EstDecodeError(f"CsrAttrs of {len(data)} bytes, at most {MAX_SIZE} are accepted")
        elements = der.read(data, "CsrAttrs").expect(der.SEQUENCE, "CsrAttrs")
        return cls(tuple(_item(element) for element in elements.children("CsrAttrs", MAX_ELEMENTS)))

    def encode(self) -> bytes:
        """Return the DER of the items."""
        return der.encode(
            der.SEQUENCE,
            *(
                _encode_attribute(item) if isinstance(item, Attribute) else der.encode_oid(item)
                for item in self.items
            ),
        )

    def key_type(self, default: KeyType = KeyType.P256) -> KeyType:
        """Return the type of key to make, ``default`` if the server does not care.

        Raises :class:`EstError` if it wants only keys that Minerva does not make.
        """
        if not self.keys:
            return default
        possible = [kind for kind in (key.key_type for key in self.keys) if kind is not None]
        if not possible:
            raise EstError(f"the EST server demands {self.keys[0]}, which Minerva does not make")
        return default if default in possible else possible[0]


def for_node_name(node_name: AcpNodeName, key_type: KeyType | None = KeyType.P256) -> bytes:
    """Return the DER of a CsrAttrs that demands ``node_name``, and unless it is ``None`` a ``key_type``.

    That is what a registrar answers an ACP node (RFC 8995 section 5.9.2, RFC 9908 section 5.1).
    """
    names = der.encode(der.SEQUENCE, _other_name(node_name))
    extension = der.encode(
        der.SEQUENCE,
        der.encode_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME),
        der.encode(der.OCTET_STRING, names),
    )
    items = [Attribute(EXTENSION_REQUEST, (der.encode(der.SEQUENCE, extension),))]
    if key_type in _CURVES:
        items.append(Attribute(EC_PUBLIC_KEY, (der.encode_oid(_CURVES[key_type]),)))
    elif key_type in _RSA_BITS:
        items.append(Attribute(RSA_ENCRYPTION, (der.encode_integer(_RSA_BITS[key_type]),)))
    return CsrAttributes(tuple(items)).encode()


def _item(element: Element) -> x509.ObjectIdentifier | Attribute:
    if element.tag == der.OBJECT_IDENTIFIER:
        return der.decode_oid(element)
    return _attribute(element)


def _attribute(element: Element) -> Attribute:
    parts = element.expect(der.SEQUENCE, "attribute").children("attribute", 2)
    if [part.tag for part in parts] != [der.OBJECT_IDENTIFIER, der.SET]:
        raise EstDecodeError("CsrAttrs: an attribute is not a type and a set of values")
    values = parts[1].children("values of an attribute", MAX_ELEMENTS)
    return Attribute(der.decode_oid(parts[0]), tuple(value.encoded for value in values))


def _encode_attribute(attribute: Attribute) -> bytes:
    return der.encode(der.SEQUENCE, der.encode_oid(attribute.oid), der.encode(der.SET, *attribute.values))


def _oid(item: x509.ObjectIdentifier | Attribute) -> x509.ObjectIdentifier:
    return item.oid if isinstance(item, Attribute) else item


def _key_demand(item: x509.ObjectIdentifier | Attribute) -> KeyDemand:
    values = item.values if isinstance(item, Attribute) else ()
    parameter = der.read(values[0], "key type") if len(values) == 1 else None
    return _demand(_oid(item), parameter)


def _demand(algorithm: x509.ObjectIdentifier, parameter: Element | None) -> KeyDemand:
    # What is not in the form of RFC 9908 says nothing.
    if parameter is None:
        return KeyDemand(algorithm)
    if algorithm == EC_PUBLIC_KEY and parameter.tag == der.OBJECT_IDENTIFIER:
        return KeyDemand(algorithm, curve=der.decode_oid(parameter))
    if algorithm == RSA_ENCRYPTION and parameter.tag == der.INTEGER:
        return KeyDemand(algorithm, bits=der.decode_integer(parameter))
    return KeyDemand(algorithm)


def _extensions(attributes: list[Attribute]) -> list[RequestedExtension]:
    """Return the extensions in the one extension request there may be."""
    lists = [
        value
        for attribute in attributes
        if attribute.oid in (EXTENSION_REQUEST, EXTENSION_REQUEST_TEMPLATE)
        for value in attribute.values
        if value[0] == der.SEQUENCE
    ]
    if len(lists) > 1:
        raise EstDecodeError("CsrAttrs: several lists of extensions, at most one may be")
    elements = [
        element
        for value in lists
        for element in der.read(value, "extensions").children("extensions", MAX_ELEMENTS)
    ]
    found = [extension for extension in map(_extension, elements) if extension is not None]
    for oid, count in Counter(extension.oid for extension in found).items():
        if count > 1:
            raise EstDecodeError(f"CsrAttrs: {count} extensions of type {oid.dotted_string}, one may be")
    return found


def _extension(element: Element) -> RequestedExtension | None:
    """Return the extension, ``None`` for one without a value, which is for the client to choose."""
    parts = element.expect(der.SEQUENCE, "extension").children("extension", 3)
    critical = len(parts) > 1 and parts[1].tag == der.BOOLEAN
    if not parts or [part.tag for part in parts[1 + critical :]] not in ([], [der.OCTET_STRING]):
        raise EstDecodeError("CsrAttrs: an extension is not a type, a critical bit and a value")
    oid = der.decode_oid(parts[0])
    if len(parts) == 1 + critical:
        return None
    return RequestedExtension(oid, critical and any(parts[1].content), parts[-1].content)


def _read_names(
    extensions: list[RequestedExtension],
) -> tuple[tuple[RequestedExtension, ...], AcpNodeName | None]:
    """Return the extensions with the name in the form of the RFC, and that name."""
    read, found = [], []
    for extension in extensions:
        value = extension.value
        if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            what = "subjectAltName"
            names = []
            for element in der.read(value, what).expect(der.SEQUENCE, what).children(what, MAX_ELEMENTS):
                node_name = _node_name(element)
                found += [] if node_name is None else [node_name]
                names.append(element.encoded if node_name is None else _other_name(node_name))
            value = der.encode(der.SEQUENCE, *names)
        read.append(RequestedExtension(extension.oid, extension.critical, value))
    if len(found) > 1:
        raise EstDecodeError(f"CsrAttrs: {len(found)} acp-node-names, one may be")
    return tuple(read), found[0] if found else None


def _node_name(element: Element) -> AcpNodeName | None:
    """Return the acp-node-name that a GeneralName is, ``None`` if it is another kind of name."""
    if element.tag != der.context(0):
        return None
    what = "otherName"
    parts = element.children(what, 2)
    if [part.tag for part in parts] != [der.OBJECT_IDENTIFIER, der.context(0)]:
        raise EstDecodeError("CsrAttrs: an otherName is not a type and a value")
    if der.decode_oid(parts[0]) != ID_ON_ACP_NODE_NAME:
        return None
    value = der.read(parts[1].content, what)
    try:
        if value.content.startswith(_LEGACY_PREFIX):
            text = value.expect(der.IA5_STRING, what).content.removeprefix(_LEGACY_PREFIX)
            return AcpNodeName.parse(text.decode("latin-1"))
        return AcpNodeName.decode(value.encoded)
    except NodeNameError as error:
        raise EstDecodeError(f"CsrAttrs: {error}") from error


def _other_name(node_name: AcpNodeName) -> bytes:
    return der.encode(
        der.context(0), der.encode_oid(ID_ON_ACP_NODE_NAME), der.encode(der.context(0), node_name.encode())
    )


def _read_template(templates: list[Attribute]) -> tuple[list[Attribute], tuple[KeyDemand, ...]]:
    """Return the attributes and the kinds of key of a CertificationRequestInfoTemplate::

        SEQUENCE {
            version       INTEGER { v1(0) },
            subject       NameTemplate OPTIONAL,
            subjectPKInfo [0] SubjectPublicKeyInfoTemplate OPTIONAL,
            attributes    [1] Attributes }

    Its subject is left aside: of an ACP node, only the acp-node-name counts.
    """
    what = "request template"
    if len(templates) > 1 or len(templates[0].values) != 1:
        raise EstDecodeError("CsrAttrs: several request templates, one may be")
    parts = der.read(templates[0].values[0], what).expect(der.SEQUENCE, what).children(what, 4)
    if not parts or parts[0].tag != der.INTEGER or der.decode_integer(parts[0]) != 0:
        raise EstDecodeError("CsrAttrs: a request template of an unknown version")
    keys, attributes = [], []
    for part in parts[1:]:
        if part.tag == der.context(0):
            keys.append(_template_key(part))
        elif part.tag == der.context(1):
            attributes += [_attribute(element) for element in part.children(what, MAX_ELEMENTS)]
    return attributes, tuple(keys)


def _template_key(element: Element) -> KeyDemand:
    # SubjectPublicKeyInfoTemplate ::= SEQUENCE { algorithm AlgorithmIdentifier, subjectPublicKey BIT STRING
    # OPTIONAL }, of which the key is there to show its size.
    what = "key of a request template"
    parts = element.children(what, 2)
    if not parts:
        raise EstDecodeError(f"{what}: empty")
    algorithm = parts[0].expect(der.SEQUENCE, what).children(what, 2)
    if not algorithm:
        raise EstDecodeError(f"{what}: no algorithm")
    oid = der.decode_oid(algorithm[0])
    if oid != RSA_ENCRYPTION:
        return _demand(oid, algorithm[1] if len(algorithm) > 1 else None)
    if len(parts) == 1:
        return KeyDemand(oid)
    # The first byte of a BIT STRING is the number of bits that are not used.
    key = der.read(parts[1].expect(der.BIT_STRING, what).content[1:], what).expect(der.SEQUENCE, what)
    numbers = key.children(what, 2)
    if not numbers:
        raise EstDecodeError(f"{what}: no modulus")
    return KeyDemand(oid, bits=der.decode_integer(numbers[0]).bit_length())
