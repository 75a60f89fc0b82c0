"""A maker of devices with all it has, MASA included, which does as a test wants it; and a registrar to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from minerva.brski.registrar import manufacturers
from minerva.brski.registrar.authority import BuiltInAuthority
from minerva.brski.registrar.config import SERVICE_DIRECTORY, Config
from minerva.brski.registrar.database import devices, events, open_database, reading, vouchers, writing
from minerva.brski.registrar.devices import Device, find_device
from minerva.brski.registrar.identity import ServiceIdentities, ServiceIdentity, load_service
from minerva.brski.registrar.init import Made, initialise
from minerva.brski.registrar.journal import Journal
from minerva.brski.registrar.masa_client import VOUCHER_CMS_JSON, MasaServer
from minerva.brski.registrar.policy import Policy
from minerva.brski.registrar.telemetry import TelemetryService
from minerva.brski.registrar.vouchers import VoucherService
from minerva.pki.certificates import dump_pem
from minerva.pki.idevid import domain_id, idevid_extensions
from minerva.pki.keys import PrivateKey, generate_key, signature_hash
from minerva.voucher.audit import AuditEvent, AuditLog
from minerva.voucher.cms import Signed, open_signed, sign
from minerva.voucher.model import Assertion, Voucher, VoucherRequest

MASA = "masa.example.com:9443"
FOR_EVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
DOMAIN = "acp.example.com"
PEER = "fd89:b714:f3db::1"


@dataclass
class Pledge:
    """A device that wants in."""

    serial_number: str
    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """As TLS shows them."""
        return (self.certificate, *self.chain)

    def request(self, seen: x509.Certificate | None, nonce: str | None = "nonce-1", **values: Any) -> bytes:
        """Its voucher request, after it has seen a certificate in TLS."""
        members: dict[str, Any] = {
            "serial_number": self.serial_number,
            "nonce": nonce,
            "assertion": Assertion.PROXIMITY,
            "proximity_registrar_cert": None if seen is None else seen.public_bytes(Encoding.DER),
        }
        request = VoucherRequest(**members | values)
        return sign(request.encode(), self.key, self.certificate, self.chain, when=None)


class Maker:
    """A manufacturer: one root, of which its IDevIDs and what signs its vouchers are."""

    def __init__(self, name: str = "Maker", masa: str | None = MASA) -> None:
        self.name = name
        self.masa = masa
        self.key = generate_key("p256")
        self.root = self._certificate(self.key, _name(f"{name} Root"), ca=True)
        self.signer_key = generate_key("p256")
        self.signer = self._certificate(self.signer_key, _name(f"{name} Vouchers"))

    def device(self, serial_number: str, not_after: datetime = FOR_EVER, masa: str | None = None) -> Pledge:
        """Make a device."""
        key = generate_key("p256")
        # Any text at all: a PrintableString would not hold what some tests try.
        attribute = x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number, _ASN1Type.UTF8String)
        subject = x509.Name([attribute])
        masa = masa or self.masa
        extensions = () if masa is None else idevid_extensions(masa)
        certificate = self._certificate(key, subject, not_after=not_after, extensions=extensions)
        return Pledge(serial_number, certificate, key)

    def voucher(self, voucher: Voucher, when: datetime) -> bytes:
        """Sign a voucher."""
        return sign(voucher.encode(), self.signer_key, self.signer, when=when)

    def _certificate(
        self,
        key: PrivateKey,
        subject: x509.Name,
        *,
        ca: bool = False,
        not_after: datetime = FOR_EVER,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name(f"{self.name} Root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(not_after)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        for value, critical in extensions or ((x509.BasicConstraints(ca=ca, path_length=None), True),):
            builder = builder.add_extension(value, critical)
        return builder.sign(self.key, signature_hash(self.key))


@dataclass(frozen=True)
class Asked:
    """One request that a MASA got."""

    operation: str
    server: MasaServer
    body: bytes
    request: VoucherRequest
    signed: Signed


class FakeMasa:
    """In the place of a MasaClient: gives every registrar a voucher, unless a test changes that."""

    def __init__(self, maker: Maker, now: Callable[[], datetime]) -> None:
        self.maker = maker
        self.now = now
        self.asked: list[Asked] = []
        self.change: dict[str, Any] = {}
        """Members of vouchers that shall be others than they should."""
        self.error: Exception | None = None
        self.audit_error: Exception | None = None
        self.events: list[AuditEvent] = []
        """What the audit log has besides the voucher."""
        self.log: bytes | object | None = ...
        """The whole audit log, if it shall be another."""
        self.gate: Callable[[], Awaitable[None]] | None = None
        self.signs: Callable[[bytes], bytes] = lambda data: data

    async def request_voucher(
        self, server: MasaServer, request: bytes, accept: str = VOUCHER_CMS_JSON
    ) -> bytes:
        asked = self._note("requestvoucher", server, request)
        assert accept == VOUCHER_CMS_JSON
        if self.gate is not None:
            await self.gate()
        if self.error is not None:
            raise self.error
        members: dict[str, Any] = {
            "serial_number": asked.request.serial_number,
            "nonce": asked.request.nonce,
            "assertion": Assertion.PROXIMITY,
            "created_on": self.now(),
            "pinned_domain_cert": self._pin(asked).public_bytes(Encoding.DER),
        }
        return self.signs(self.maker.voucher(Voucher(**members | self.change), self.now()))

    async def request_audit_log(self, server: MasaServer, request: bytes) -> bytes | None:
        asked = self._note("requestauditlog", server, request)
        if self.audit_error is not None:
            raise self.audit_error
        if self.log is not ...:
            assert self.log is None or isinstance(self.log, bytes)
            return self.log
        own = AuditEvent(self.now(), domain_id(self._pin(asked)), asked.request.nonce, Assertion.PROXIMITY)
        return AuditLog((own, *self.events)).encode()

    async def close(self) -> None:
        pass

    def count(self, operation: str) -> int:
        """How often it was asked for something."""
        return sum(asked.operation == operation for asked in self.asked)

    @staticmethod
    def _pin(asked: Asked) -> x509.Certificate:
        """The CA right above the registrar, as a real MASA pins."""
        signer = asked.signed.signer
        return next(one for one in asked.signed.certificates if one.subject == signer.issuer)

    def _note(self, operation: str, server: MasaServer, body: bytes) -> Asked:
        signed = open_signed(body)
        asked = Asked(operation, server, body, VoucherRequest.decode(signed.payload), signed)
        self.asked.append(asked)
        return asked


class Bench:
    """A registrar, made by ``init``, and the maker of the devices that come to it."""

    def __init__(
        self, directory: Path, database: str = "", policy: Policy = Policy.ANY, **options: Any
    ) -> None:
        self.now = datetime.now(UTC)
        self.made: Made = initialise(
            DOMAIN, directory / "registrar", directory / "node", now=self.now, database=database
        )
        self.database = database or str(self.made.directory / "registrar.db")
        self.engine = open_database(self.database if database else self.made.directory / "registrar.db")
        self.maker = Maker()
        self.masa = FakeMasa(self.maker, lambda: self.now)
        self.service: ServiceIdentity = load_service(self.made.directory / SERVICE_DIRECTORY)
        self.services = ServiceIdentities(self.service)
        self.authority = BuiltInAuthority(self.made.directory)
        self.journal = Journal(self.engine)
        self.manufacturer = self.add(self.maker, policy=policy, **options)
        self.config = Config()
        self.vouchers = self.voucher_service()
        self.telemetry = TelemetryService(self.engine, clock=lambda: self.now)

    def add(self, maker: Maker, **options: Any) -> manufacturers.Manufacturer:
        """Let the registrar know a maker."""
        with writing(self.engine) as connection:
            return manufacturers.add(connection, maker.name, dump_pem([maker.root]), when=self.now, **options)

    def voucher_service(self, config: Config | None = None, **options: Any) -> VoucherService:
        """One more process of this registrar."""
        return VoucherService(
            self.engine,
            self.services,
            self.masa,  # type: ignore[arg-type]
            config or self.config,
            clock=lambda: self.now,
            **options,
        )

    async def ask(
        self,
        pledge: Pledge,
        body: bytes | None = None,
        *,
        service: VoucherService | None = None,
        **options: Any,
    ) -> bytes:
        """Ask for a voucher as the pledge does."""
        values = {"content_type": VOUCHER_CMS_JSON, "accept": VOUCHER_CMS_JSON, "peer": PEER} | options
        chain = values.pop("chain", pledge.certificates)
        body = pledge.request(self.service.certificate) if body is None else body
        return await (service or self.vouchers).answer(body, chain, **values)

    def asks(self, pledge: Pledge, body: bytes | None = None, **options: Any) -> bytes:
        """The same for a test that has no event loop."""
        return asyncio.run(self.ask(pledge, body, **options))

    def device(self, pledge: Pledge, maker: manufacturers.Manufacturer | None = None) -> Device | None:
        """What the database has of a pledge."""
        with reading(self.engine) as connection:
            return find_device(connection, (maker or self.manufacturer).id, pledge.serial_number)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """All events but those of init: kind and detail."""
        import json

        with reading(self.engine) as connection:
            rows = connection.execute(sa.select(events.c.kind, events.c.detail).order_by(events.c.id)).all()
        return [(kind, json.loads(detail)) for kind, detail in rows if kind != "initialised"]

    def counts(self) -> tuple[int, int, int]:
        """How many devices, vouchers and events there are."""
        with reading(self.engine) as connection:
            return tuple(  # type: ignore[return-value]
                connection.scalar(sa.select(sa.func.count()).select_from(table))
                for table in (devices, vouchers, events)
            )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


HOUR = timedelta(hours=1)
