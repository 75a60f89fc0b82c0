"""The built-in certification authority: a directory, and the certificates made with it.

::

    ca-cert.pem    the CA's certificate            state.json     Registrar-ID and next Node-Numbers
    ca-key.pem     its private key (0600)          issued.jsonl   what was issued, one object a line
    chain.pem      what nodes put into their chain (empty under a root)
    anchors.pem    the trust anchors that nodes get

The lock is on the directory itself. ``state.json`` is on the disk before an address leaves in a certificate,
so that a crash may lose a number but never gives one out twice (RFC 8994 section 6.11.7.2).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from minerva.pki.address import AcpAddress, Scheme
from minerva.pki.allocator import AddressAllocator
from minerva.pki.certificates import UNREADABLE, dump_pem, load_pem
from minerva.pki.errors import AuthorityError, CertificateError, KeyRuleError
from minerva.pki.files import File, append_line, locked, write_files
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.keys import (
    KeyType,
    PrivateKey,
    check_certificate,
    check_public_key,
    dump_private_key,
    generate_key,
    load_private_key,
    signature_hash,
)
from minerva.pki.node_name import AcpNodeName, AddressField, is_domain

CA_CERTIFICATE_FILE = "ca-cert.pem"
CA_KEY_FILE = "ca-key.pem"
STATE_FILE = "state.json"
INDEX_FILE = "issued.jsonl"

CA_LIFETIME = timedelta(days=3650)
NODE_LIFETIME = timedelta(days=365)

BACKDATING = timedelta(minutes=5)
"""How long before its making a certificate is valid, for nodes whose clocks are slow."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate fresh from the CA, with what its node needs.

    ``address`` is ``None`` where the name holds "0" or none. ``private_key`` is there if the CA made it.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    anchors: tuple[x509.Certificate, ...]
    node_name: AcpNodeName
    address: AcpAddress | None
    private_key: PrivateKey | None = field(default=None, repr=False)


class CertificateAuthority:
    """A CA for one ACP domain. Get one with :meth:`create`, :meth:`open` or :meth:`issue_ca`."""

    def __init__(
        self,
        directory: Path,
        domain: str,
        certificate: x509.Certificate,
        key: PrivateKey,
        chain: tuple[x509.Certificate, ...],
        anchors: tuple[x509.Certificate, ...],
    ) -> None:
        self.directory = directory
        self.domain = domain
        self.certificate = certificate
        self.chain = chain
        self.anchors = anchors
        self._key = key

    @classmethod
    def create(
        cls,
        domain: str,
        directory: Path,
        key_type: KeyType | str = KeyType.P256,
        *,
        lifetime: timedelta = CA_LIFETIME,
        predecessor: CertificateAuthority | None = None,
        now: datetime | None = None,
    ) -> CertificateAuthority:
        """Make a root CA in ``directory``, which is made if it is not there.

        With ``predecessor``, the root CA whose place it takes, all under the new one trust both, and carry
        a certificate of the new one by the old: so nodes that know only one of the two trust each other.

        Raises :class:`AuthorityError` if there is a CA already, or for an invalid domain.
        """
        key = generate_key(key_type)
        subject = _ca_subject(domain, "ACP Root CA")
        builder = _ca_builder(subject, key.public_key(), _validity(lifetime, now)).issuer_name(subject)
        certificate = builder.sign(key, signature_hash(key))
        chain: tuple[x509.Certificate, ...] = ()
        anchors: tuple[x509.Certificate, ...] = (certificate,)
        if predecessor is not None:
            if predecessor.domain.lower() != domain.lower():
                raise AuthorityError(f"a CA for {predecessor.domain} has no successor for {domain}")
            chain = (predecessor.cross_sign(certificate, now=now), *predecessor.chain)
            anchors = (certificate, *predecessor.anchors)
        return cls._store(cls(directory, domain, certificate, key, chain, anchors))

    def issue_ca(
        self,
        directory: Path,
        key_type: KeyType | str = KeyType.P256,
        *,
        lifetime: timedelta = CA_LIFETIME,
        now: datetime | None = None,
    ) -> CertificateAuthority:
        """Make a CA under this one, in ``directory``, with a Registrar-ID of its own.

        Raises :class:`AuthorityError` if there is a CA already.
        """
        key = generate_key(key_type)
        subject = _ca_subject(self.domain, "ACP Issuing CA")
        certificate = self._sign(_ca_builder(subject, key.public_key(), self._within(lifetime, now)))
        chain = (certificate, *self.chain)
        return self._store(
            CertificateAuthority(directory, self.domain, certificate, key, chain, self.anchors)
        )

    def cross_sign(
        self, other: x509.Certificate, *, lifetime: timedelta = CA_LIFETIME, now: datetime | None = None
    ) -> x509.Certificate:
        """Return a certificate by this CA for the CA whose certificate ``other`` is.

        In the chain of a node under the other CA, it makes a path for those who trust only this one (RFC
        4210 section 4.4). It outlives neither of the two.

        Raises :class:`AuthorityError` if ``other`` is not of another CA, or has expired.
        """
        try:
            check_certificate(other)
            extensions = other.extensions
            key_id = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (KeyRuleError, x509.ExtensionNotFound, *UNREADABLE) as error:
            raise AuthorityError(f"cannot sign what is not the certificate of a CA: {error}") from error
        if not is_ca or other.public_key() == self.certificate.public_key():
            raise AuthorityError("a CA signs the certificate of another CA, not of itself or of a node")
        start, end = self._within(lifetime, now)
        if (datetime.now(UTC) if now is None else now) >= other.not_valid_after_utc:
            raise AuthorityError(
                f"the other CA's certificate expired on {other.not_valid_after_utc:%Y-%m-%d}"
            )
        validity = start, min(end, other.not_valid_after_utc)
        return self._sign(_ca_builder(other.subject, other.public_key(), validity, key_id))

    def forget_predecessors(self) -> None:
        """Make the newest trust anchor the only one, here and for all that is issued from now on.

        For the end of a rollover, when every node has a certificate under it.
        """
        newest = self.anchors[0]
        self.chain = tuple(takewhile(lambda ca: ca.public_key() != newest.public_key(), self.chain))
        self.anchors = (newest,)
        with locked(self.directory):
            write_files(
                self.directory,
                File(CHAIN_FILE, dump_pem(self.chain)),
                File(ANCHORS_FILE, dump_pem(self.anchors)),
            )

    @classmethod
    def open(cls, directory: Path) -> CertificateAuthority:
        """Return the CA in ``directory``.

        Raises :class:`AuthorityError` if there is none, or none that can be used.
        """
        try:
            (certificate,) = load_pem((directory / CA_CERTIFICATE_FILE).read_bytes())
            key = load_private_key((directory / CA_KEY_FILE).read_bytes())
            chain = load_pem((directory / CHAIN_FILE).read_bytes())
            anchors = load_pem((directory / ANCHORS_FILE).read_bytes())
        except OSError as error:
            raise AuthorityError(
                f"no CA in {directory} ({error.strerror}: {error.filename}); make one with `minerva ca init`"
            ) from error
        except (ValueError, CertificateError, KeyRuleError) as error:
            raise AuthorityError(f"the CA in {directory} cannot be read: {error}") from error
        if key.public_key() != certificate.public_key():
            raise AuthorityError(
                f"{CA_KEY_FILE} and {CA_CERTIFICATE_FILE} in {directory} do not belong together"
            )
        if not (domain := _domain_of(certificate)):
            raise AuthorityError(f"{CA_CERTIFICATE_FILE} in {directory} does not name an ACP domain")
        return cls(directory, domain, certificate, key, chain, anchors)

    @classmethod
    def _store(cls, authority: CertificateAuthority) -> CertificateAuthority:
        directory = authority.directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(directory):
            for name in (CA_CERTIFICATE_FILE, CA_KEY_FILE):
                if (directory / name).exists():
                    raise AuthorityError(
                        f"there is a CA in {directory} already ({name}); it is left as it is"
                    )
            write_files(
                directory,
                File(CA_KEY_FILE, dump_private_key(authority._key), secret=True),
                File(CHAIN_FILE, dump_pem(authority.chain)),
                File(ANCHORS_FILE, dump_pem(authority.anchors)),
                File(STATE_FILE, AddressAllocator.fresh(os.urandom).encode()),
                File(CA_CERTIFICATE_FILE, dump_pem((authority.certificate,))),
            )
        return authority

    def issue(
        self,
        scheme: Scheme = Scheme.ZONE,
        rsub: str | None = None,
        lifetime: timedelta = NODE_LIFETIME,
        *,
        public_key: CertificatePublicKeyTypes | None = None,
        key_type: KeyType | str = KeyType.P256,
        address: AcpAddress | AddressField = AddressField.ADDRESS,
        name: str | None = None,
        with_ip_san: bool = False,
        now: datetime | None = None,
    ) -> Issued:
        """Issue a certificate for a node.

        With ``public_key`` the private key stays with its owner; without, one of ``key_type`` is made.
        ``address`` is ``ADDRESS`` for the next free one of ``scheme``, ``ZERO`` or ``OMITTED`` for a name
        without one, or the address that the node had before (RFC 8994 section 6.11.7.4). ``name`` is the
        common name of the subject; without, it is the address or something random. ``with_ip_san`` adds
        the address to the subjectAltName as an iPAddress, for other uses of the certificate. ``now`` has a
        time zone; without, it is the clock's.

        Raises :class:`AuthorityError`, and :class:`KeyRuleError` for a ``public_key`` that no node would
        accept.
        """
        private_key = None
        if public_key is None:
            private_key = generate_key(key_type)
            public_key = private_key.public_key()
        check_public_key(public_key)
        now = now or datetime.now(UTC)
        # Both are tried before anything is allocated, so that a bad request does not cost a node number.
        self._within(lifetime, now)
        subject = None if name is None else _subject(name)
        with locked(self.directory):
            node_name = self._node_name(scheme, rsub, address)
            extra_names = []
            if with_ip_san and node_name.address is not None:
                extra_names.append(x509.IPAddress(node_name.address))
            certificate = self.certify(
                public_key, node_name, lifetime=lifetime, now=now, subject=subject, extra_names=extra_names
            )
            self._record(certificate, node_name)
        acp_address = None if node_name.address is None else AcpAddress(node_name.address)
        return Issued(certificate, self.chain, self.anchors, node_name, acp_address, private_key)

    def certify(
        self,
        public_key: CertificatePublicKeyTypes,
        node_name: AcpNodeName | None,
        *,
        lifetime: timedelta,
        now: datetime | None = None,
        usages: Sequence[x509.ObjectIdentifier] = (),
        crl_urls: Sequence[str] = (),
        subject: x509.Name | str | None = None,
        extra_names: Sequence[x509.GeneralName] = (),
    ) -> x509.Certificate:
        """Return a certificate for whom ``public_key`` belongs to, with nothing allocated or written down.

        ``node_name`` and then ``extra_names`` make its subjectAltName. ``usages`` are those of the extended
        key usage, which is left out if there are none. ``crl_urls`` all lead to the same CRL, which is that
        of :meth:`make_crl`. ``subject`` is a whole name or a common name; without, it is the address or
        something random. The certificate does not outlive that of the CA.

        Raises :class:`AuthorityError`, and :class:`KeyRuleError` for a key that no node would accept.
        """
        check_public_key(public_key)
        names = [*([] if node_name is None else [node_name.other_name()]), *extra_names]
        if not subject:
            address = None if node_name is None else node_name.address
            subject = str(address or f"member {os.urandom(4).hex()}")
        builder = (
            _builder(
                _subject(subject) if isinstance(subject, str) else subject,
                public_key,
                self._within(lifetime, now),
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(ca=False), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if crl_urls:
            builder = builder.add_extension(_distribution_point(crl_urls), critical=False)
        return self._sign(builder)

    def make_crl(
        self,
        revoked: Iterable[tuple[int, datetime, x509.ReasonFlags | None]],
        number: int,
        *,
        lifetime: timedelta,
        now: datetime | None = None,
    ) -> bytes:
        """Return the DER of a CRL that says which certificates of this CA are revoked (RFC 5280 section 5).

        Each of ``revoked`` is a serial number, when it was revoked, and why. ``number`` must be higher than
        that of every CRL before: nodes refuse one that they know better. After ``lifetime`` nodes that have
        no newer one do no longer know.

        Raises :class:`AuthorityError` for a lifetime of less than a second.
        """
        start = now or datetime.now(UTC)
        if lifetime < timedelta(seconds=1):
            raise AuthorityError("a CRL needs a lifetime of at least one second")
        # One by one, adding takes the square of their number.
        entries = [_revoked(serial_number, when, reason) for serial_number, when, reason in revoked]
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=entries)
            .issuer_name(self.certificate.subject)
            .last_update(start)
            .next_update(start + lifetime)
            .add_extension(self._authority_key_identifier(), critical=False)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        return builder.sign(self._key, signature_hash(self._key)).public_bytes(Encoding.DER)

    def issued(self) -> Iterator[dict[str, Any]]:
        """Yield what was issued, oldest first, as the objects of the index.

        Raises :class:`AuthorityError` for an index that cannot be read.
        """
        path = self.directory / INDEX_FILE
        if not path.exists():
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise AuthorityError(f"{path}, line {number}: not JSON; take the line out") from error

    def _node_name(self, scheme: Scheme, rsub: str | None, address: AcpAddress | AddressField) -> AcpNodeName:
        if rsub:
            _check_domain(rsub, "routing subdomain")
        bare = AcpNodeName(self.domain, rsub=rsub, address_field=AddressField.OMITTED)
        if isinstance(address, AddressField) and address is not AddressField.ADDRESS:
            return replace(bare, address_field=address)
        allocator = self._load_allocator()
        if isinstance(address, AcpAddress):
            if not allocator.gave(address, bare.routing_subdomain):
                raise AuthorityError(f"{address} is not what this CA gave a node of {bare.routing_subdomain}")
        else:
            address, allocator = allocator.allocate(scheme, bare.routing_subdomain)
            write_files(self.directory, File(STATE_FILE, allocator.encode()))
        return AcpNodeName(self.domain, address.address, rsub)

    def _load_allocator(self) -> AddressAllocator:
        path = self.directory / STATE_FILE
        try:
            return AddressAllocator.decode(path.read_bytes())
        except FileNotFoundError:
            return AddressAllocator.fresh(os.urandom)
        except AuthorityError as error:
            raise AuthorityError(
                f"{path} cannot be read ({error}); remove it, and new addresses get a new Registrar-ID"
            ) from error

    def _record(self, certificate: x509.Certificate, node_name: AcpNodeName) -> None:
        entry = {
            "serial": f"{certificate.serial_number:x}",
            "subject": certificate.subject.rfc4514_string(),
            "acp_node_name": str(node_name),
            "address": None if node_name.address is None else str(node_name.address),
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
        }
        append_line(self.directory / INDEX_FILE, json.dumps(entry))

    def _within(self, lifetime: timedelta, now: datetime | None) -> tuple[datetime, datetime]:
        start, end = _validity(lifetime, now)
        last = self.certificate.not_valid_after_utc
        if (datetime.now(UTC) if now is None else now) >= last:
            raise AuthorityError(f"the CA's own certificate expired on {last:%Y-%m-%d}; make a new CA")
        return start, min(end, last)

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return (
            builder.issuer_name(self.certificate.subject)
            .add_extension(self._authority_key_identifier(), critical=False)
            .sign(self._key, signature_hash(self._key))
        )

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer)


def check_free(directory: Path) -> None:
    """Raise :class:`AuthorityError` if there is an identity in ``directory``, or a part of one."""
    for name in (CERTIFICATE_FILE, KEY_FILE):
        if (directory / name).exists():
            raise AuthorityError(f"there is an identity in {directory} already ({name}); it is left as it is")


def write_node_directory(directory: Path, issued: Issued) -> None:
    """Write what a node needs into ``directory``, which is made if it is not there.

    ``cert.pem``, ``chain.pem``, ``anchors.pem``, and if the CA made it ``key.pem``, PKCS#8 with mode 0600.

    Raises :class:`AuthorityError` if there is an identity already.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = [File(ANCHORS_FILE, dump_pem(issued.anchors)), File(CHAIN_FILE, dump_pem(issued.chain))]
    if issued.private_key is not None:
        files.append(File(KEY_FILE, dump_private_key(issued.private_key), secret=True))
    with locked(directory):
        check_free(directory)
        write_files(directory, *files, File(CERTIFICATE_FILE, dump_pem((issued.certificate,))))


def _validity(lifetime: timedelta, now: datetime | None) -> tuple[datetime, datetime]:
    start = datetime.now(UTC) if now is None else now
    if lifetime < timedelta(seconds=1):
        raise AuthorityError("a certificate needs a lifetime of at least one second")
    # Of a short life only a part: a node renews before half of it is over, and that must not be at once.
    return start - min(BACKDATING, lifetime / 10), start + lifetime


def _subject(common_name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError as error:
        raise AuthorityError(f"{common_name!r} cannot be a common name: {error}") from error


def _ca_subject(domain: str, common_name: str) -> x509.Name:
    _check_domain(domain, "ACP domain")
    labels = AcpNodeName(domain, address_field=AddressField.OMITTED).domain.split(".")
    components = [x509.NameAttribute(NameOID.DOMAIN_COMPONENT, label) for label in reversed(labels)]
    return x509.Name([*components, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _check_domain(text: str, what: str) -> None:
    if not is_domain(text):
        raise AuthorityError(
            f"{text!a} is no {what}: labels, divided by dots, are letters, digits and hyphens, begin with "
            "a letter and do not end with a hyphen (RFC 1034 section 3.5)"
        )


def _domain_of(certificate: x509.Certificate) -> str:
    labels = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.DOMAIN_COMPONENT)]
    return ".".join(reversed(labels))


def _builder(
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    validity: tuple[datetime, datetime],
    key_id: x509.SubjectKeyIdentifier | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(key_id or x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _ca_builder(
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    validity: tuple[datetime, datetime],
    key_id: x509.SubjectKeyIdentifier | None = None,
) -> x509.CertificateBuilder:
    return (
        _builder(subject, key, validity, key_id)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
    )


def _distribution_point(urls: Sequence[str]) -> x509.CRLDistributionPoints:
    try:
        names = [x509.UniformResourceIdentifier(url) for url in urls]
    except ValueError as error:
        raise AuthorityError(f"no URL of a CRL: {error}") from error
    return x509.CRLDistributionPoints(
        [x509.DistributionPoint(full_name=names, relative_name=None, reasons=None, crl_issuer=None)]
    )


def _revoked(serial_number: int, when: datetime, reason: x509.ReasonFlags | None) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(serial_number).revocation_date(when)
    # A reason of "unspecified" is left out (RFC 5280 section 5.3.1).
    if reason not in (None, x509.ReasonFlags.unspecified):
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return what a key is for: that of a CA signs certificates and CRLs, any other one only signs."""
    # A node only signs. IKEv2 and all TLS suites of the profile agree on keys by (EC)DHE: there is no RSA
    # key transport, which keyEncipherment is for, and no ECDH with a certified key, as for keyAgreement.
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
