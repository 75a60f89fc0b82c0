"""Certificate requests (PKCS #10, RFC 2986): those that we make, and those of strangers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import AttributeOID, ExtensionOID

from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import KeyRuleError, NodeNameError, RequestError
from minerva.pki.keys import HASHES, PrivateKey, check_public_key, signature_hash
from minerva.pki.node_name import ID_ON_ACP_NODE_NAME, AcpNodeName

MAX_REQUEST_SIZE = 16_384
"""The largest request accepted, in bytes of DER."""

MAX_NAMES = 16
"""How many names the subjectAltName of a request may hold."""

_EXTENSION_REQUESTS = (
    x509.ObjectIdentifier("1.2.840.113549.1.9.14"),
    x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"),
)
"""extensionRequest of PKCS #9, and the number that another vendor gave to the same thing."""


@dataclass(frozen=True, slots=True)
class RequestedExtension:
    """An extension as it is to be in a request: its type, its critical bit, and the DER of its value."""

    oid: x509.ObjectIdentifier
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A request whose sender has proved that it owns the private key.

    ``node_name`` is the acp-node-name that it asks for, ``other_names`` are all others in its
    subjectAltName, and ``extensions`` all it asks for but the subjectAltName. ``challenge_password`` says
    whether it has one, which EST uses to bind a request to a TLS connection (RFC 7030 section 3.5).
    """

    public_key: CertificatePublicKeyTypes
    subject: x509.Name
    node_name: AcpNodeName | None
    other_names: tuple[x509.GeneralName, ...] = ()
    extensions: tuple[x509.Extension[x509.ExtensionType], ...] = ()
    challenge_password: bool = False
    der: bytes = field(default=b"", repr=False)


def make_request(
    key: PrivateKey,
    node_name: AcpNodeName | None,
    *,
    extensions: Sequence[RequestedExtension] = (),
    subject: x509.Name | None = None,
) -> bytes:
    """Return a request for a certificate of ``node_name``, in DER, signed with ``key``.

    ``extensions`` are copied as they are, critical bits included, as a client has to with those that
    an EST server told it (RFC 9908). If a subjectAltName is among them it is the one of the request, and
    none is made of ``node_name``. ``subject`` is empty if left out; to renew a certificate, it is that of
    the old one (RFC 7030 section 4.2.2).

    Raises :class:`RequestError` if two of ``extensions`` are of the same type.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    try:
        for extension in extensions:
            value = x509.UnrecognizedExtension(extension.oid, extension.value)
            builder = builder.add_extension(value, critical=extension.critical)
    except ValueError as error:
        raise RequestError(f"the extensions do not go into one request: {error}") from error
    told = any(extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME for extension in extensions)
    if node_name is not None and not told:
        names = x509.SubjectAlternativeName([node_name.other_name()])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER)


def load_request(der: bytes) -> CertificateRequest:
    """Return the request in ``der``, from whom it may be.

    Raises :class:`RequestError`: also for a key or a digest that RFC 8994 section 6.2.1 does not let us
    accept, and for a signature that is not by the key in the request.
    """
    if len(der) > MAX_REQUEST_SIZE:
        raise RequestError(f"request of {len(der)} bytes, at most {MAX_REQUEST_SIZE} are accepted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            request = x509.load_der_x509_csr(der)
            return _take_apart(request, der)
    except KeyRuleError as error:
        raise RequestError(f"the request's key is not accepted: {error}") from error
    except NodeNameError as error:
        raise RequestError(f"the request's subjectAltName: {error}") from error
    except UNREADABLE as error:
        raise RequestError(f"not a certificate request (PKCS #10): {ascii(str(error))[1:-1]}") from error


def check_request(
    request: CertificateRequest, node_name: AcpNodeName, *, subject: x509.Name | None = None
) -> None:
    """Raise :class:`RequestError` unless ``request`` asks for exactly what its sender was told to ask for.

    That is ``node_name``, and no other name (RFC 8995 section 5.9.2, RFC 8994 section 6.2.2); with
    ``subject``, also that subject, as in a request that renews a certificate (RFC 7030 section 4.2.2).
    What else it asks for, such as key usages, is for the CA to grant or not.
    """
    if request.node_name is None:
        raise RequestError(
            f"the request has no acp-node-name; its subjectAltName has to hold {node_name}, as /csrattrs says"
        )
    if request.node_name != node_name:
        raise RequestError(f"the request is for {request.node_name}, but its sender is {node_name}")
    if request.other_names:
        kinds = ", ".join(sorted({type(name).__name__ for name in request.other_names}))
        raise RequestError(
            f"the request's subjectAltName holds more than the acp-node-name {node_name}: {kinds}"
        )
    if request.challenge_password:
        raise RequestError(
            "the request has a challengePassword, which was not asked for; make one without it"
        )
    if subject is not None and request.subject != subject:
        raise RequestError("the request's subject is not that of the certificate to be renewed")


def _take_apart(request: x509.CertificateSigningRequest, der: bytes) -> CertificateRequest:
    public_key = request.public_key()
    # Before the signature is verified: a stranger's key must not cost much to use.
    check_public_key(public_key)
    _check_signature(request)
    types = [attribute.oid for attribute in request.attributes]
    if sum(types.count(oid) for oid in _EXTENSION_REQUESTS) > 1:
        raise RequestError(
            "the request holds several lists of extensions (extensionRequest), at most one may be"
        )
    names: list[x509.GeneralName] = []
    others = []
    for extension in request.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = list(extension.value)
        else:
            others.append(extension)
    if len(names) > MAX_NAMES:
        raise RequestError(f"{len(names)} names in the request's subjectAltName, at most {MAX_NAMES} may be")
    node_names = [name.value for name in names if _is_node_name(name)]
    if len(node_names) > 1:
        raise RequestError(f"the request's subjectAltName holds {len(node_names)} acp-node-names, one may be")
    return CertificateRequest(
        public_key=public_key,
        subject=request.subject,
        node_name=AcpNodeName.decode(node_names[0]) if node_names else None,
        other_names=tuple(name for name in names if not _is_node_name(name)),
        extensions=tuple(others),
        challenge_password=AttributeOID.CHALLENGE_PASSWORD in types,
        der=der,
    )


def _check_signature(request: x509.CertificateSigningRequest) -> None:
    try:
        digest = request.signature_hash_algorithm
        valid = isinstance(digest, HASHES) and request.is_signature_valid
    except UnsupportedAlgorithm:
        digest, valid = None, False
    if not isinstance(digest, HASHES):
        name = digest.name if digest else request.signature_algorithm_oid.dotted_string
        raise RequestError(f"request signed with {name}; SHA-256, SHA-384 and SHA-512 are accepted")
    if not valid:
        raise RequestError("the request is not signed with the private key of the public key in it")


def _is_node_name(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.OtherName) and name.type_id == ID_ON_ACP_NODE_NAME
