"""Certificate revocation lists: which to believe, and what they say (RFC 5280 section 5).

A CRL comes over a path that nobody vouches for. What counts is the signature of the CA whose certificates
it is about, its number, and its times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minerva.core.text import utc
from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import CrlError
from minerva.pki.keys import HASHES
from minerva.pki.membership import RevocationStatus

MAX_CRL_SIZE = 4 * 1024 * 1024
"""The largest CRL accepted, in bytes of DER: more than 75,000 revoked certificates."""

MAX_ISSUERS = 16
"""Of how many CAs a store keeps the CRL."""

MAX_SKEW = timedelta(minutes=5)
"""How far in the future a CRL may have been made: the CA's clock may be ahead of ours."""

MAX_URLS = 8
"""How many URLs of CRLs are taken from a certificate."""

_URL = re.compile(r"https?://[!-~]{1,1000}", re.IGNORECASE)

_IssuerKey = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Crl:
    """A CRL that was believed, of the CA named ``issuer``.

    ``number`` is ``None`` where the CA does not count. ``urls`` is empty, or the CRL is about those
    certificates only that name one of them. ``serial_numbers`` are those of the revoked certificates.
    """

    issuer: x509.Name
    number: int | None
    this_update: datetime
    next_update: datetime
    urls: tuple[str, ...] = ()
    serial_numbers: frozenset[int] = field(default=frozenset(), repr=False)
    der: bytes = field(default=b"", repr=False)

    def status(self, certificate: x509.Certificate, when: datetime | None) -> RevocationStatus:
        """Return what this CRL says of ``certificate``, which must be by the same issuer.

        After its nextUpdate it does not say that a certificate is good, but those that were revoked stay so.
        Without a trusted clock (``when`` is ``None``) it says both.
        """
        if certificate.serial_number in self.serial_numbers:
            return RevocationStatus.REVOKED
        if when is not None and when > self.next_update:
            return RevocationStatus.UNAVAILABLE
        if self.urls and not set(self.urls).intersection(crl_urls(certificate)):
            return RevocationStatus.UNAVAILABLE
        return RevocationStatus.GOOD


class CrlStore:
    """The newest CRL of each CA, as the membership check asks for them."""

    def __init__(self) -> None:
        self._crls: dict[_IssuerKey, Crl] = {}

    @property
    def crls(self) -> tuple[Crl, ...]:
        """The CRLs that are held, one for each CA."""
        return tuple(self._crls.values())

    def add(self, der: bytes, issuers: Iterable[x509.Certificate], now: datetime | None) -> Crl:
        """Return the CRL in ``der``, which is from now on the one of its CA.

        ``issuers`` are certificates of CAs that we have a path to: trust anchors, and what validate_path
        returned. ``now`` is the calendar time with a time zone, ``None`` if the clock is not trusted. A CRL
        after its nextUpdate is taken: it may still tell who is revoked.

        Raises :class:`CrlError`: for one that is not signed by one of ``issuers``, older than the one held,
        made in the future, an indirect or a delta CRL, or with critical extensions that are unknown.
        """
        if len(der) > MAX_CRL_SIZE:
            raise CrlError(f"CRL of {len(der)} bytes, at most {MAX_CRL_SIZE} are accepted")
        try:
            crl = x509.load_der_x509_crl(der)
            issuer = _signer(crl, issuers)
            found = _take_apart(crl, der)
            key = _key(issuer)
        except UNREADABLE as error:
            raise CrlError(f"not a CRL: {ascii(str(error))[1:-1]}") from error
        if now is not None and found.this_update > now + MAX_SKEW:
            raise CrlError(
                f"the CRL was made on {utc(found.this_update)}, which is in the future; "
                "check the clocks of this machine and of the CA"
            )
        held = self._crls.get(key)
        if held is None and len(self._crls) >= MAX_ISSUERS:
            raise CrlError(f"there are CRLs of {MAX_ISSUERS} CAs already, no more are kept")
        if held is not None:
            _check_not_older(found, held)
        self._crls[key] = found
        return found

    def status(
        self, certificate: x509.Certificate, issuer: x509.Certificate, when: datetime | None
    ) -> RevocationStatus:
        """Return the status of ``certificate`` at ``when``, as the newest CRL of ``issuer`` has it."""
        crl = self._crls.get(_key(issuer))
        return RevocationStatus.UNAVAILABLE if crl is None else crl.status(certificate, when)


def crl_urls(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return where the CRL for ``certificate`` is to be had: URLs of HTTP and HTTPS, in their order.

    Those of indirect CRLs are left out. Raises :class:`CrlError` if the extensions cannot be read.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    except x509.ExtensionNotFound:
        return ()
    except UNREADABLE as error:
        raise CrlError("the certificate's extensions cannot be read") from error
    names = [name for point in extension.value if point.crl_issuer is None for name in point.full_name or ()]
    return _urls(names)[:MAX_URLS]


def _urls(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    values = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    return tuple(value for value in values if _URL.fullmatch(value))


def _key(issuer: x509.Certificate) -> _IssuerKey:
    # A CA may have several certificates, such as those that another CA gave it. Name and key make the CA.
    key = issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return issuer.subject.public_bytes(), key


def _signer(crl: x509.CertificateRevocationList, issuers: Iterable[x509.Certificate]) -> x509.Certificate:
    try:
        digest = crl.signature_hash_algorithm
    except UnsupportedAlgorithm:
        digest = None
    if not isinstance(digest, HASHES):
        name = digest.name if digest else crl.signature_algorithm_oid.dotted_string
        raise CrlError(f"CRL signed with {name}; SHA-256, SHA-384 and SHA-512 are accepted")
    named = [issuer for issuer in issuers if issuer.subject == crl.issuer]
    for issuer in named:
        if _may_sign(issuer) and crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
            return issuer
    name = ascii(crl.issuer.rfc4514_string())[1:-1] or "(no name)"
    if named:
        raise CrlError(f"the CRL is not signed by our CA of the name {name}")
    raise CrlError(f"the CRL is by {name}, which is not a CA of ours")


def _may_sign(issuer: x509.Certificate) -> bool:
    try:
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _take_apart(crl: x509.CertificateRevocationList, der: bytes) -> Crl:
    if crl.next_update_utc is None:
        raise CrlError("the CRL does not say when the next one comes (nextUpdate)")
    number = None
    urls: tuple[str, ...] = ()
    for extension in crl.extensions:
        match extension.value:
            case x509.CRLNumber():
                number = extension.value.crl_number
            case x509.IssuingDistributionPoint():
                urls = _scope(extension.value)
            case x509.DeltaCRLIndicator():
                raise CrlError("a delta CRL, which says only what changed; a whole one is needed")
            case x509.AuthorityKeyIdentifier():
                pass
            case _ if extension.critical:
                raise CrlError(f"the CRL has an unknown critical extension {extension.oid.dotted_string}")
    return Crl(
        issuer=crl.issuer,
        number=number,
        this_update=crl.last_update_utc,
        next_update=crl.next_update_utc,
        urls=urls,
        # The library searches the list from its begin for every certificate that it is asked about.
        serial_numbers=frozenset(revoked.serial_number for revoked in crl),
        der=der,
    )


def _scope(point: x509.IssuingDistributionPoint) -> tuple[str, ...]:
    """Return the URLs whose certificates a CRL is about. Raises :class:`CrlError` if not all of those."""
    if point.indirect_crl:
        raise CrlError("an indirect CRL, which is about the certificates of other CAs too")
    if point.only_contains_ca_certs or point.only_contains_attribute_certs:
        raise CrlError("the CRL is not about the certificates of nodes")
    if point.only_some_reasons:
        raise CrlError("the CRL holds only what was revoked for some reasons")
    if point.full_name is None and point.relative_name is None:
        return ()
    if not (urls := _urls(point.full_name or ())):
        raise CrlError("the CRL is about a distribution point without a URL of HTTP")
    return urls


def _check_not_older(found: Crl, held: Crl) -> None:
    if found.this_update < held.this_update:
        raise CrlError(
            f"the CRL is older ({utc(found.this_update)}) than the one we know ({utc(held.this_update)})"
        )
    if found.number is not None and held.number is not None and found.number < held.number:
        raise CrlError(f"the CRL has number {found.number}, we know number {held.number} already")
