"""A pledge, a registrar and a MASA, each the real one, over TCP and TLS on the loopback interface.

A device becomes a member; and for each reason there is to refuse one, it is refused, and both ends can say
why. The MASA's certificates and those of the registrar are the ones that the commands make.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509

from minerva.brski.database import open_engine
from minerva.brski.masa.app import make_app
from minerva.brski.masa.authority import Authority, create_authority
from minerva.brski.masa.database import Database, Owner
from minerva.brski.masa.factory import make_device
from minerva.brski.masa.service import Masa
from minerva.brski.masa.settings import Settings
from minerva.brski.pledge.attempt import Step, bootstrap, report_enrolled
from minerva.brski.pledge.device import Device, load_device
from minerva.brski.pledge.enrolment import Enrolled
from minerva.brski.pledge.errors import AttemptError
from minerva.brski.pledge.renewal import renew
from minerva.brski.registrar import management, manufacturers
from minerva.brski.registrar.config import Config, Server
from minerva.brski.registrar.database import addresses, certificates, events, open_database, reading, writing
from minerva.brski.registrar.init import initialise
from minerva.brski.registrar.policy import Policy
from minerva.brski.registrar.server import Registrar
from minerva.https.server import make_server_context, serve
from minerva.https.stream import TlsStream
from minerva.pki.certificates import dump_pem
from minerva.pki.identity import Identity
from minerva.pki.keys import generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import make_request
from minerva.tls.context import make_context

HOST = "::1"
SECONDS = 60.0


def clock() -> datetime:
    return datetime.now(UTC)


def listener() -> socket.socket:
    sock = socket.create_server((HOST, 0), family=socket.AF_INET6)
    sock.setblocking(False)
    return sock


class Maker:
    """A manufacturer, whose MASA can be started, stopped and started again at the same place."""

    def __init__(
        self, directory: Path, sales: str = "open", name: str = "Maker", host: str = "[::1]"
    ) -> None:
        self.directory = directory
        self.name = name
        with listener() as sock:
            self.port = sock.getsockname()[1]
        self.settings = Settings(name, f"{host}:{self.port}", "masa.db", sales, crls="never")
        directory.mkdir()
        self.database = Database(open_engine(self.settings.database_at(directory)))
        self.database.create()
        self.authority: Authority = create_authority(directory, self.settings, clock() - timedelta(days=10))
        self.masa = Masa(self.authority, self.database)
        self.now: Callable[[], datetime] = clock

    def device(self, serial_number: str) -> Device:
        where = self.directory / "made" / serial_number
        make_device(self.authority, self.database, serial_number, where, clock() - timedelta(days=5))
        return load_device(where)

    @asynccontextmanager
    async def running(self, identity: Any = None) -> AsyncIterator[None]:
        tls = identity or self.authority.tls
        context = make_server_context(tls.certificate, (), tls.key, client="optional")
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, self.port))
        sock.listen()
        app = make_app(self.masa, self.settings.location.path, now=lambda: self.now())
        async with served(app, sock, context):
            yield


@asynccontextmanager
async def served(app: Any, sock: socket.socket, context: Any) -> AsyncIterator[None]:
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(app, [sock], context, ready=ready.set, stop=stop))
    await ready.wait()
    try:
        yield
    finally:
        stop.set()
        await task


class Domain:
    """A registrar that knows a manufacturer."""

    def __init__(self, directory: Path, maker: Maker, name: str = "acp.example.com", **options: Any) -> None:
        directory.mkdir()
        self.made = initialise(name, directory / "registrar", directory / "node", now=clock())
        self.engine = open_database(self.made.directory / "registrar.db")
        self.address: tuple[str, int] = (HOST, 0)
        self.config = Config(server=Server(address=HOST, port=0, crl_port=0))
        with writing(self.engine) as connection:
            manufacturers.add(
                connection, maker.name, dump_pem(maker.authority.anchors), when=clock(), **options
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        ready, stop = asyncio.Event(), asyncio.Event()

        def serving(address: IPv6Address, port: int, _: int) -> None:
            self.address = (str(address), port)
            ready.set()

        # A process configured with port 0 gets another one each time, as after a restart on another machine.
        registrar = Registrar(
            self.made.directory, self.config, run_dir=self.made.directory, clock=clock, environment={}
        )
        task = asyncio.create_task(registrar.run(stop, serving))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        try:
            yield
        finally:
            stop.set()
            await task

    async def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        return sock

    async def enrol(self, device: Device, **options: Any) -> Enrolled:
        enrolled = await bootstrap(self.connect, device, now=clock, **options)
        await report_enrolled(self.connect, enrolled, on_step=options.get("on_step"))
        return enrolled

    async def fails(self, device: Device) -> str:
        """Try to enrol; return what the pledge says of its failure."""
        before = self.counts()
        with pytest.raises(AttemptError) as caught:
            await self.enrol(device)
        assert self.counts() == before, "a refused device left more than an event"
        return str(caught.value)

    def counts(self) -> tuple[int, int]:
        """How many addresses and certificates there are."""
        with reading(self.engine) as connection:
            return (
                connection.scalar(sa.select(sa.func.count()).select_from(addresses)) or 0,
                connection.scalar(sa.select(sa.func.count()).select_from(certificates)) or 0,
            )

    def said(self) -> str:
        """What the operator can read of the last refusal."""
        with reading(self.engine) as connection:
            found = connection.execute(
                sa.select(events.c.detail).where(events.c.kind == "refused").order_by(events.c.id.desc())
            ).first()
        assert found is not None, "no refusal was written"
        detail = json.loads(found.detail)
        return f"{detail['operation']} {detail['status']} {detail['reason']} {detail.get('detail', '')}"

    def kinds(self) -> list[str]:
        with reading(self.engine) as connection:
            return [row.kind for row in connection.execute(sa.select(events.c.kind).order_by(events.c.id))]

    def identity(self, enrolled: Enrolled) -> Identity:
        return Identity.from_certificates(enrolled.certificate, enrolled.chain, enrolled.anchors)


@dataclass
class World:
    maker: Maker
    domain: Domain


@pytest.fixture
def world(tmp_path: Path) -> World:
    maker = Maker(tmp_path / "maker")
    return World(maker, Domain(tmp_path / "domain", maker))


def run(test: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS):
            await test

    asyncio.run(main())


@asynccontextmanager
async def all_running(*things: Any) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for thing in things:
            await stack.enter_async_context(thing.running())
        yield


def test_a_device_becomes_a_member(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """
    covers: R-70, R-71, R-63, R-60, P-20, P-40, P-46, P-50, P-51, P-60
    """
    caplog.set_level(logging.INFO)
    device = world.maker.device("SN-1")
    steps: list[Step] = []

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            enrolled = await world.domain.enrol(device, on_step=lambda step, _: steps.append(step))
            identity = world.domain.identity(enrolled)
            assert identity.node_name.domain == "acp.example.com"
            again = await world.domain.enrol(device)
            assert world.domain.identity(again).address == identity.address  # after a reset
            assert again.certificate != enrolled.certificate

    run(scenario())
    assert Step.VOUCHER_VERIFIED in steps
    assert Step.ENROLLED in steps
    kinds = world.domain.kinds()
    story = ["voucher", "voucher status", "enrolled", "enrolment status"]
    assert [kind for kind in kinds if kind in story] == story * 2
    assert "refused" not in kinds
    with reading(world.domain.engine) as connection:
        found = list(management.describe_devices(connection))
        log = management.describe_events(connection, "SN-1", count=100)
    assert [one["state"] for one in found] == ["enrolled", "enrolled"]
    assert [event["detail"]["with_its_certificate"] for event in log if event["kind"] == story[3]] == [
        True
    ] * 2
    assert world.domain.counts()[0] == 2  # this device's and the registrar's own node's
    told = [record.getMessage() for record in caplog.records if "SN-1" in record.getMessage()]
    assert len(told) <= 2 * 5


def test_a_member_renews(world: World) -> None:
    """
    covers: R-12, E-6
    """
    device = world.maker.device("SN-1")

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            enrolled = await world.domain.enrol(device)
            identity = world.domain.identity(enrolled)
            context = make_context(enrolled.certificate, enrolled.chain, enrolled.key)
            stream = await TlsStream.client(await world.domain.connect(), context)
            renewed = await renew(stream, identity, now=clock)
            assert world.domain.identity(renewed).address == identity.address
            assert renewed.certificate.public_key() != enrolled.certificate.public_key()

    run(scenario())


def test_one_who_waits_for_the_operator(tmp_path: Path) -> None:
    """The registrar is killed and started again meanwhile; the pledge repeats the same request.

    covers: R-23, P-25
    """
    maker = Maker(tmp_path / "maker")
    domain = Domain(tmp_path / "domain", maker, policy=Policy.APPROVE)
    domain.config = replace(domain.config, pledges=replace(domain.config.pledges, retry_after=1))
    device = maker.device("SN-1")

    async def scenario() -> None:
        async with maker.running():
            waits = asyncio.Event()

            def on_step(step: Step, _: str) -> None:
                if step is Step.WAITING:
                    waits.set()

            async with domain.running():
                task = asyncio.create_task(domain.enrol(device, on_step=on_step))
                await asyncio.wait_for(waits.wait(), 20)
                with writing(domain.engine) as connection:
                    management.approve(connection, "SN-1", None, when=clock())
                assert (await task).certificate

    run(scenario())
    assert domain.kinds().count("waiting") == 1


def test_a_masa_that_is_away_for_a_while(world: World) -> None:
    """
    covers: R-23, P-25
    """
    world.domain.config = replace(
        world.domain.config, pledges=replace(world.domain.config.pledges, retry_after=1)
    )
    device = world.maker.device("SN-1")

    async def scenario() -> None:
        async with world.domain.running():
            waits = asyncio.Event()

            def on_step(step: Step, _: str) -> None:
                if step is Step.WAITING:
                    waits.set()

            task = asyncio.create_task(world.domain.enrol(device, on_step=on_step))
            await asyncio.wait_for(waits.wait(), 20)
            async with world.maker.running():
                assert (await task).certificate

    run(scenario())
    assert world.domain.counts()[0] == 2


class PowerCut(Exception):
    """The device is dead from here on."""


@pytest.mark.parametrize("last", [step for step in Step if step is not Step.WAITING])
def test_a_power_cut_at_any_step(world: World, last: Step) -> None:
    """The device begins anew with a new nonce and key, and is enrolled once: one device, one address.

    covers: R-71
    """
    device = world.maker.device("SN-1")

    def on_step(step: Step, _: str) -> None:
        if step is last:
            raise PowerCut

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            with pytest.raises(PowerCut):
                await world.domain.enrol(device, on_step=on_step)
            assert (await world.domain.enrol(device)).certificate

    run(scenario())
    assert world.domain.counts()[0] == 2
    with reading(world.domain.engine) as connection:
        found = list(management.describe_devices(connection))
    assert [one["state"] for one in found] == ["enrolled"] * 2


@pytest.mark.parametrize("last", [Step.VOUCHER_REQUESTED, Step.VOUCHER_VERIFIED, Step.ATTRIBUTES])
def test_the_registrar_is_killed_and_another_takes_over(world: World, last: Step) -> None:
    """
    covers: R-76
    """
    device = world.maker.device("SN-1")

    async def scenario() -> None:
        async with world.maker.running(), AsyncExitStack() as first:
            await first.enter_async_context(world.domain.running())

            async def on_step(step: Step, _: str) -> None:
                if step is last:
                    await first.aclose()
                    await second.enter_async_context(world.domain.running())

            async with AsyncExitStack() as second:
                try:
                    await bootstrap(world.domain.connect, device, now=clock, on_step=on_step)
                except AttemptError:
                    await world.domain.enrol(device)

    run(scenario())
    assert world.domain.counts()[0] == 2


# Refused


def test_an_unknown_manufacturer(world: World, tmp_path: Path) -> None:
    """
    covers: R-22, R-24
    """
    stranger = Maker(tmp_path / "stranger", name="Stranger")
    device = stranger.device("SN-1")

    async def scenario() -> None:
        async with all_running(world.maker, stranger, world.domain):
            said = await world.domain.fails(device)
            assert "manufacturer that is not known" in said
            assert "403" in world.domain.said()
            assert "Stranger" in world.domain.said()

    run(scenario())


def test_a_wrong_serial_number(world: World) -> None:
    """
    covers: R-20
    """
    device = replace(world.maker.device("SN-1"), serial_number="SN-2")

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            said = await world.domain.fails(device)
            assert "SN-2" in said
            assert "IDevID" in said
            assert "403" in world.domain.said()

    run(scenario())


class Crooked:
    """A MASA application of a maker whose answers a test changes; it keeps the vouchers it gave."""

    def __init__(self, maker: Maker, change: Callable[[bytes, bytes], bytes]) -> None:
        self.maker = maker
        self.given: list[bytes] = []
        self.real = maker.masa
        self.change = change

    def request_voucher(self, data: bytes, *, peer: str, now: datetime) -> bytes:
        voucher = self.real.request_voucher(data, peer=peer, now=now)
        self.given.append(voucher)
        return self.change(data, voucher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def crooked(maker: Maker, change: Callable[[bytes, bytes], bytes]) -> Crooked:
    made = Crooked(maker, change)
    maker.masa = made  # type: ignore[assignment]
    return made


def resigned(maker: Maker, **changes: Any) -> Callable[[bytes, bytes], bytes]:
    """Change what is in the voucher, and sign it as the maker does."""
    from minerva.voucher.cms import open_signed, sign
    from minerva.voucher.model import Voucher

    def change(_: bytes, voucher: bytes) -> bytes:
        found = Voucher.decode(open_signed(voucher).payload)
        signer = maker.authority.signer
        return sign(
            replace(found, **changes).encode(),
            signer.key,
            signer.certificate,
            maker.authority.voucher_chain,
            when=clock(),
        )

    return change


def test_a_replayed_voucher(world: World) -> None:
    """
    covers: R-52, P-42
    """
    device = world.maker.device("SN-1")
    given: list[bytes] = []
    crooked(world.maker, lambda _, voucher: given.append(voucher) or given[0])  # type: ignore[func-returns-value]

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            await world.domain.enrol(device)
            said = await world.domain.fails(device)
            assert "voucher" in said
            assert "nonce" in said
            assert "406" in world.domain.said()

    run(scenario())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nonce": "another nonce"}, "nonce"),
        ({"serial_number": "SN-9"}, "SN-9"),
        ({"nonce": None, "expires_on": datetime(2026, 1, 1, tzinfo=UTC)}, "expired"),
    ],
)
def test_a_voucher_for_something_else(world: World, changes: dict[str, Any], sentence: str) -> None:
    """
    covers: R-52, P-41, P-42, P-43
    """
    device = world.maker.device("SN-1")
    crooked(world.maker, resigned(world.maker, **changes))

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            said = await world.domain.fails(device)
            assert "voucher" in said
            assert sentence in said
            assert sentence in world.domain.said()

    run(scenario())


def test_a_voucher_signed_by_a_stranger(world: World, tmp_path: Path) -> None:
    """
    covers: R-52, P-40
    """
    stranger = Maker(tmp_path / "stranger", name="Stranger")
    device = world.maker.device("SN-1")
    crooked(world.maker, resigned(stranger))

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            said = await world.domain.fails(device)
            assert "voucher" in said
            assert "Stranger" in world.domain.said() or "signer" in world.domain.said()

    run(scenario())


def test_a_voucher_pinned_to_another_domain(world: World) -> None:
    """
    covers: R-52, P-46
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    device = world.maker.device("SN-1")
    pin = world.maker.authority.tls.certificate.public_bytes(Encoding.DER)
    crooked(world.maker, resigned(world.maker, pinned_domain_cert=pin))

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            said = await world.domain.fails(device)
            assert "voucher" in said
            assert "406" in world.domain.said()

    run(scenario())


def test_a_masa_with_a_wrong_tls_certificate(world: World, tmp_path: Path) -> None:
    """
    covers: R-32
    """
    stranger = Maker(tmp_path / "stranger", name="Stranger")
    elsewhere = Maker(tmp_path / "elsewhere", name="Elsewhere", host="masa.example.com")
    device = world.maker.device("SN-1")

    async def scenario() -> None:
        for identity in (stranger.authority.tls, elsewhere.authority.tls):
            async with world.maker.running(identity), world.domain.running():
                said = await world.domain.fails(device)
                assert "manufacturer gives no voucher" in said
                assert "502" in world.domain.said()
                assert "is not trusted" in world.domain.said()

    run(scenario())


def test_a_second_owner(world: World, tmp_path: Path) -> None:
    """
    covers: R-50
    """
    device = world.maker.device("SN-1")
    second = Domain(tmp_path / "second", world.maker, "other.example.com")

    async def scenario() -> None:
        async with all_running(world.maker, world.domain, second):
            await world.domain.enrol(device)
            said = await second.fails(device)
            assert "the manufacturer gives no voucher for SN-1" in said
            assert "403" in second.said()
            world.maker.database.release("SN-1", clock())
            assert (await second.enrol(device)).certificate

    run(scenario())


def test_a_device_that_is_sold_to_another(tmp_path: Path) -> None:
    """
    covers: R-50
    """
    maker = Maker(tmp_path / "maker", sales="listed")
    domain = Domain(tmp_path / "domain", maker)
    device = maker.device("SN-1")

    async def scenario() -> None:
        async with all_running(maker, domain):
            assert "the manufacturer gives no voucher" in await domain.fails(device)
            (root,) = x509.load_pem_x509_certificates(
                (domain.made.directory / "service" / "anchors.pem").read_bytes()
            )
            maker.database.assign("SN-1", Owner.of(root), nonceless=False, now=clock())
            assert (await domain.enrol(device)).certificate

    run(scenario())


def test_a_revoked_device(world: World) -> None:
    """
    covers: R-22, R-73
    """
    device = world.maker.device("SN-1")

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            enrolled = await world.domain.enrol(device)
            with writing(world.domain.engine) as connection:
                management.revoke(connection, "SN-1", None, reason="stolen", when=clock())
            said = await world.domain.fails(device)
            assert "SN-1 is revoked: stolen" in said
            assert "404" in world.domain.said()
            identity = world.domain.identity(enrolled)
            context = make_context(enrolled.certificate, enrolled.chain, enrolled.key)
            stream = await TlsStream.client(await world.domain.connect(), context)
            with pytest.raises(AttemptError, match="revoked"):
                await renew(stream, identity, now=clock)
            assert "revoked" in world.domain.said()

    run(scenario())


@pytest.mark.parametrize("what", ["key", "name"])
def test_a_request_with_another_key_or_name(world: World, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    covers: R-72
    """
    from minerva.brski.pledge import enrolment

    device = world.maker.device("SN-1")

    def other(key: Any, name: AcpNodeName | None, **options: Any) -> bytes:
        if what == "name":
            assert name is not None
            assert name.address is not None
            return make_request(key, replace(name, address=name.address + 2))
        # A request for one key that another one signed.
        der = make_request(key, name, **options)
        signature = make_request(generate_key("p256"), name, **options)
        return der[: -len(signature) // 4] + signature[-len(signature) // 4 :]

    monkeypatch.setattr(enrolment, "make_request", other)

    async def scenario() -> None:
        async with all_running(world.maker, world.domain):
            before = world.domain.counts()
            with pytest.raises(AttemptError) as caught:
                await world.domain.enrol(device)
            assert "400" in str(caught.value) or "request" in str(caught.value)
            assert "simpleenroll 400" in world.domain.said()
            # The address is the device's from /csrattrs on; there is no certificate.
            assert world.domain.counts() == (before[0] + 1, before[1])

    run(scenario())


def test_est_without_a_voucher(world: World) -> None:
    """
    covers: R-73
    """
    device = world.maker.device("SN-1")

    async def scenario() -> None:
        from minerva.https.client import HttpClient

        async with all_running(world.maker, world.domain):
            context = make_context(device.certificate, device.chain, device.key)
            stream = await TlsStream.client(await world.domain.connect(), context)
            client = HttpClient(stream, "registrar")
            answer = await client.request("GET", "/.well-known/est/csrattrs")
            assert answer.status == 403
            assert "got no voucher here" in answer.text()
            assert "403" in world.domain.said()
            await client.close()

    run(scenario())
