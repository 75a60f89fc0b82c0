"""A pledge's judgement of a voucher, and of the registrar that brought it (RFC 8995 sections 5.6.1, 5.6.2).

Nothing of a voucher is believed before its signature is one of the maker's. Times are judged if there is a
clock that is trusted; without, its nonce tells a fresh voucher from an old one (section 2.6.1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.x509.oid import NameOID

from minerva.core.text import shortened, utc
from minerva.pki.certificates import ID_KP_CMC_RA, UNREADABLE, load_certificate
from minerva.pki.errors import CertificateError, IdevidError, PathError
from minerva.pki.idevid import MASA_URL_OID, OLD_MASA_URL_OID, same_issuer
from minerva.pki.membership import RevocationCheck, RevocationStatus
from minerva.pki.path import Path, validate_path
from minerva.voucher.cms import Signed, open_signed
from minerva.voucher.errors import (
    CmsError,
    CmsSignatureError,
    Refusal,
    VoucherDecodeError,
    VoucherRefused,
)
from minerva.voucher.model import Assertion, Voucher

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far ahead of ours the clock of the maker may be."""


def check_voucher(
    data: bytes,
    *,
    serial_number: str,
    certificate: x509.Certificate,
    anchors: Sequence[x509.Certificate],
    nonce: str | None,
    when: datetime | None,
    accept: Collection[Assertion] = tuple(Assertion),
    allow_nonceless: bool = True,
) -> Voucher:
    """Return the voucher in ``data`` if it is one for this device; raise :class:`VoucherRefused` if not.

    ``serial_number`` and ``certificate`` (the IDevID) are the device's own, ``anchors`` its maker's.
    ``nonce`` is that of the request which ``data`` is to answer. ``when`` has a time zone; ``None`` stands
    for a clock that is not trusted: times are then not judged. A voucher without an assertion counts as
    "logged", the least that a MASA says.
    """
    signed = _open(data, anchors)
    _check_signer(signed, certificate, anchors, when)
    try:
        voucher = Voucher.decode(signed.payload)
    except VoucherDecodeError as error:
        raise VoucherRefused(Refusal.NOT_A_VOUCHER, str(error)) from error
    _check_device(voucher, serial_number, certificate)
    if voucher.nonce is None:
        if not allow_nonceless:
            raise VoucherRefused(Refusal.NONCELESS)
    elif voucher.nonce != nonce:
        raise VoucherRefused(Refusal.WRONG_NONCE)
    if when is not None:
        _check_times(voucher, signed, when)
    assertion = voucher.assertion or Assertion.LOGGED
    if assertion not in accept:
        raise VoucherRefused(Refusal.ASSERTION_NOT_ACCEPTABLE, assertion)
    pinned = _pinned(voucher)
    if when is not None and not _in_time(pinned, when):
        raise VoucherRefused(Refusal.PINNED_OUT_OF_TIME)
    return voucher


def check_registrar_chain(
    voucher: Voucher,
    tls_chain: Sequence[x509.Certificate],
    when: datetime | None,
    *,
    revocation: RevocationCheck | None = None,
) -> Path:
    """Return the path from the registrar's certificate to the one that ``voucher`` pins.

    ``tls_chain`` is what the registrar sent in TLS, its own certificate first. The key of the pinned
    certificate is the only anchor. It is the registrar's own, or that of a CA above it; with a CA, the
    registrar's certificate has to be one of a registrar (id-kp-cmcRA), for every node of the domain has
    one of that CA. No other purpose is asked for. Raises :class:`VoucherRefused`.
    """
    pinned = _pinned(voucher)
    if not tls_chain:
        raise VoucherRefused(Refusal.REGISTRAR_NOT_PINNED, "it has sent none")
    registrar = tls_chain[0]
    try:
        direct = registrar.public_key() == pinned.public_key()
    except UNREADABLE as error:
        raise VoucherRefused(Refusal.REGISTRAR_NOT_PINNED, "its key cannot be read") from error
    if direct:
        # As its own anchor: what is left to be judged of it is the key, and the time.
        path = _path_to(registrar, (registrar,), when)
    else:
        path = _path_to(pinned, tls_chain, when)
        _check_usage(registrar)
    _check_revocation(voucher, path, when, revocation)
    return path


def _open(data: bytes, anchors: Sequence[x509.Certificate]) -> Signed:
    try:
        return open_signed(data, known=anchors)
    except CmsSignatureError as error:
        raise VoucherRefused(Refusal.BAD_SIGNATURE, str(error)) from error
    except CmsError as error:
        raise VoucherRefused(Refusal.NOT_A_VOUCHER, str(error)) from error


def _check_signer(
    signed: Signed,
    certificate: x509.Certificate,
    anchors: Sequence[x509.Certificate],
    when: datetime | None,
) -> None:
    try:
        validate_path(signed.chain, anchors, when)
    except PathError as error:
        if when is not None and _has_path(signed.chain, anchors):
            raise VoucherRefused(Refusal.SIGNER_OUT_OF_TIME, str(error)) from error
        raise VoucherRefused(Refusal.SIGNER_NOT_OF_MAKER, str(error)) from error
    try:
        device = _is_a_device(signed.signer, certificate)
    except UNREADABLE as error:
        raise VoucherRefused(Refusal.SIGNER_NOT_OF_MAKER, shortened(str(error), 200)) from error
    if device:
        raise VoucherRefused(Refusal.SIGNER_IS_A_DEVICE)


def _is_a_device(signer: x509.Certificate, own: x509.Certificate) -> bool:
    # Makers have one root for their devices and for their MASA, as the RFC's own examples do. The key that
    # somebody takes out of one device must not make vouchers for all the others.
    if any(extension.oid in (MASA_URL_OID, OLD_MASA_URL_OID) for extension in signer.extensions):
        return True
    return signer.issuer == own.issuer and bool(signer.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER))


def _check_device(voucher: Voucher, serial_number: str, certificate: x509.Certificate) -> None:
    if voucher.serial_number != serial_number:
        raise VoucherRefused(Refusal.WRONG_SERIAL_NUMBER, shortened(voucher.serial_number, 64))
    if voucher.idevid_issuer is None:
        return
    try:
        if same_issuer(voucher.idevid_issuer, certificate):
            return
    except IdevidError as error:
        raise VoucherRefused(Refusal.WRONG_ISSUER, str(error)) from error
    raise VoucherRefused(Refusal.WRONG_ISSUER)


def _check_times(voucher: Voucher, signed: Signed, when: datetime) -> None:
    for moment in (signed.signing_time, voucher.created_on):
        if moment is not None and moment > when + CLOCK_TOLERANCE:
            raise VoucherRefused(Refusal.NOT_YET_VALID, f"made on {utc(moment)}")
    if voucher.expires_on is not None and voucher.expires_on <= when:
        raise VoucherRefused(Refusal.EXPIRED, f"on {utc(voucher.expires_on)}")


def _pinned(voucher: Voucher) -> x509.Certificate:
    if not voucher.pinned_domain_cert:
        raise VoucherRefused(Refusal.NO_PINNED_CERTIFICATE)
    try:
        pinned = load_certificate(voucher.pinned_domain_cert)
        pinned.public_key()
    except (CertificateError, *UNREADABLE) as error:
        raise VoucherRefused(Refusal.NO_PINNED_CERTIFICATE, shortened(str(error), 200)) from error
    return pinned


def _in_time(certificate: x509.Certificate, when: datetime) -> bool:
    return certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc


def _has_path(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]) -> bool:
    """Return whether there is a path but for the time."""
    try:
        validate_path(chain, anchors, None)
    except PathError:
        return False
    return True


def _path_to(anchor: x509.Certificate, chain: Sequence[x509.Certificate], when: datetime | None) -> Path:
    try:
        return validate_path(chain, (anchor,), when)
    except PathError as error:
        if when is not None and _has_path(chain, (anchor,)):
            raise VoucherRefused(Refusal.REGISTRAR_OUT_OF_TIME, str(error)) from error
        raise VoucherRefused(Refusal.REGISTRAR_NOT_PINNED, str(error)) from error


def _check_usage(registrar: x509.Certificate) -> None:
    try:
        usages = registrar.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise VoucherRefused(Refusal.REGISTRAR_NOT_AUTHORIZED) from None
    if ID_KP_CMC_RA not in usages:
        raise VoucherRefused(Refusal.REGISTRAR_NOT_AUTHORIZED)


def _check_revocation(
    voucher: Voucher, path: Path, when: datetime | None, revocation: RevocationCheck | None
) -> None:
    wanted = voucher.domain_cert_revocation_checks
    if wanted is False:
        return
    statuses = []
    if revocation is not None:
        # The last one is the anchor, whose revocation nobody but the voucher could tell.
        statuses = [revocation.status(each, issuer, when) for each, issuer in pairwise(path)]
    if RevocationStatus.REVOKED in statuses:
        raise VoucherRefused(Refusal.REGISTRAR_REVOKED)
    if wanted and (not statuses or RevocationStatus.UNAVAILABLE in statuses):
        raise VoucherRefused(Refusal.REVOCATION_UNKNOWN)
