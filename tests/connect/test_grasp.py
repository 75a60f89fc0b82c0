"""The sockets' side of GRASP, with TLS in memory and a transport that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from random import Random
from typing import Any

import pytest

from minerva.connect import grasp
from minerva.connect.grasp import GraspRunner, GraspTls, _Secured
from minerva.grasp.engine import GraspEngine
from minerva.pki.ca import CertificateAuthority
from minerva.pki.identity import Identity
from minerva.tls.connection import TlsConnection
from minerva.tls.context import make_context
from minerva.tls.membership import check_peer


class Wire(asyncio.Transport):
    """A transport whose other end is a TLS client in memory."""

    def __init__(self, client: TlsConnection) -> None:
        super().__init__()
        self.client = client
        self.sent: list[bytes] = []
        self.ended: str | None = None

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.sent.append(bytes(data))
        self.client.receive(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.ended = self.ended or "reset"

    def close(self) -> None:
        self.ended = self.ended or "closed"


def tls_of(authority: CertificateAuthority, lifetime: timedelta) -> GraspTls:
    """Return the TLS of a new member."""
    issued = authority.issue(lifetime=lifetime)
    assert issued.private_key is not None
    identity = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)
    return GraspTls(make_context(issued.certificate, issued.chain, issued.private_key), identity)


async def admitted(authority: CertificateAuthority, lifetime: timedelta) -> tuple[_Secured, Wire]:
    """Return a connection that a member, whose certificate is good for ``lifetime``, has opened to us."""
    ours, theirs = tls_of(authority, timedelta(days=9)), tls_of(authority, lifetime)
    engine = GraspEngine(ours.identity.address.address, random=Random(1))
    runner = GraspRunner(engine, ours, on_event=lambda _: None, is_channel=lambda _: False)
    client = TlsConnection(theirs.context, server_side=False)
    wire, secured = Wire(client), _Secured(runner, theirs.identity.address.address, inbound=True)
    secured.connection_made(wire)
    for _ in range(4):
        if data := client.data_to_send():
            feed(secured, data)
        if client.handshake_done and client.member is None:
            check_peer(client, theirs.identity, when=datetime.now(UTC))
    assert secured.number
    return secured, wire


def feed(secured: _Secured, data: bytes) -> None:
    """Let bytes arrive as asyncio would."""
    for start in range(0, len(data), 4096):
        piece = data[start : start + 4096]
        secured.get_buffer(-1)[: len(piece)] = piece
        secured.buffer_updated(len(piece))


def in_loop(test: Callable[[], Any]) -> None:
    """Run a coroutine to its end."""
    asyncio.run(test())


@pytest.fixture
def authority(tmp_path: Any) -> CertificateAuthority:
    """A CA."""
    return CertificateAuthority.create("acp.example.com", tmp_path / "ca")


def test_a_peer_whose_certificate_expires_is_told_nothing_more(
    authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        secured, wire = await admitted(authority, timedelta(days=1))
        assert wire.ended is None

        class Later(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + timedelta(days=2)

        monkeypatch.setattr(grasp, "datetime", Later)
        secured._look_at_expiry()
        assert wire.ended == "reset"
        secured.connection_lost(None)

    in_loop(test)


def test_a_goodbye_is_answered(authority: CertificateAuthority) -> None:
    async def test() -> None:
        secured, wire = await admitted(authority, timedelta(days=1))
        wire.client.close()
        before = len(wire.sent)
        feed(secured, wire.client.data_to_send())
        assert wire.ended == "closed"
        assert len(wire.sent) > before
        secured.connection_lost(None)

    in_loop(test)


def test_who_sends_much_has_to_wait(authority: CertificateAuthority) -> None:
    """Not by how much it sends but by how much work that is."""

    async def test() -> None:
        secured, wire = await admitted(authority, timedelta(days=1))
        rested: list[float] = []
        secured._rest = rested.append  # type: ignore[method-assign]
        wire.client.write(b"\x81\x00" * 1000)  # M_NOOP
        feed(secured, wire.client.data_to_send())
        assert rested[-1] == 0, "a little is free"
        for _ in range(100):
            wire.client.write(b"\x81\x00" * 1000)
            feed(secured, wire.client.data_to_send())
        assert rested[-1] > 0.05
        assert wire.ended is None
        secured.connection_lost(None)

    in_loop(test)


def test_an_address_that_cannot_be_used_yet_is_a_failed_connection(authority: CertificateAuthority) -> None:
    """EADDRNOTAVAIL and the like end the session that wanted the connection, and nothing else."""

    async def test() -> None:
        ours = tls_of(authority, timedelta(days=9))
        engine = GraspEngine(ours.identity.address.address, random=Random(1))
        events: list[Any] = []
        runner = GraspRunner(engine, ours, on_event=events.append, is_channel=lambda _: False)
        engine.call(1, 1, "register_asa", ["x"], asyncio.get_running_loop().time())
        runner.pump()
        locator = [[103, IPv6Address("fd00::1").packed, 6, 7017], 0, None, False]
        arguments = [events[0].result, ["EX1", 2, 6, 1], locator, 0]
        engine.call(1, 2, "request_negotiate", arguments, asyncio.get_running_loop().time())
        runner.pump()
        for _ in range(100):
            if len(events) > 2:
                break
            await asyncio.sleep(0.01)
        codes = {event.code.name for event in events[1:]}
        assert codes == {"sockErrNegRq"}
        runner.close()

    in_loop(test)
