"""Registrars whose certificates were revoked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from minerva.brski.masa import revocation
from minerva.brski.masa.errors import Refusal
from minerva.brski.masa.revocation import KEPT_FOR, RETRY_AFTER, RevocationChecker, fetch_crl
from minerva.brski.masa.service import Masa
from minerva.brski.masa.settings import Crls
from minerva.core.errors import MinervaError
from minerva.pki.errors import CrlError
from tests.brski.masa.world import NOW, REGISTRAR_USAGES, Domain, Maker, new_nonce

URL = "http://crl.example.com/crl"


class Server:
    """What stands in for a server of CRLs."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self.answer = answer
        self.asked = 0

    def __call__(self, url: str) -> bytes:
        assert url == URL
        self.asked += 1
        return self.answer()


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """A domain whose registrar's certificate says where the CRL is."""
    made = Domain("acp.example.com", tmp_path / "domain")
    made.registrar = made.issuing.certify(
        made.key.public_key(),
        None,
        lifetime=timedelta(days=30),
        now=NOW - timedelta(days=5),
        usages=REGISTRAR_USAGES,
        crl_urls=[URL, "ldap://ldap.example.com/x", "http://[::1"],
        subject="registrar",
    )
    return made


def crl_of(domain: Domain, *revoked: x509.Certificate, number: int = 1, now: datetime = NOW) -> bytes:
    entries = [(each.serial_number, now, None) for each in revoked]
    return domain.issuing.make_crl(entries, number, lifetime=timedelta(hours=1), now=now)


def fail() -> bytes:
    raise CrlError("no answer")


def masa(maker: Maker, policy: Crls, server: Server) -> None:
    maker.masa = Masa(maker.authority, maker.database, RevocationChecker(policy, server))


def test_a_revoked_registrar(maker: Maker, domain: Domain) -> None:
    """covers: M-3, M-12"""
    device = maker.device()
    server = Server(lambda: crl_of(domain))
    masa(maker, Crls.REACHABLE, server)
    for _ in range(3):
        nonce = new_nonce()
        assert device.check(maker.ask(domain.request(device.serial_number, nonce)), nonce)
    assert server.asked == 1
    later = NOW + KEPT_FOR
    server.answer = lambda: crl_of(domain, domain.registrar, number=2, now=later)
    request = domain.request(device.serial_number, new_nonce(), when=later)
    with pytest.raises(Refusal, match="revoked") as caught:
        maker.ask(request, later)
    assert caught.value.status == 403
    server.answer = fail
    with pytest.raises(Refusal, match="revoked"):
        maker.ask(request, later + KEPT_FOR)


@pytest.mark.parametrize("answer", [fail, lambda: b"", lambda: b"x" * 100])
def test_a_crl_that_cannot_be_had(maker: Maker, domain: Domain, answer: Callable[[], bytes]) -> None:
    """covers: M-3"""
    device, nonce = maker.device(), new_nonce()
    server = Server(answer)
    request = domain.request(device.serial_number, nonce)
    masa(maker, Crls.ALWAYS, server)
    with pytest.raises(Refusal, match="cannot be had"):
        maker.ask(request)
    assert server.asked == 1
    masa(maker, Crls.REACHABLE, server)
    assert device.check(maker.ask(request), nonce)
    assert server.asked == 2
    maker.ask(domain.request(device.serial_number, new_nonce()))
    assert server.asked == 2
    maker.ask(domain.request(device.serial_number, new_nonce()), NOW + RETRY_AFTER)
    assert server.asked == 3
    masa(maker, Crls.NEVER, server)
    maker.ask(domain.request(device.serial_number, new_nonce()))
    assert server.asked == 3


def test_a_crl_of_somebody_else(maker: Maker, domain: Domain, other: Domain) -> None:
    device, nonce = maker.device(), new_nonce()
    masa(maker, Crls.REACHABLE, Server(lambda: crl_of(other, domain.registrar)))
    assert device.check(maker.ask(domain.request(device.serial_number, nonce)), nonce)


def test_a_voucher_ends_with_the_crl(tmp_path: Path, domain: Domain) -> None:
    """covers: M-11"""
    maker = Maker.create(tmp_path / "masa", voucher_lifetime=86400)
    device = maker.device()
    maker.database.assign(device.serial_number, domain.owner, nonceless=True, now=NOW)
    masa(maker, Crls.REACHABLE, Server(lambda: crl_of(domain)))
    voucher = device.check(maker.ask(domain.request(device.serial_number, None)), None)
    assert voucher.expires_on == NOW + timedelta(hours=1)
    maker.close()


def test_a_slow_server_keeps_nobody_else_waiting(domain: Domain) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        assert go_on.wait(20)
        return crl_of(domain, domain.registrar)

    checker = RevocationChecker(Crls.REACHABLE, Server(slow))
    path = (domain.registrar, domain.issuing.certificate)
    outcome: list[Exception] = []

    def check() -> None:
        try:
            checker.check(path, NOW)
        except Refusal as refusal:
            outcome.append(refusal)

    thread = threading.Thread(target=check)
    thread.start()
    assert asked.wait(20)
    assert checker.check(path, NOW) is None
    go_on.set()
    thread.join(20)
    assert "revoked" in str(outcome[0])


def test_only_public_addresses_are_asked() -> None:
    for url in ("http://127.0.0.1/", "http://[fd00::1]/crl", "http://10.0.0.1:8080/x", "http://localhost/"):
        with pytest.raises(MinervaError, match="public address"):
            fetch_crl(url)


def test_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    class AnyAddress:
        is_global = True

    monkeypatch.setattr(revocation, "ip_address", lambda _: AnyAddress())
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ncrl",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"",
    ]
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            sock, _ = listener.accept()
            with sock:
                heard.append(sock.recv(4096))
                sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a?b"
        assert fetch_crl(url) == b"crl"
        for _ in range(2):
            with pytest.raises(MinervaError):
                fetch_crl(url)
        thread.join(20)
    assert heard[0].startswith(b"GET /a?b HTTP/1.1\r\n")
    with pytest.raises(MinervaError):
        fetch_crl(url)


def test_fetching_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "FETCH_SECONDS", 0.2)

    class AnyAddress:
        is_global = True

    monkeypatch.setattr(revocation, "ip_address", lambda _: AnyAddress())
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(MinervaError):
        fetch_crl(f"http://127.0.0.1:{listener.getsockname()[1]}/")
