"""Who gets a voucher, and who may read a device's log (RFC 8995 sections 5.5 to 5.8)."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding

from minerva.brski.masa.authority import Authority, is_serial_number
from minerva.brski.masa.database import Database, DeviceRecord, Entry, LogEntry, Owner
from minerva.brski.masa.errors import Refusal
from minerva.brski.masa.requests import DomainRequest, Prior, check_fresh, check_prior, open_request
from minerva.brski.masa.revocation import RevocationChecker
from minerva.brski.masa.settings import Crls, Sales
from minerva.core.text import shortened
from minerva.pki.certificates import load_certificate
from minerva.pki.idevid import same_issuer
from minerva.voucher.audit import AuditEvent, AuditLog
from minerva.voucher.cms import sign
from minerva.voucher.model import Assertion, Voucher

MAX_EVENTS = 500
"""How many events an audit log has at most: two for each domain that ever owned the device."""

_ATTEMPTS = 20
_REMEMBERED = 256
_FORBIDDEN, _NOT_FOUND, _BUSY = 403, 404, 503

_logger = logging.getLogger(__name__)


class Masa:
    """The service. Threads may share one, and processes a database."""

    def __init__(
        self, authority: Authority, database: Database, revocation: RevocationChecker | None = None
    ) -> None:
        self._authority = authority
        self._settings = authority.settings
        self._database = database
        self._revocation = revocation or RevocationChecker(Crls(authority.settings.crls))
        self._verified: OrderedDict[bytes, DomainRequest] = OrderedDict()

    def request_voucher(self, data: bytes, *, peer: str, now: datetime) -> bytes:
        """Return the voucher for a registrar's request, when it is in the log.

        The same request again gets the same voucher. Raises :class:`Refusal`.
        """
        request = open_request(data, now)
        prior: Prior | None = None
        checked = False
        # Others may be faster. Then what was decided is decided again, on what there is now.
        for _ in range(_ATTEMPTS):
            device, answer = self._look_up(request)
            if answer is not None:
                check_owner(device, request, now)
                if answer.void:
                    raise _stale(device)
                return answer.voucher
            if not checked:
                check_fresh(request, now)
                prior = check_prior(
                    request, (self._authority.devices.certificate,), (self._authority.vouchers,), now
                )
                checked = True
            assertion = decide(device, request, prior, Sales(self._settings.sales), now)
            # Last, as somebody else may have to be asked.
            crls_end = self._revocation.check(request.path, now)
            entry = self._make(device, request, assertion, peer, now, crls_end)
            if self._database.record(device, entry):
                self._remember(request)
                _logger.info(
                    "voucher for %s to %s (%s, %s) of %s",
                    device.serial_number,
                    entry.owner.name,
                    assertion,
                    "nonceless" if entry.nonce is None else "with nonce",
                    peer,
                )
                return entry.voucher
        raise Refusal(_BUSY, "too many requests for this device at once; try again")

    def request_audit_log(self, data: bytes, now: datetime) -> tuple[AuditLog, str]:
        """Return a device's log, and the last part of the URL where it can be had again.

        ``data`` is a registrar's voucher request. Raises :class:`Refusal` with 404 for a device that is not
        there, and for a registrar whose domain never owned it.
        """
        request = self._recall(data) or open_request(data, now)
        device, _ = self._look_up(request, with_answer=False)
        entries = self._database.log(device)
        keys = request.keys
        own = [entry for entry in entries if entry.key in keys]
        if not own and entries and is_owner(device, request, now):
            own = entries[:1]
        if not own:
            raise _unknown(device.serial_number)
        return audit_log(entries), own[0].slug

    def audit_log_at(self, slug: str) -> AuditLog:
        """Return the log at a URL that :meth:`request_audit_log` gave. Raises :class:`Refusal`."""
        entries = self._database.log_at(slug)
        if not entries:
            raise Refusal(_NOT_FOUND, "there is no such log")
        return audit_log(entries)

    def _look_up(
        self, request: DomainRequest, *, with_answer: bool = True
    ) -> tuple[DeviceRecord, Entry | None]:
        """Return the device of a request, and the voucher if the request was answered before."""
        serial_number, issuer = request.request.serial_number, request.request.idevid_issuer
        # Not every text can be asked for in a database.
        if not is_serial_number(serial_number):
            raise _unknown(serial_number)
        device, answer = self._database.look_up(serial_number, request.digest if with_answer else None)
        if device is None:
            raise _unknown(serial_number)
        if issuer is not None and not same_issuer(issuer, load_certificate(device.idevid)):
            raise _unknown(serial_number)
        return device, answer

    def _make(
        self,
        device: DeviceRecord,
        request: DomainRequest,
        assertion: Assertion,
        peer: str,
        now: datetime,
        crls_end: datetime | None,
    ) -> Entry:
        nonce = request.request.nonce
        now = now.replace(microsecond=0)
        signer = self._authority.signer
        pinned, expires = request.lowest_ca, None
        if nonce is None:
            # For later use, perhaps with another registrar: the CA that is known to be the owner's.
            assert device.assigned is not None
            pinned = load_certificate(device.assigned.certificate)
            certificates = (pinned, signer.certificate, *request.path)
            ends = [certificate.not_valid_after_utc for certificate in certificates]
            if crls_end is not None:
                ends.append(crls_end)
            expires = min(now + self._settings.lifetime, *ends)
        voucher = Voucher(
            serial_number=device.serial_number,
            created_on=now,
            assertion=assertion,
            nonce=nonce,
            expires_on=expires,
            pinned_domain_cert=pinned.public_bytes(Encoding.DER),
            # A pledge that is about to join cannot ask for it (RFC 8995 section 5.6).
            domain_cert_revocation_checks=False,
        )
        return Entry(
            owner=Owner.of(pinned),
            request_digest=request.digest,
            nonce=nonce,
            assertion=str(assertion),
            created=now,
            expires=expires,
            peer=peer,
            voucher=sign(
                voucher.encode(), signer.key, signer.certificate, self._authority.voucher_chain, when=now
            ),
        )

    def _remember(self, request: DomainRequest) -> None:
        # Most registrars ask for the log with the same request right after (RFC 8995 section 5.8).
        self._verified[request.digest] = request.without_prior()
        while len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)

    def _recall(self, data: bytes) -> DomainRequest | None:
        return self._verified.get(hashlib.sha256(data).digest())


def decide(
    device: DeviceRecord, request: DomainRequest, prior: Prior | None, sales: Sales, now: datetime
) -> Assertion:
    """Return what the voucher says of why the domain gets it, or raise :class:`Refusal`."""
    check_owner(device, request, now)
    if device.released is not None and request.made is not None and request.made < device.released:
        raise _stale(device)
    assigned = device.assigned is not None
    proximity = prior is not None and prior.proximity
    if device.owner is None and not assigned:
        if sales is Sales.LISTED:
            raise Refusal(
                _FORBIDDEN,
                f"the device {device.serial_number} has not been sold to anybody, as far as its maker knows; "
                "ask the seller to register the sale",
            )
        if sales is Sales.PROOF and not proximity:
            raise Refusal(
                _FORBIDDEN,
                f"the device {device.serial_number} goes to whom it speaks with: send its own voucher "
                "request along (prior-signed-voucher-request)",
            )
    if prior is not None and not proximity and device.owner is None:
        raise Refusal(_FORBIDDEN, "the voucher to be renewed is of a former owner")
    if request.request.nonce is None and not (assigned and device.nonceless):
        raise Refusal(
            _FORBIDDEN,
            "vouchers without a nonce are for registrars that the maker knows and has allowed to have them; "
            "send a nonce, or ask the maker",
        )
    if proximity:
        return Assertion.PROXIMITY
    return Assertion.VERIFIED if assigned else Assertion.LOGGED


def check_owner(device: DeviceRecord, request: DomainRequest, now: datetime) -> None:
    """Raise :class:`Refusal` if the device is blocked, or is another's by sale or by its first voucher."""
    if device.blocked is not None:
        raise Refusal(_FORBIDDEN, f"the device {device.serial_number} is blocked by its maker; ask the maker")
    if device.owner is None and device.assigned is None:
        return
    # Who owns a device that was sold is always of the buyer's domain, though perhaps by a CA below his.
    if is_owner(device, request, now):
        return
    if device.assigned is not None:
        raise Refusal(
            _FORBIDDEN, f"the device {device.serial_number} was sold to another domain; ask the maker"
        )
    raise Refusal(
        _FORBIDDEN,
        f"the device {device.serial_number} belongs to another domain, which has not released it; "
        "ask its owner or its maker",
    )


def is_owner(device: DeviceRecord, request: DomainRequest, now: datetime) -> bool:
    """Return whether the registrar is of the domain that owns the device, or that it was sold to."""
    return any(owner is not None and request.is_of(owner, now) for owner in (device.owner, device.assigned))


def audit_log(entries: Sequence[LogEntry]) -> AuditLog:
    """Return the log as RFC 8995 section 5.8.1 has it, the newest event first."""
    events = tuple(
        AuditEvent(
            date=entry.date,
            domain_id=entry.domain_id,
            nonce=entry.nonce,
            assertion=Assertion(entry.assertion),
            truncated=entry.issued - 1,
        )
        for entry in entries[:MAX_EVENTS]
    )
    return AuditLog(
        events=events,
        nonced_duplicates=sum(event.truncated for event in events if event.nonce is not None),
        nonceless_duplicates=sum(event.truncated for event in events if event.nonce is None),
        arbitrary=sum(entry.issued for entry in entries[MAX_EVENTS:]),
    )


def _unknown(serial_number: str) -> Refusal:
    # The same words whether it is not there or not the registrar's: nobody shall learn what there is.
    return Refusal(_NOT_FOUND, f"the device {shortened(serial_number, 80)} is not known here")


def _stale(device: DeviceRecord) -> Refusal:
    return Refusal(
        _FORBIDDEN,
        f"the voucher request is stale: its owner has released the device {device.serial_number} since",
    )
