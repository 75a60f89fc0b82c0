"""Makes certificates that no honest CA would, and some that one would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from minerva.pki.identity import Identity
from minerva.pki.node_name import AcpNodeName

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
DOMAIN = "acp.example.com"
ADDRESS = "fd739fc23c340000020000006400"

_serials = count(1)


def node_name(number: int, *, domain: str = DOMAIN, rsub: str = "") -> str:
    """The acp-node-name of node ``number``, in the Zone scheme."""
    return f"{ADDRESS}{number << 1:04x}{rsub}@{domain}"


@cache
def key(kind: str) -> Any:
    """A private key, the same one for the same ``kind``: ``p256``, ``rsa2048``, ``p256/other`` and so on."""
    kind, _, _ = kind.partition("/")
    curves = {"p224": ec.SECP224R1, "p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}
    if kind in curves:
        return ec.generate_private_key(curves[kind]())
    if kind == "brainpool":
        return ec.generate_private_key(ec.BrainpoolP256R1())
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "dsa":
        return dsa.generate_private_key(1024)
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def san(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([AcpNodeName.parse(name).other_name() for name in names])


@dataclass
class Ca:
    """A CA of a test: its certificate, its key, and the intermediates that nodes under it send."""

    certificate: x509.Certificate
    key: Any
    chain: tuple[x509.Certificate, ...] = field(default=())

    @classmethod
    def root(cls, name: str = "Root", kind: str = "p256", **options: Any) -> Ca:
        own = key(kind)
        return cls(_make(subject(name), own.public_key(), subject(name), own, ca=True, **options), own)

    def ca(self, name: str, kind: str = "p256", **options: Any) -> Ca:
        """A CA under this one."""
        own = key(kind)
        certificate = _make(
            subject(name), own.public_key(), self.certificate.subject, self.key, ca=True, **options
        )
        return Ca(certificate, own, (certificate, *self.chain))

    def node(self, *names: str, kind: str = "p256", **options: Any) -> x509.Certificate:
        """A certificate for a node that has each of ``names`` as acp-node-name."""
        extensions = list(options.pop("extensions", ()))
        if names:
            extensions.append((san(*names), False))
        return _make(
            options.pop("subject", subject("node")),
            key(kind).public_key(),
            self.certificate.subject,
            self.key,
            ca=options.pop("ca", False),
            extensions=extensions,
            **options,
        )

    def identity(self, anchors: Sequence[x509.Certificate] = (), **options: Any) -> Identity:
        """A node under this CA that trusts ``anchors``, or this CA itself."""
        leaf = self.node(node_name(1), **options)
        return Identity.from_certificates(leaf, self.chain, tuple(anchors) or (self.certificate,))


def _make(
    subject_name: x509.Name,
    public_key: Any,
    issuer_name: x509.Name,
    issuer_key: Any,
    *,
    ca: bool | None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + 30 * DAY,
    digest: Any = hashes.SHA256(),  # noqa: B008 -- a constant
    padding: Any = None,
    path_length: int | None = None,
    cert_sign: bool | None = None,
    extensions: Sequence[tuple[Any, bool]] = (),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(next(_serials))
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    if cert_sign is not None:
        usage = x509.KeyUsage(True, False, False, False, False, cert_sign, False, False, False)
        builder = builder.add_extension(usage, critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    if isinstance(issuer_key, ed25519.Ed25519PrivateKey):
        digest = None
    return builder.sign(issuer_key, digest, rsa_padding=padding)
