"""Voucher requests: that of a pledge is checked, that of the registrar made (RFC 8995 sections 5.2 to 5.5).

Everything here is judged from bytes and certificates; who may join is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.identity import ServiceIdentities, ServiceIdentity, same_key
from minerva.brski.registrar.manufacturers import Manufacturer
from minerva.brski.registrar.masa_client import VOUCHER_CMS_JSON, MasaServer
from minerva.core.text import printable, shortened
from minerva.pki import idevid
from minerva.pki.errors import IdevidError
from minerva.voucher.cms import open_signed, sign
from minerva.voucher.errors import CmsError, CmsSignatureError, VoucherDecodeError
from minerva.voucher.model import Assertion, VoucherRequest

MAX_REQUEST: Final = 65_536
"""The largest request of a pledge, in bytes."""

MEDIA_RANGES: Final = frozenset({VOUCHER_CMS_JSON, "application/*", "*/*"})

_NEVER = re.compile(r"q\s*=\s*0(\.0*)?")


@dataclass(frozen=True, slots=True)
class PledgeRequest:
    """A pledge's voucher request that is what it claims to be: ``signed`` are its bytes, as they came.

    ``serial_number`` is that of the IDevID, ``nonce`` what the voucher has to bear, ``service`` the identity
    by which the pledge knows us.
    """

    manufacturer: Manufacturer
    serial_number: str
    idevid: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    nonce: str
    signed: bytes
    service: ServiceIdentity


def check_media_types(content_type: str, accept: str) -> None:
    """Raise :class:`Refusal` unless we understand the request's type and can answer with one it accepts."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != VOUCHER_CMS_JSON:
        said = shortened(kind, 60) or "no media type"
        raise Refusal(415, f"{said} is not understood here; send {VOUCHER_CMS_JSON}")
    if accept.strip() and not any(_acceptable(entry) for entry in accept.split(",")):
        raise Refusal(406, f"there are vouchers of the type {VOUCHER_CMS_JSON} only")


def _acceptable(entry: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in entry.split(";"))
    refused = any(
        parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters
    )
    return kind in MEDIA_RANGES and not refused


def check_pledge_request(
    body: bytes,
    chain: Sequence[x509.Certificate],
    manufacturer: Manufacturer,
    serial_number: str,
    services: ServiceIdentities,
) -> PledgeRequest:
    """Return the request in ``body`` of the device whose IDevID, ``chain[0]``, was checked and seen in TLS.

    Raises :class:`Refusal`: 401, with which the connection has to end, if the device did not see our
    certificate in TLS, for then somebody stands between us.
    """
    who = f"the device {printable(serial_number)}"
    try:
        signed = open_signed(body, chain)
    except CmsSignatureError as error:
        raise Refusal(403, f"the voucher request is not signed correctly: {error}") from error
    except CmsError as error:
        raise Refusal(406, f"the voucher request is in an unknown format: {error}") from error
    if not same_key(signed.signer.public_key(), chain[0].public_key()):
        raise Refusal(403, "the voucher request is not signed by the key of the IDevID that TLS shows")
    try:
        request = VoucherRequest.decode(signed.payload)
    except VoucherDecodeError as error:
        raise Refusal(406, f"the voucher request is in an unknown format: {error}") from error
    if request.serial_number != serial_number:
        claimed = printable(request.serial_number)
        raise Refusal(403, f"the voucher request is for {claimed}, but the IDevID that of {who}")
    if request.assertion is not Assertion.PROXIMITY or request.proximity_registrar_cert is None:
        raise Refusal(
            401, f"{who} does not say that it is near, and by which certificate it knows us", close=True
        )
    service = services.seen_as(request.proximity_registrar_cert)
    if service is None:
        raise Refusal(
            401,
            f"{who} sees another certificate in TLS than this registrar's: somebody is between us",
            close=True,
        )
    if request.nonce is None:
        raise Refusal(403, "the voucher request has no nonce, so that nobody could say that it is fresh")
    return PledgeRequest(manufacturer, serial_number, chain[0], tuple(chain), request.nonce, body, service)


def registrar_request(pledge: PledgeRequest, now: datetime) -> bytes:
    """Return the registrar's voucher request, signed (section 5.5).

    With it go the certificates of the chain of which the MASA is to pin one: all up to the domain's CA.
    """
    request = VoucherRequest(
        assertion=Assertion.PROXIMITY,
        created_on=now,
        serial_number=pledge.serial_number,
        nonce=pledge.nonce,
        idevid_issuer=idevid.authority_key_identifier_value(pledge.idevid),
        prior_signed_voucher_request=pledge.signed,
    )
    service = pledge.service
    return sign(request.encode(), service.key, service.certificate, service.authorities, when=now)


def masa_of(manufacturer: Manufacturer, certificate: x509.Certificate) -> MasaServer:
    """Return where the MASA for a device is: where the operator says, else its IDevID (section 2.8).

    Raises :class:`Refusal` if neither says it.
    """
    if manufacturer.masa_url is not None:
        return MasaServer(manufacturer.masa_url, manufacturer.server_anchors)
    try:
        url = idevid.masa_url(certificate)
    except IdevidError as error:
        raise Refusal(403, f"the IDevID: {error}; the operator can say where the MASA is") from error
    if url is None:
        raise Refusal(403, "the IDevID does not say where the MASA is, and neither did the operator")
    return MasaServer(url, manufacturer.server_anchors)
