"""The order in which EST servers are asked, and what is made of a CRL's place."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.brski.pledge.enrolment import Enrolled
from minerva.connect import maintenance
from minerva.connect.ipc import MAX_MESSAGE
from minerva.connect.maintenance import Maintenance, Server
from minerva.connect.state import NodeState
from minerva.pki.ca import CertificateAuthority
from minerva.pki.errors import CrlError
from minerva.pki.identity import Identity

DEAD = (IPv6Address("fd00::dead"), 8443)
GOOD = (IPv6Address("fd00::1"), 8443)
OTHER = (IPv6Address("fd00::2"), 8443)


def issue(authority: CertificateAuthority, now: datetime) -> tuple[Identity, Any]:
    issued = authority.issue(lifetime=timedelta(hours=1), now=now)
    return Identity.from_certificates(issued.certificate, issued.chain, issued.anchors), issued.private_key


class Kept:
    """A Maintenance whose certificate is due, with servers that answer as the test wants."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, last: Server | None = None) -> None:
        self.authority = CertificateAuthority.create("example.com", directory)
        self.asked: list[Server] = []
        self.announced: list[Server] = []
        self.renewed: asyncio.Queue[tuple[Enrolled, Server]] = asyncio.Queue()
        monkeypatch.setattr(maintenance, "FIRST_AGAIN", 0.02)

        async def renew(address: IPv6Address, port: int) -> Enrolled:
            self.asked.append((address, port))
            if (address, port) == DEAD:
                raise ConnectionRefusedError(111, "Connection refused")
            identity, key = issue(self.authority, datetime.now(UTC))
            return Enrolled(identity, key, identity.certificate)

        identity, key = issue(self.authority, datetime.now(UTC) - timedelta(minutes=40))
        self.it = Maintenance(
            identity,
            key,
            servers=lambda: list(self.announced),
            on_renewed=lambda enrolled, server: self.renewed.put_nowait((enrolled, server)),
            on_crl=lambda _: None,
        )
        self.it.last_server = last
        monkeypatch.setattr(self.it, "_renew", renew)

    async def outcome(self) -> Server:
        try:
            async with asyncio.timeout(10):
                _, server = await self.renewed.get()
            return server
        finally:
            self.it.close()


def test_a_server_that_is_dead_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    covers: 6.2.5.1-6
    """

    async def main() -> None:
        kept = Kept(tmp_path / "ca", monkeypatch)
        kept.announced = [DEAD, GOOD]
        assert await kept.outcome() == GOOD
        assert kept.asked == [DEAD, GOOD]
        assert kept.it.last_server == GOOD

    asyncio.run(main())


def test_the_server_that_worked_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is not announced just now; the announced ones come after it.

    covers: 6.2.5-3, 6.2.5.2-1
    """

    async def main() -> None:
        for number, (last, announced) in enumerate(((GOOD, [OTHER, GOOD]), (GOOD, [OTHER]), (GOOD, []))):
            kept = Kept(tmp_path / f"ca{number}", monkeypatch, last)
            kept.announced = announced
            assert await kept.outcome() == GOOD
            assert kept.asked == [GOOD]
        kept = Kept(tmp_path / "ca", monkeypatch, DEAD)
        kept.announced = [OTHER]
        assert await kept.outcome() == OTHER
        assert kept.asked == [DEAD, OTHER]

    asyncio.run(main())


def test_where_the_crl_is_comes_before_what_members_invent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever announces a thousand EST servers that answer slowly keeps nobody from the one that is."""
    monkeypatch.setattr(maintenance, "crl_urls", lambda _: ["http://[fd00::1]:8080/crl", "ldap://x"])

    async def main() -> None:
        kept = Kept(tmp_path / "ca", monkeypatch)
        kept.announced = [*((IPv6Address("fd00::bad"), port) for port in range(1, 1000)), GOOD]
        assert await kept.outcome() == GOOD
        assert kept.asked == [GOOD]

    asyncio.run(main())


def test_a_crl_of_thousands_can_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device may have many certificates that are revoked with it."""
    now = datetime.now(UTC)

    async def main() -> None:
        kept = Kept(tmp_path / "ca", monkeypatch)
        kept.it.close()
        revoked = [(number << 120, now, None) for number in range(1, 20_000)]
        der = kept.authority.make_crl(revoked, 1, lifetime=timedelta(hours=1), now=now)
        assert len(der) > 500_000

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(der) + der)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "::1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setattr(kept.it, "_connect", lambda *_: socket.create_connection(("::1", port)))
            crl = await kept.it._fetch(f"http://[fd00::1]:{port}/crl")
        assert len(crl.serial_numbers) == len(revoked)
        assert len(crl.der) < maintenance.MAX_CRL_BODY < MAX_MESSAGE

    asyncio.run(main())


def test_nobody_there_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the status says what is wrong meanwhile."""

    async def main() -> None:
        kept = Kept(tmp_path / "ca", monkeypatch)
        await asyncio.sleep(0.01)
        assert "SRV.est" in kept.it.status()["problem"]
        kept.announced = [DEAD]
        while "refused" not in (kept.it.status()["problem"] or ""):
            await asyncio.sleep(0.01)
        kept.announced = [GOOD]
        assert await kept.outcome() == GOOD
        assert kept.it.status()["problem"] is None

    asyncio.run(main())


def test_it_is_remembered_across_restarts(tmp_path: Path) -> None:
    """
    covers: 6.2.5-3
    """
    state = NodeState(tmp_path)
    assert state.est_server() == (IPv6Address("::"), 0)
    state.remember_est_server(*GOOD)
    state.close()
    again = NodeState(tmp_path)
    assert again.est_server() == GOOD
    (tmp_path / "est-server").write_text("nonsense")
    assert again.est_server() == (IPv6Address("::"), 0)
    again.close()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://[fd00::1]:8080/crl", (IPv6Address("fd00::1"), 8080, "/crl")),
        ("http://[fd00::1]", (IPv6Address("fd00::1"), 80, "/")),
    ],
)
def test_place_of_a_crl(url: str, place: object) -> None:
    assert maintenance._place(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "http://crl.example/x",
        "https://[fd00::1]/x",
        "http://192.0.2.1/x",
        "http://[fd00::1]:99999/",
        "http://[",
    ],
)
def test_no_place_for_a_crl(url: str) -> None:
    with pytest.raises(CrlError):
        maintenance._place(url)


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_a_crl_that_is_missing_for_a_moment_is_nothing_to_talk_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, patience: float
) -> None:
    """The status has it at once; the log has it later, and once."""
    monkeypatch.setattr(maintenance, "CRL_PATIENCE", patience)
    monkeypatch.setattr(maintenance, "CRL_AGAIN", 0.01)
    monkeypatch.setattr(maintenance, "crl_urls", lambda _: ["http://[fd00::1]:8080/crl"])

    async def work() -> None:
        kept = Kept(tmp_path, monkeypatch)

        async def fetch(_: str) -> Any:
            raise OSError(101, "Network is unreachable")

        monkeypatch.setattr(kept.it, "_fetch", fetch)
        await asyncio.sleep(0.2)
        assert kept.it.status()["crl_problem"] == "http://[fd00::1]:8080/crl: Network is unreachable"
        kept.it.close()

    asyncio.run(work())
    said = [record.getMessage() for record in caplog.records if "no CRL" in record.getMessage()]
    assert said == ([] if patience else ["no CRL: http://[fd00::1]:8080/crl: Network is unreachable"])
