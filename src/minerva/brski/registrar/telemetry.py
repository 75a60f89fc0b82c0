"""What devices tell of how their bootstrapping goes (RFC 8995 sections 5.7 and 5.9.4).

It is a help for operators, and nothing depends on it but one thing: a device that says that its voucher is
not acceptable gets no certificate with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection, Engine

from minerva.brski.registrar.authority import serial_text
from minerva.brski.registrar.database import DeviceState, certificates, record_event, writing
from minerva.brski.registrar.devices import Device, find_by_idevid, get_device, set_audit
from minerva.brski.registrar.errors import Refusal
from minerva.core.rate import TokenBucket
from minerva.core.text import printable, shortened
from minerva.voucher.errors import StatusDecodeError
from minerva.voucher.telemetry import MAX_SIZE, VERSION, Status

log = logging.getLogger(__name__)

JSON: Final = "application/json"

VOUCHER_STATUS: Final = "voucher status"
ENROLMENT_STATUS: Final = "enrolment status"

REPORTS, SECONDS_PER_REPORT = 20, 30.0
"""How many reports of one device are written at once, and after how many seconds one more."""

_ISSUED = sa.select(certificates.c.device_id, certificates.c.der).where(
    certificates.c.serial == sa.bindparam("wanted"), certificates.c.device_id.is_not(None)
)

_MAX_DEVICES = 10_000
_SHOWN = 200
_SILENT = "it does not say why"


class TelemetryService:
    """Takes the reports of devices."""

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._clock = clock
        self._buckets: OrderedDict[int, TokenBucket] = OrderedDict()

    async def voucher_status(
        self, body: bytes, chain: Sequence[x509.Certificate], *, content_type: str, peer: str | None = None
    ) -> None:
        """Take what a device thinks of its voucher. Raises :class:`Refusal`."""
        status = _decode(body, content_type)
        await asyncio.to_thread(self._take_voucher_status, status, chain, peer)

    async def enrolment_status(
        self, body: bytes, chain: Sequence[x509.Certificate], *, content_type: str, peer: str | None = None
    ) -> None:
        """Take what a device tells of its enrolment. Raises :class:`Refusal`."""
        status = _decode(body, content_type)
        await asyncio.to_thread(self._take_enrolment_status, status, chain, peer)

    def _take_voucher_status(
        self, status: Status, chain: Sequence[x509.Certificate], peer: str | None
    ) -> None:
        detail = _detail(status)
        with writing(self._engine) as connection:
            device, _ = _device(connection, chain)
            if self._may_write(device):
                self._record(connection, VOUCHER_STATUS, device, detail, peer)
                if not status.status and device.state is DeviceState.VOUCHERED:
                    set_audit(connection, device.id, ok=False, reason="the device did not accept its voucher")
        name = printable(device.serial_number)
        if status.status:
            log.info("%s accepts its voucher", name)
        else:
            log.warning("%s does not accept its voucher: %s", name, detail.get("reason", _SILENT))
        _alert(name, status)

    def _take_enrolment_status(
        self, status: Status, chain: Sequence[x509.Certificate], peer: str | None
    ) -> None:
        with writing(self._engine) as connection:
            device, own = _device(connection, chain)
            # RFC 8995 section 5.9.4: whether it came with the certificate that it is about.
            detail = _detail(status) | {"with_its_certificate": own}
            if self._may_write(device):
                self._record(connection, ENROLMENT_STATUS, device, detail, peer)
        name = printable(device.serial_number)
        shown = "its new certificate" if own else "its IDevID"
        if status.status:
            log.info("%s is enrolled, it says with %s", name, shown)
        else:
            log.warning("%s is not enrolled, it says with %s: %s", name, shown, detail.get("reason", _SILENT))
        _alert(name, status)

    def _may_write(self, device: Device) -> bool:
        bucket = self._buckets.setdefault(device.id, TokenBucket(REPORTS, SECONDS_PER_REPORT))
        self._buckets.move_to_end(device.id)
        while len(self._buckets) > _MAX_DEVICES:
            self._buckets.popitem(last=False)
        return bucket.take(self._clock().timestamp())

    def _record(
        self, connection: Connection, kind: str, device: Device, detail: dict[str, Any], peer: str | None
    ) -> None:
        record_event(connection, kind, when=self._clock(), device_id=device.id, peer=peer, detail=detail)


def _device(connection: Connection, chain: Sequence[x509.Certificate]) -> tuple[Device, bool]:
    """Return the device that shows ``chain``, and whether it is with a certificate of this domain."""
    if not chain:
        raise Refusal(403, "a report is for a device that shows its certificate in TLS")
    if (device := find_by_idevid(connection, chain[0])) is not None:
        return device, False
    if (device := _owner(connection, chain[0])) is not None:
        return device, True
    raise Refusal(404, "a device with this certificate is not known here")


def _decode(body: bytes, content_type: str) -> Status:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != JSON:
        said = shortened(kind, 60) or "no media type"
        raise Refusal(415, f"{said} is not understood here; send {JSON}")
    if len(body) > MAX_SIZE:
        raise Refusal(413, f"a report has {MAX_SIZE} bytes at most")
    try:
        return Status.decode(body)
    except StatusDecodeError as error:
        raise Refusal(400, f"the report cannot be read: {error}") from error


def _detail(status: Status) -> dict[str, Any]:
    """Return what is written of a report; all of it is what the device says."""
    detail: dict[str, Any] = {"status": status.status}
    if status.reason is not None:
        detail["reason"] = shortened(status.reason, _SHOWN)
    if status.reason_context is not None:
        detail["reason_context"] = shortened(json.dumps(status.reason_context), _SHOWN)
    if status.version != VERSION:
        detail["version"] = status.version
    if status.unknown:
        detail["unknown"] = shortened(json.dumps(dict(status.unknown)), _SHOWN)
    return detail


def _alert(name: str, status: Status) -> None:
    """Call for a human where a device says more than we understand."""
    if status.version > VERSION:
        log.error("%s sends a report of version %d, of which only a part is understood", name, status.version)
    if status.unknown:
        log.warning(
            "%s reports what is not known here: %s", name, shortened(json.dumps(dict(status.unknown)), _SHOWN)
        )


def _owner(connection: Connection, certificate: x509.Certificate) -> Device | None:
    """Return the device to which exactly this certificate was issued here."""
    row = connection.execute(_ISSUED, {"wanted": serial_text(certificate)}).one_or_none()
    if row is None or row.der != certificate.public_bytes(Encoding.DER):
        return None
    return get_device(connection, row.device_id)
