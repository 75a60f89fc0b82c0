"""Voucher requests of registrars: whether they are what they claim to be (RFC 8995 sections 5.5.2 to 5.5.6).

The domain's CA is a stranger: what is checked is that its certificates are of one piece, and that who signed
is a registrar by their own account. Whether that domain may have the device is decided in
:mod:`minerva.brski.masa.service`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from minerva.brski.masa.database import Owner, key_of
from minerva.brski.masa.errors import Refusal
from minerva.core.text import printable, shortened, utc
from minerva.pki.certificates import ID_KP_CMC_RA, UNREADABLE, load_certificate
from minerva.pki.errors import CertificateError, IdevidError, PathError
from minerva.pki.idevid import domain_id, serial_number
from minerva.pki.path import validate_path
from minerva.voucher.cms import Signed, open_signed
from minerva.voucher.errors import CmsError, CmsSignatureError, VoucherDecodeError
from minerva.voucher.model import Voucher, VoucherRequest

MAX_NONCE = 256
"""The longest nonce accepted, in characters. RFC 8366 has 8 to 32 bytes, in whatever writing."""

MAX_DOMAIN_ID = 64
"""The longest domainID accepted, in bytes: it goes into logs. Most have 20 or 32."""

MAX_AGE = timedelta(days=5)
"""How old a request may be. A pledge repeats its own for up to four days (RFC 8995 section 5.6)."""

MAX_AHEAD = timedelta(days=1)
"""How far the clock of a registrar may be ahead of ours."""

_BAD_REQUEST, _FORBIDDEN = 400, 403


@dataclass(frozen=True, slots=True)
class DomainRequest:
    """A registrar's voucher request that is signed as it should be.

    ``chain`` is what came along, the registrar's certificate first. ``path`` leads from that to the farthest.
    ``made`` is when the request was made, by its own account.
    """

    request: VoucherRequest
    path: tuple[x509.Certificate, ...]
    digest: bytes
    made: datetime | None
    chain: tuple[x509.Certificate, ...] = field(repr=False)

    @property
    def registrar(self) -> x509.Certificate:
        """The certificate of who signed."""
        return self.path[0]

    @property
    def keys(self) -> frozenset[bytes]:
        """The fingerprints of the keys in the path."""
        return frozenset(map(key_of, self.path))

    @property
    def lowest_ca(self) -> x509.Certificate:
        """The CA that certified the registrar, or if it did not come along the registrar's certificate."""
        return self.path[1] if len(self.path) > 1 else self.path[0]

    def without_prior(self) -> DomainRequest:
        """Return the same without its largest part, which is needed only once."""
        return replace(self, request=replace(self.request, prior_signed_voucher_request=None))

    def is_of(self, owner: Owner, now: datetime) -> bool:
        """Return whether the registrar is of a domain: its key is in the path, or certifies the path."""
        if owner.key in self.keys:
            return True
        try:
            validate_path(self.chain, (load_certificate(owner.certificate),), now)
        except PathError:
            return False
        return True


def open_request(data: bytes, now: datetime) -> DomainRequest:
    """Return the request in the CMS ``data``. Raises :class:`Refusal`."""
    try:
        signed = open_signed(data)
    except CmsSignatureError as error:
        raise Refusal(_FORBIDDEN, f"the voucher request is not signed correctly: {error}") from error
    except CmsError as error:
        raise Refusal(_BAD_REQUEST, f"the voucher request cannot be read: {error}") from error
    path = _domain_path(signed, now)
    _check_registrar(path[0])
    _check_domain_ids(path)
    try:
        request = VoucherRequest.decode(signed.payload)
    except VoucherDecodeError as error:
        raise Refusal(_BAD_REQUEST, f"the voucher request cannot be read: {error}") from error
    if request.nonce is not None:
        _check_nonce(request.nonce)
    made = request.created_on or signed.signing_time
    return DomainRequest(request, path, hashlib.sha256(data).digest(), made, signed.chain)


def check_fresh(request: DomainRequest, now: datetime) -> None:
    """Raise :class:`Refusal` for a request that is stale (RFC 8995 section 5.6), or of another time."""
    if request.made is None:
        return
    made = utc(request.made)
    if request.made < now - MAX_AGE:
        raise Refusal(_FORBIDDEN, f"the voucher request is stale: it was made on {made}")
    if request.made > now + MAX_AHEAD:
        raise Refusal(_FORBIDDEN, f"the voucher request is of the future, {made}: set the registrar's clock")


@dataclass(frozen=True, slots=True)
class Prior:
    """What the prior-signed-voucher-request shows.

    ``proximity``: the device has signed that it speaks with this registrar. Else it is a voucher of ours that
    is to be renewed (RFC 8366bis section 10.1).
    """

    proximity: bool


def check_prior(
    request: DomainRequest,
    device_cas: Sequence[x509.Certificate],
    voucher_cas: Sequence[x509.Certificate],
    now: datetime,
) -> Prior | None:
    """Return what the prior-signed-voucher-request shows, ``None`` without one.

    It has to fit to the request around it, or :class:`Refusal` is raised (RFC 8995 sections 5.5.5 and 5.5.6).
    """
    data = request.request.prior_signed_voucher_request
    if data is None:
        return None
    try:
        signed = open_signed(data)
    except CmsError as error:
        raise Refusal(
            _FORBIDDEN, f"the prior-signed-voucher-request is not signed correctly: {error}"
        ) from error
    try:
        pledge_request = VoucherRequest.decode(signed.payload)
    except VoucherDecodeError as error:
        try:
            voucher = Voucher.decode(signed.payload)
        except VoucherDecodeError:
            raise Refusal(_FORBIDDEN, f"the prior-signed-voucher-request cannot be read: {error}") from error
        _check_old_voucher(request, signed, voucher, voucher_cas, now)
        return Prior(proximity=False)
    _check_pledge_request(request, signed, pledge_request, device_cas, now)
    return Prior(proximity=True)


def _check_pledge_request(
    request: DomainRequest,
    signed: Signed,
    pledge_request: VoucherRequest,
    device_cas: Sequence[x509.Certificate],
    now: datetime,
) -> None:
    try:
        validate_path(signed.chain, device_cas, now)
        signer_is = serial_number(signed.signer)
    except (PathError, IdevidError) as error:
        raise Refusal(
            _FORBIDDEN, f"the prior-signed-voucher-request is not signed by a device of ours: {error}"
        ) from error
    wanted = request.request.serial_number
    for serial, whose in ((signer_is, "is signed by"), (pledge_request.serial_number, "is for")):
        if serial != wanted:
            raise Refusal(
                _FORBIDDEN,
                f"the prior-signed-voucher-request {whose} the device {shortened(serial, 80)}, "
                f"the voucher request is for {shortened(wanted, 80)}",
            )
    _check_same_nonce(request, pledge_request.nonce)
    if pledge_request.proximity_registrar_cert is None:
        raise Refusal(_FORBIDDEN, "the prior-signed-voucher-request has no proximity-registrar-cert")
    try:
        seen = key_of(load_certificate(pledge_request.proximity_registrar_cert))
    except (CertificateError, *UNREADABLE) as error:
        raise Refusal(_FORBIDDEN, "the proximity-registrar-cert is not a certificate") from error
    if seen not in request.keys:
        raise Refusal(
            _FORBIDDEN,
            "the device spoke with another registrar: the key of its proximity-registrar-cert is not in "
            "the chain of the voucher request",
        )


def _check_old_voucher(
    request: DomainRequest,
    signed: Signed,
    voucher: Voucher,
    voucher_cas: Sequence[x509.Certificate],
    now: datetime,
) -> None:
    try:
        validate_path(signed.chain, voucher_cas, now)
    except PathError as error:
        raise Refusal(_FORBIDDEN, f"the voucher to be renewed is not one of ours: {error}") from error
    if voucher.serial_number != request.request.serial_number:
        raise Refusal(_FORBIDDEN, "the voucher to be renewed is for another device")
    _check_same_nonce(request, voucher.nonce)


def _check_same_nonce(request: DomainRequest, nonce: str | None) -> None:
    if request.request.nonce != nonce:
        raise Refusal(
            _FORBIDDEN,
            "the nonce of the voucher request is not that of the request or voucher inside it "
            "(prior-signed-voucher-request)",
        )


def _check_nonce(nonce: str) -> None:
    if not nonce or len(nonce) > MAX_NONCE or not nonce.isprintable():
        raise Refusal(_BAD_REQUEST, f"the nonce must have 1 to {MAX_NONCE} printable characters")


def _check_registrar(certificate: x509.Certificate) -> None:
    usages: Iterable[x509.ObjectIdentifier]
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usages = ()
    if ID_KP_CMC_RA not in usages:
        raise Refusal(
            _FORBIDDEN,
            "the voucher request is not signed by a registrar: its certificate has not the extended key "
            "usage id-kp-cmcRA (1.3.6.1.5.5.7.3.28)",
        )


def _check_domain_ids(path: Sequence[x509.Certificate]) -> None:
    try:
        sizes = [len(domain_id(certificate)) for certificate in path]
    except IdevidError as error:
        raise Refusal(_FORBIDDEN, f"the registrar's certificates are not in order: {error}") from error
    if not all(1 <= size <= MAX_DOMAIN_ID for size in sizes):
        raise Refusal(
            _FORBIDDEN,
            "the registrar's certificates are not in order: a subjectKeyIdentifier has 1 to "
            f"{MAX_DOMAIN_ID} bytes",
        )


def _domain_path(signed: Signed, now: datetime) -> tuple[x509.Certificate, ...]:
    """Return the path from the signer up to the farthest certificate that came along, validated.

    That one is the trust anchor for the moment (RFC 8995 section 5.5.2).
    """
    try:
        path, others = [signed.chain[0]], list(signed.chain[1:])
        while path[-1].issuer != path[-1].subject:
            named = [certificate for certificate in others if certificate.subject == path[-1].issuer]
            if not named:
                break
            # Of one it is seen below whether it signed.
            issuer = (
                named[0] if len(named) == 1 else next(filter(partial(_signed, path[-1]), named), named[0])
            )
            others.remove(issuer)
            path.append(issuer)
        return validate_path(path, path[-1:], now)
    except PathError as error:
        raise Refusal(_FORBIDDEN, f"the registrar's certificates are not in order: {error}") from error
    except UNREADABLE as error:
        raise Refusal(
            _FORBIDDEN, f"the registrar's certificates cannot be read: {printable(str(error))[:100]}"
        ) from error


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True
