"""How a device gets its voucher: its request is judged, its manufacturer asked, the answer judged and kept.

What is asked of a MASA for one device and nonce is asked once, however often the device repeats its request
meanwhile. A device that has to wait, for an operator or for a MASA that is away, is told so (202) and repeats
the same request; what has come by then is in the database, for whichever process it asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Final

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection, Engine

from minerva.brski.registrar import audit
from minerva.brski.registrar.authority import load_ca_certificates
from minerva.brski.registrar.config import Config
from minerva.brski.registrar.database import MAX_DETAIL, DeviceState, reading, record_event, vouchers, writing
from minerva.brski.registrar.devices import Device, change_state, find_device, see_device, set_audit
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.identity import ServiceIdentities
from minerva.brski.registrar.manufacturers import (
    UNLEARNT,
    Manufacturer,
    Manufacturers,
    UnknownManufacturerError,
    identify,
    learn,
    unlearnt,
)
from minerva.brski.registrar.masa_client import (
    MasaAwayError,
    MasaClient,
    MasaError,
    MasaRefusedError,
    MasaServer,
)
from minerva.brski.registrar.policy import Decision, decide
from minerva.brski.registrar.requests import (
    PledgeRequest,
    check_media_types,
    check_pledge_request,
    masa_of,
    registrar_request,
)
from minerva.core.errors import MinervaError
from minerva.core.text import printable, shortened
from minerva.pki.address import AcpAddress
from minerva.pki.errors import AddressError
from minerva.pki.idevid import domain_id
from minerva.voucher.check import check_registrar_chain, check_voucher
from minerva.voucher.errors import VoucherRefused
from minerva.voucher.model import Voucher

log = logging.getLogger(__name__)

PATIENCE: Final = 8.0
"""How long a device waits for its answer before it is told to come again, in seconds."""

MAX_UNDER_WAY: Final = 1_000
"""How many devices' vouchers are being fetched at a time."""

MAX_UNDER_WAY_PER_DEVICE: Final = 16
"""How many of them one device may have, each for another nonce: it tries several join proxies at once."""

MAX_VOUCHERS, VOUCHERS_PERIOD = 64, timedelta(hours=1)
"""How many vouchers of a device are kept, the newest, and how many it gets within that time."""

SEEN_AGAIN: Final = timedelta(seconds=5)
"""After what time it is written down that a device still waits."""

DOMAINS_LIFETIME: Final = timedelta(minutes=1)
"""How long the CAs that were once ours are remembered before the database is asked again."""

_MAX_AWAY: Final = 1_000

MAX_RETRY_AFTER: Final = 60
"""What a pledge waits at most, in seconds, whatever it is told (RFC 8995 section 5.6)."""

# Made once: SQLAlchemy needs longer for it than the database.
_INSERT = sa.insert(vouchers)
_LATELY = sa.select(sa.func.count()).where(
    vouchers.c.device_id == sa.bindparam("owner"),
    vouchers.c.created > sa.bindparam("since"),
    vouchers.c.created <= sa.bindparam("now"),
)
_LAST_KEPT = (
    sa.select(vouchers.c.id)
    .where(vouchers.c.device_id == sa.bindparam("owner"))
    .order_by(vouchers.c.id.desc())
    .offset(MAX_VOUCHERS)
    .limit(1)
)
_FORGET = sa.delete(vouchers).where(
    vouchers.c.device_id == sa.bindparam("owner"), vouchers.c.id <= sa.bindparam("last")
)


class VoucherService:
    """Answers voucher requests. Everything in it runs in one event loop, but for the database's threads."""

    def __init__(
        self,
        engine: Engine,
        services: ServiceIdentities,
        masa: MasaClient,
        config: Config,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        patience: float = PATIENCE,
    ) -> None:
        self._engine = engine
        self._services = services
        self._masa = masa
        self._config = config
        self._clock = clock
        self._patience = patience
        self._manufacturers = Manufacturers()
        self._domains: frozenset[bytes] = frozenset()
        self._domains_at = datetime.min.replace(tzinfo=UTC)
        self._under_way: dict[tuple[str, str, str], asyncio.Task[bytes]] = {}
        self._away: set[str] = set()  # the URLs of MASAs that do not answer

    async def answer(
        self,
        body: bytes,
        chain: Sequence[x509.Certificate],
        *,
        content_type: str,
        accept: str = "",
        peer: str | None = None,
    ) -> bytes:
        """Return the voucher for the request ``body`` of the device that showed ``chain`` in TLS.

        Raises :class:`Refusal`, also for what has to wait.
        """
        check_media_types(content_type, accept)
        if not chain:
            raise Refusal(403, "a voucher is for a device that shows its IDevID in TLS")
        request, known = await asyncio.to_thread(self._look, body, chain, peer)
        if known is not None:
            log.info("%s gets its voucher again", printable(request.serial_number))
            return known
        return await self._shared(request, peer)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look(
        self, body: bytes, chain: Sequence[x509.Certificate], peer: str | None
    ) -> tuple[PledgeRequest, bytes | None]:
        """Return the request of a device that may join, and the voucher that it got for it before.

        Raises :class:`Refusal` if it must not join, or not yet.
        """
        now = self._clock()
        with reading(self._engine) as connection:
            manufacturer, serial_number = self._whose(self._manufacturers.load(connection), chain, now)
            device = find_device(connection, manufacturer.id, serial_number)
            try:
                request = check_pledge_request(body, chain, manufacturer, serial_number, self._services)
            except Refusal as refusal:
                _name_device(refusal, manufacturer, serial_number, device)
                raise
            decision = decide(manufacturer.policy, None if device is None else device.state)
            voucher = None
            if decision is Decision.GRANT and device is not None and device.audit_ok:
                voucher = _kept(connection, device, request.nonce)
            if decision is Decision.GRANT and device is not None and voucher is None:
                _check_number(connection, device, now)
        if decision is Decision.WAIT:
            device = self._put_into_queue(request, device, peer, now)
        if (answer := self._refusal(decision, request, device)) is not None:
            raise answer
        return request, voucher

    def _whose(
        self, known: Sequence[Manufacturer], chain: Sequence[x509.Certificate], now: datetime
    ) -> tuple[Manufacturer, str]:
        """Return the manufacturer and the serial number of the device. Raises :class:`Refusal`."""
        try:
            return identify(known, chain, now)
        except UnknownManufacturerError as error:
            try:
                if not (self._config.pledges.open and error.unknown):
                    raise
                return identify([unlearnt(chain)], chain, now)
            except UnknownManufacturerError as reason:
                raise Refusal(403, str(reason), detail=_issuer(chain)) from reason

    def _put_into_queue(
        self, request: PledgeRequest, device: Device | None, peer: str | None, now: datetime
    ) -> Device:
        """Let the operator see a device that waits."""
        if (
            device is not None
            and device.last_seen is not None
            and timedelta(0) <= now - device.last_seen < SEEN_AGAIN
            and device.idevid == request.idevid.public_bytes(Encoding.DER)
        ):
            return device  # it may ask as often as it likes, but not have the disk turn for each time
        with writing(self._engine) as connection:
            seen = see_device(
                connection,
                request.manufacturer.id,
                request.serial_number,
                when=now,
                idevid=request.idevid,
                peer=peer,
            )
            if device is None:
                record_event(connection, "waiting", when=now, device_id=seen.id, peer=peer)
                log.info(
                    "%s of %s waits for `minerva registrar approve`",
                    printable(request.serial_number),
                    request.manufacturer.name,
                )
        return seen

    def _refusal(self, decision: Decision, request: PledgeRequest, device: Device | None) -> Refusal | None:
        """Return what goes with a decision (RFC 8995 section 5.3)."""
        who = f"the device {printable(request.serial_number)}"
        number = None if device is None else device.id
        because = f": {printable(device.reason)}" if device is not None and device.reason else ""
        match decision:
            case Decision.GRANT:
                return None
            case Decision.WAIT:
                wait = self._config.pledges.retry_after
                return Refusal(
                    202, f"{who} waits for the operator's approval", retry_after=wait, device_id=number
                )
            case Decision.UNLISTED:
                return Refusal(
                    404,
                    f"{who} is not on the list of devices that may join",
                    detail=f"of {request.manufacturer.name}",
                    device_id=number,
                )
            case Decision.DENIED | Decision.REVOKED:
                return Refusal(404, f"{who} is {decision}{because}", device_id=number)

    async def _shared(self, request: PledgeRequest, peer: str | None) -> bytes:
        """Return the voucher that is fetched for this device and nonce, by whoever asked first."""
        key = (request.manufacturer.name, request.serial_number, request.nonce)
        task = self._under_way.get(key)
        if task is None:
            wait = self._config.pledges.retry_after
            if len(self._under_way) >= MAX_UNDER_WAY:
                raise Refusal(503, "too many devices at a time", retry_after=wait)
            if sum(other[:2] == key[:2] for other in self._under_way) >= MAX_UNDER_WAY_PER_DEVICE:
                who = f"the device {printable(request.serial_number)}"
                raise Refusal(503, f"{who} asks for too many vouchers at a time", retry_after=wait)
            task = asyncio.get_running_loop().create_task(self._fetch(request, peer))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        await asyncio.wait([task], timeout=self._patience)
        if not task.done():
            raise Refusal(
                202, "the manufacturer has not answered yet", retry_after=self._config.pledges.retry_after
            )
        return task.result()

    def _finished(self, key: tuple[str, str, str], task: asyncio.Task[bytes]) -> None:
        del self._under_way[key]
        if (
            not task.cancelled()
            and (error := task.exception()) is not None
            and not isinstance(error, Refusal)
        ):
            expected = isinstance(error, MinervaError)
            said = f": {error}" if expected else ""
            log.error("no voucher for %s%s", printable(key[1]), said, exc_info=None if expected else error)

    async def _fetch(self, request: PledgeRequest, peer: str | None) -> bytes:
        """Ask the MASA, judge its answer, keep it. Raises :class:`Refusal`."""
        server = masa_of(request.manufacturer, request.idevid)
        own_request = registrar_request(request, self._clock())
        try:
            data = await self._masa.request_voucher(server, own_request)
            voucher = self._judged(data, request)
            # Asked before the voucher is passed on, and not only after the device has told how it liked it: a
            # device with the wrong history shall not get as far as to belong to this domain.
            history = await self._masa.request_audit_log(server, own_request)
        except MasaError as error:
            if isinstance(error, MasaAwayError):
                self._is_away(server.url, str(error))
            raise await asyncio.to_thread(self._masa_refusal, error, request) from error
        if server.url in self._away:
            self._away.remove(server.url)
            log.info("the MASA at %s answers again", printable(server.url))
        await asyncio.to_thread(self._keep, request, own_request, server, data, voucher, history, peer)
        return data

    def _is_away(self, url: str, reason: str) -> None:
        """Tell the operator once of a MASA that does not answer, however many devices wait for it."""
        if url not in self._away:
            log.warning("%s: its devices have to wait", reason)
        if len(self._away) < _MAX_AWAY:
            self._away.add(url)

    def _judged(self, data: bytes, request: PledgeRequest) -> Voucher:
        """Return the voucher in ``data`` if the device will accept it, as far as we can tell."""
        now = self._clock()
        maker = request.manufacturer
        try:
            voucher = check_voucher(
                data,
                serial_number=request.serial_number,
                certificate=request.idevid,
                anchors=maker.anchors,
                nonce=request.nonce,
                when=maker.time_for(now),
            )
            service = request.service
            check_registrar_chain(voucher, (service.certificate, *service.chain), now)
        except VoucherRefused as error:
            raise Refusal(
                406,
                f"the voucher from the manufacturer is not acceptable: {error}",
                detail=f"device {printable(request.serial_number)} of {maker.name}",
            ) from error
        return voucher

    def _masa_refusal(self, error: MasaError, request: PledgeRequest) -> Refusal:
        """Return what the device is told, and the operator, of a MASA that gave no voucher."""
        name = printable(request.serial_number)
        with reading(self._engine) as connection:
            device = find_device(connection, request.manufacturer.id, request.serial_number)
        number = None if device is None else device.id
        match error:
            case MasaAwayError():
                wait = error.retry_after or self._config.pledges.retry_after
                return Refusal(
                    202,
                    f"the manufacturer of {name} cannot be asked at present",
                    detail=str(error),
                    retry_after=int(min(max(wait, 1), MAX_RETRY_AFTER)),
                    device_id=number,
                )
            case MasaRefusedError() if error.status in (403, 404, 406, 415):
                return Refusal(
                    error.status,
                    f"the manufacturer gives no voucher for {name}: {error.text or error.status}",
                    detail=str(error),
                    device_id=number,
                )
            case _:
                return Refusal(502, "the manufacturer gives no voucher", detail=str(error), device_id=number)

    def _own_domains(self, request: PledgeRequest, now: datetime) -> frozenset[bytes]:
        """Return the domainIDs under which a MASA may know this domain, now or from before."""
        if not self._domains_at <= now < self._domains_at + DOMAINS_LIFETIME:
            with reading(self._engine) as connection:
                authorities = load_ca_certificates(connection, now)
            self._domains, self._domains_at = frozenset(map(domain_id, authorities)), now
        service = request.service
        return self._domains | {domain_id(one) for one in (service.certificate, *service.authorities)}

    def _keep(
        self,
        request: PledgeRequest,
        own_request: bytes,
        server: MasaServer,
        data: bytes,
        voucher: Voucher,
        history: bytes | None,
        peer: str | None,
    ) -> None:
        """Write down what came of it. Raises :class:`Refusal` if the device must not go on."""
        now = self._clock()
        verdict = audit.judge(history, self._own_domains(request, now), self._config.audit)
        name = printable(request.serial_number)
        with writing(self._engine) as connection:
            maker = request.manufacturer
            if maker.id == UNLEARNT:
                # Only now: what it takes to get here is a MASA that the web knows.
                maker = _learn(connection, maker, now)
            device = see_device(
                connection,
                maker.id,
                request.serial_number,
                when=now,
                state=DeviceState.APPROVED,
                idevid=request.idevid,
                peer=peer,
            )
            # The operator may have had a word in the meantime.
            decision = decide(request.manufacturer.policy, device.state)
            refusal = self._refusal(decision, request, device)
            if refusal is None:
                refusal = self._judge_history(connection, device, verdict, peer, now)
            if refusal is None:
                change_state(connection, device, DeviceState.VOUCHERED, audit_ok=True)
                connection.execute(
                    _INSERT,
                    {
                        "device_id": device.id,
                        "nonce": request.nonce,
                        "request": request.signed,
                        "registrar_request": own_request,
                        "masa_url": server.url,
                        "voucher": data,
                        "assertion": voucher.assertion,
                        "created": now,
                    },
                )
                _forget_old(connection, device)
                detail = {
                    "assertion": str(voucher.assertion or "none"),
                    "masa": server.url,
                    "near": is_near(peer, request.service.certificate),
                    **({"history": "; ".join(verdict.remarks)} if verdict.remarks else {}),
                }
                record_event(connection, "voucher", when=now, device_id=device.id, peer=peer, detail=detail)
        if refusal is not None:
            raise refusal
        log.info(
            "%s of %s gets a voucher (%s) from %s",
            name,
            request.manufacturer.name,
            voucher.assertion or "no assertion",
            server.url,
        )
        for remark in verdict.remarks:
            log.warning("%s: %s", name, remark)

    def _judge_history(
        self, connection: Connection, device: Device, verdict: audit.Verdict, peer: str | None, now: datetime
    ) -> Refusal | None:
        """Return a refusal if the history of the device is not acceptable, and note that."""
        if verdict.acceptable or device.audit_waived:
            return None
        because = shortened("; ".join(verdict.objections), MAX_DETAIL)
        set_audit(connection, device.id, ok=False, reason=because)
        record_event(
            connection, "history", when=now, device_id=device.id, peer=peer, detail={"objections": because}
        )
        log.error("%s: %s", printable(device.serial_number), because)
        return Refusal(
            406,
            f"the history of the device {printable(device.serial_number)} is not acceptable",
            detail=because,
            device_id=device.id,
        )


def _learn(connection: Connection, unknown: Manufacturer, now: datetime) -> Manufacturer:
    try:
        maker = learn(connection, unknown, now)
    except UnknownManufacturerError as error:
        raise Refusal(403, str(error)) from error
    record_event(connection, "manufacturer learnt", when=now, detail={"name": maker.name})
    return maker


def _name_device(
    refusal: Refusal, manufacturer: Manufacturer, serial_number: str, device: Device | None
) -> None:
    """Let ``refusal`` be about the device, if it is one that we know."""
    if device is not None:
        refusal.device_id = device.id
    elif refusal.detail is None:
        refusal.detail = f"device {printable(serial_number)} of {manufacturer.name}"


def is_near(peer: str | None, own: x509.Certificate) -> bool:
    """Return whether a connection came through the ACP: from the ULA prefix of one of our own addresses.

    That is what the device's claim to be near rests on: only a join proxy of the domain has such an address,
    and takes devices from its own links only (RFC 8995 sections 3 and 9).
    """
    try:
        network = AcpAddress(IPv6Address((peer or "").partition("%")[0])).ula_prefix
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return any(address in network for address in names.get_values_for_type(x509.IPAddress))
    except (ValueError, AddressError, x509.ExtensionNotFound):
        return False


def _kept(connection: Connection, device: Device, nonce: str) -> bytes | None:
    """Return the latest voucher that the device got for a nonce."""
    found = connection.scalar(
        sa.select(vouchers.c.voucher)
        .where(vouchers.c.device_id == device.id, vouchers.c.nonce == nonce)
        .order_by(vouchers.c.id.desc())
        .limit(1)
    )
    return None if found is None else bytes(found)


def _check_number(connection: Connection, device: Device, now: datetime) -> None:
    """Raise :class:`Refusal` if the device has got too many vouchers lately, each for another nonce."""
    number = connection.scalar(_LATELY, {"owner": device.id, "since": now - VOUCHERS_PERIOD, "now": now})
    if number is not None and number >= MAX_VOUCHERS:
        raise Refusal(
            503,
            f"the device {printable(device.serial_number)} has got {number} vouchers lately: enough",
            retry_after=MAX_RETRY_AFTER,
            device_id=device.id,
        )


def _forget_old(connection: Connection, device: Device) -> None:
    """Keep the newest vouchers of a device: with its request and ours, one may have hundreds of kilobytes."""
    last = connection.scalar(_LAST_KEPT, {"owner": device.id})
    if last is not None:
        connection.execute(_FORGET, {"owner": device.id, "last": last})


def _issuer(chain: Sequence[x509.Certificate]) -> str:
    """Return who issued an IDevID, for the operator who may want to add that manufacturer."""
    try:
        return f"issued by {printable(chain[0].issuer.rfc4514_string())}"
    except ValueError:
        return "issued by somebody whose name cannot be read"
