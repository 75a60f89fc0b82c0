"""A device asks for its voucher: what the MASA is asked, what becomes of its answer, who has to wait."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.brski.registrar import manufacturers
from minerva.brski.registrar import vouchers as service_module
from minerva.brski.registrar.config import Audit, Config, Pledges
from minerva.brski.registrar.database import DeviceState, devices, reading, vouchers, writing
from minerva.brski.registrar.devices import change_state, see_device, waive_audit
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.identity import ServiceIdentity
from minerva.brski.registrar.masa_client import (
    MasaAnswerError,
    MasaAwayError,
    MasaRefusedError,
    MasaUntrustedError,
)
from minerva.brski.registrar.policy import Policy
from minerva.brski.registrar.vouchers import is_near
from minerva.pki.idevid import SerialNumberSource, authority_key_identifier_value
from minerva.voucher.audit import AuditEvent
from minerva.voucher.check import check_voucher
from minerva.voucher.model import Assertion
from tests.brski.registrar.makers import MASA, PEER, Bench, Maker, Pledge


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(bench: Bench, pledge: Pledge, *arguments: Any, **options: Any) -> Refusal:
    """Ask, and be refused; nothing has been written."""
    before = bench.counts()
    with pytest.raises(Refusal) as caught:
        bench.asks(pledge, *arguments, **options)
    assert bench.counts() == before
    return caught.value


# What is asked of the MASA


def test_a_device_gets_the_voucher_as_it_came(bench: Bench) -> None:
    """
    covers: R-20, R-50, R-61, R-62
    """
    pledge = bench.maker.device("D-1")
    data = bench.asks(pledge)
    voucher = check_voucher(
        data,
        serial_number="D-1",
        certificate=pledge.certificate,
        anchors=[bench.maker.root],
        nonce="nonce-1",
        when=bench.now,
    )
    assert voucher.assertion is Assertion.PROXIMITY
    device = bench.device(pledge)
    assert device is not None
    assert (device.state, device.audit_ok, device.peer) == (DeviceState.VOUCHERED, True, PEER)
    assert [kind for kind, _ in bench.events()] == ["voucher"]


def test_what_the_registrar_asks(bench: Bench) -> None:
    """
    covers: R-30, R-40, R-41, R-42, R-61
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    bench.asks(pledge, body)
    first, second = bench.masa.asked
    assert (first.operation, second.operation) == ("requestvoucher", "requestauditlog")
    assert first.body == second.body  # the very same bytes
    assert first.server.url == f"https://{MASA}/.well-known/brski"
    assert first.server.anchors == (bench.maker.root,)
    request = first.request
    assert request.created_on is not None
    assert abs(request.created_on - bench.now) < timedelta(seconds=1)
    assert request.nonce == "nonce-1"
    assert request.serial_number == "D-1"
    assert request.assertion is Assertion.PROXIMITY
    assert request.idevid_issuer == authority_key_identifier_value(pledge.certificate)
    assert request.prior_signed_voucher_request == body
    assert request.proximity_registrar_cert is None
    assert b"proximity-registrar-cert" not in first.signed.payload
    assert first.signed.signer == bench.service.certificate
    assert set(first.signed.certificates) == {bench.service.certificate, *bench.service.authorities}


def test_the_operator_can_say_where_the_masa_is(tmp_path: Path) -> None:
    """
    covers: R-31
    """
    bench = Bench(tmp_path, masa_url="https://other.example.com/masa/", masa_anchors_pem="web")
    bench.asks(bench.maker.device("D-1"))
    assert bench.masa.asked[0].server.url == "https://other.example.com/masa"
    assert bench.masa.asked[0].server.anchors == "web"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("masa.example.com", "https://masa.example.com/.well-known/brski"),
        ("masa.example.com:9443", "https://masa.example.com:9443/.well-known/brski"),
        ("https://masa.example.com/brski", "https://masa.example.com/brski"),
        ("http://masa.example.com:8080/x", "https://masa.example.com:8080/x"),
    ],
)
def test_the_masa_url_of_the_idevid(bench: Bench, text: str, url: str) -> None:
    """
    covers: R-30
    """
    bench.asks(bench.maker.device("D-1", masa=text))
    assert bench.masa.asked[0].server.url == url


def test_a_device_that_does_not_say_where_its_masa_is(bench: Bench) -> None:
    """
    covers: R-31
    """
    bench.maker.masa = None
    refusal = refused(bench, bench.maker.device("D-1"))
    assert refusal.status == 403
    assert "where the MASA is" in refusal.reason


# The request of the pledge


def test_media_types(bench: Bench) -> None:
    """
    covers: R-22
    """
    pledge = bench.maker.device("D-1")
    assert refused(bench, pledge, content_type="application/voucher-jws+json").status == 415
    assert refused(bench, pledge, content_type="").status == 415
    assert refused(bench, pledge, accept="application/voucher-jws+json").status == 406
    assert refused(bench, pledge, accept="application/voucher-cms+json;q=0").status == 406
    for accept in ("", "*/*", "text/html, application/*;q=0.1", "application/voucher-cms+json; q=0.5"):
        assert bench.asks(pledge, accept=accept)


def test_an_unknown_format(bench: Bench) -> None:
    """
    covers: R-22
    """
    pledge = bench.maker.device("D-1")
    for body in (b"", b"{}", b"\x30\x03\x02\x01\x00", b"garbage" * 100, b"\xd2\x84"):
        assert refused(bench, pledge, body).status == 406


def test_a_request_that_somebody_else_signed(bench: Bench) -> None:
    """
    covers: R-20
    """
    pledge, other = bench.maker.device("D-1"), bench.maker.device("D-1")
    refusal = refused(bench, pledge, other.request(bench.service.certificate))
    assert refusal.status == 403
    assert "not signed by the key" in refusal.reason
    body = bytearray(pledge.request(bench.service.certificate))
    body[-1] ^= 1
    assert refused(bench, pledge, bytes(body)).status == 403


def test_the_serial_number_is_that_of_the_idevid_and_not_what_is_claimed(bench: Bench) -> None:
    """
    covers: R-20
    """
    pledge = bench.maker.device("D-1")
    refusal = refused(bench, pledge, pledge.request(bench.service.certificate, serial_number="D-2"))
    assert refusal.status == 403
    assert "D-2" in refusal.reason
    assert "D-1" in refusal.reason


def test_somebody_in_the_middle(bench: Bench) -> None:
    """
    covers: R-21
    """
    pledge = bench.maker.device("D-1")
    foreign = bench.maker.signer
    for body in (
        pledge.request(foreign),
        pledge.request(None),
        pledge.request(bench.service.certificate, assertion=None),
        pledge.request(bench.service.certificate, assertion=Assertion.LOGGED),
        # Our CA's is not ours.
        pledge.request(bench.service.authorities[0]),
    ):
        refusal = refused(bench, pledge, body)
        assert (refusal.status, refusal.close) == (401, True)
    assert bench.masa.asked == []


def test_a_request_without_a_nonce(bench: Bench) -> None:
    """
    covers: R-43
    """
    pledge = bench.maker.device("D-1")
    assert refused(bench, pledge, pledge.request(bench.service.certificate, None)).status == 403


def test_who_began_with_our_last_certificate_goes_on_with_it(bench: Bench) -> None:
    """
    covers: R-76
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    issuing = bench.authority.issuer(next(iter(bench_issuing(bench))))
    from minerva.pki.keys import generate_key
    from minerva.pki.node_name import AcpNodeName, AddressField
    from minerva.tls.membership import ID_KP_CMC_RA

    key = generate_key("p256")
    certificate = issuing.certify(
        key.public_key(),
        AcpNodeName("acp.example.com", address_field=AddressField.OMITTED),
        lifetime=timedelta(days=1),
        now=bench.now,
        usages=(ID_KP_CMC_RA,),
    )
    fresh = ServiceIdentity(certificate, bench.service.chain, bench.service.anchors, key)
    bench.services.replace(fresh)
    bench.services.replace(fresh)
    assert bench.asks(pledge, body)
    assert bench.masa.asked[0].signed.signer == bench.service.certificate
    assert bench.asks(pledge, pledge.request(certificate, "nonce-2"))
    assert bench.masa.asked[-1].signed.signer == certificate


def bench_issuing(bench: Bench) -> set[str]:
    """The key identifier of the issuing CA."""
    from minerva.brski.registrar.authority import key_identifier

    return {key_identifier(bench.service.chain[0])}


# Whose devices


def test_a_stranger(bench: Bench) -> None:
    """
    covers: R-10, R-22, R-24
    """
    stranger = Maker("Stranger").device("D-1")
    refusal = refused(bench, stranger)
    assert refusal.status == 403
    assert "not known here" in refusal.reason
    assert refusal.detail == "issued by CN=Stranger Root"
    impostor = Maker("Maker").device("D-1")  # the same names, another key
    assert "our CA of that name" in refused(bench, impostor).reason
    assert refused(bench, stranger, chain=()).status == 403


def test_an_expired_idevid(tmp_path: Path) -> None:
    """
    covers: R-11
    """
    bench = Bench(tmp_path)
    old = bench.maker.device("D-1", not_after=bench.now - timedelta(days=1))
    refusal = refused(bench, old)
    assert refusal.status == 403
    assert "expired" in refusal.reason
    with writing(bench.engine) as connection:
        manufacturers.change(connection, "Maker", ignore_expiry=True)
    assert bench.asks(old)


def test_a_serial_number_in_another_place(tmp_path: Path) -> None:
    """
    covers: R-11
    """
    bench = Bench(tmp_path, serial_source=SerialNumberSource.COMMON_NAME)
    assert "common-name" in refused(bench, bench.maker.device("D-1")).reason


@pytest.mark.parametrize(
    ("serial_number", "sentence"), [("D\x00\x1b", "characters to be seen"), ("D" * 64, None), ("", "serial")]
)
def test_serial_numbers_of_no_use(bench: Bench, serial_number: str, sentence: str | None) -> None:
    pledge = bench.maker.device(serial_number or "x")
    if not serial_number:
        pledge = Pledge("", bench.maker.signer, bench.maker.signer_key)
    if sentence is None:
        assert bench.asks(pledge)
    else:
        refusal = refused(bench, pledge, b"never read")
        assert refusal.status == 403
        assert sentence in refusal.reason


def test_an_open_registrar_learns_of_manufacturers(bench: Bench) -> None:
    """
    covers: R-24
    """
    stranger = Maker("Stranger")
    pledge = stranger.device("S-1")
    pledge.chain = (stranger.root,)
    body = pledge.request(bench.service.certificate)
    assert refused(bench, pledge, body).status == 403
    service = bench.voucher_service(Config(pledges=Pledges(open=True)))
    bench.masa.error = MasaUntrustedError("the MASA is not trusted")
    assert refused(bench, pledge, body, service=service).status == 502  # and nothing was learnt
    bench.masa.maker, bench.masa.error = stranger, None
    assert bench.asks(pledge, body, service=service)
    assert {asked.server.anchors for asked in bench.masa.asked} == {"web"}  # not what the stranger brought
    assert [kind for kind, _ in bench.events()].count("manufacturer learnt") == 1
    another = stranger.device("S-2")
    another.chain = (stranger.root,)
    assert bench.asks(another, service=service)
    with reading(bench.engine) as connection:
        names = [one.name for one in manufacturers.load_all(connection)]
    assert len(names) == 2
    alone = Maker("Other").device("O-1")
    assert refused(bench, alone, service=service).status == 403


def test_an_open_registrar_learns_of_so_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    covers: R-24
    """
    monkeypatch.setattr(manufacturers, "MAX_LEARNT", 1)
    service = bench.voucher_service(Config(pledges=Pledges(open=True)))
    for number in range(2):
        stranger = Maker(f"Stranger {number}")
        pledge = stranger.device("S-1")
        pledge.chain = (stranger.root,)
        bench.masa.maker = stranger
        if number == 0:
            assert bench.asks(pledge, service=service)
        else:
            assert refused(bench, pledge, service=service).status == 403


# Which devices


def test_policies(tmp_path: Path) -> None:
    """
    covers: R-22, R-23
    """
    bench = Bench(tmp_path, policy=Policy.LISTED)
    pledge = bench.maker.device("D-1")
    assert refused(bench, pledge).status == 404
    with writing(bench.engine) as connection:
        see_device(connection, bench.manufacturer.id, "D-1", when=bench.now, state=DeviceState.APPROVED)
    assert bench.asks(pledge)
    with writing(bench.engine) as connection:
        manufacturers.change(connection, "Maker", policy=Policy.APPROVE)
    assert bench.asks(pledge)  # it was let in once
    assert bench.asks(pledge, pledge.request(bench.service.certificate, "nonce-2"))


@pytest.mark.parametrize("state", [DeviceState.DENIED, DeviceState.REVOKED])
def test_devices_that_are_shut_out(bench: Bench, state: DeviceState) -> None:
    """
    covers: R-22
    """
    pledge = bench.maker.device("D-1")
    bench.asks(pledge)
    with writing(bench.engine) as connection:
        device = see_device(connection, bench.manufacturer.id, "D-1", when=bench.now)
        change_state(connection, device, state, reason="stolen")
    refusal = refused(bench, pledge)
    assert refusal.status == 404
    assert refusal.reason == f"the device D-1 is {state.value}: stolen"
    assert refusal.device_id is not None


def test_one_that_waits_for_the_operator(tmp_path: Path) -> None:
    """The state survives a restart, and another process sees it.

    covers: R-23, R-51
    """
    bench = Bench(tmp_path, policy=Policy.APPROVE)
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            bench.asks(pledge, body)
        assert (caught.value.status, caught.value.retry_after) == (202, 10)
    assert bench.masa.asked == []
    device = bench.device(pledge)
    assert device is not None
    assert (device.state, device.peer) == (DeviceState.WAITING, PEER)
    assert [kind for kind, _ in bench.events()] == ["waiting"]
    with writing(bench.engine) as connection:
        locked = see_device(connection, bench.manufacturer.id, "D-1", when=bench.now)
        change_state(connection, locked, DeviceState.APPROVED)
    assert bench.asks(pledge, body, service=bench.voucher_service())


# One request after the other


def test_who_waits_is_not_written_down_each_time(tmp_path: Path) -> None:
    """A device that asks without end would have the disk turn for each time."""
    bench = Bench(tmp_path, policy=Policy.APPROVE)
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    seen = []
    for seconds in (0, 1, 3, 2):
        bench.now += timedelta(seconds=seconds)
        with pytest.raises(Refusal) as caught:
            bench.asks(pledge, body)
        assert caught.value.status == 202
        device = bench.device(pledge)
        assert device is not None
        assert device.last_seen is not None
        seen.append(bench.now - device.last_seen)
    assert seen == [timedelta(0), timedelta(seconds=1), timedelta(seconds=4), timedelta(0)]


def test_the_same_request_again_is_answered_from_the_database(bench: Bench) -> None:
    """
    covers: R-51
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    first = bench.asks(pledge, body)
    assert bench.asks(pledge, body) == first
    assert bench.asks(pledge, body, service=bench.voucher_service()) == first
    assert bench.masa.count("requestvoucher") == 1
    assert bench.asks(pledge, pledge.request(bench.service.certificate, "nonce-2")) != first
    assert bench.masa.count("requestvoucher") == 2


def test_one_pledge_causes_one_request_at_a_time(bench: Bench) -> None:
    """
    covers: R-23, R-51
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)

    async def scenario() -> None:
        gate = asyncio.Event()
        bench.masa.gate = lambda: wait_for(gate)
        service = bench.voucher_service(patience=0.1)
        waiting = [asyncio.create_task(bench.ask(pledge, body, service=service)) for _ in range(5)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [result.status for result in results if isinstance(result, Refusal)] == [202] * 5
        gate.set()
        # What was asked for goes on; the pledge comes again.
        first = await bench.ask(pledge, body, service=service)
        assert await bench.ask(pledge, body, service=service) == first
        assert bench.masa.count("requestvoucher") == 1
        await service.close()

    asyncio.run(scenario())


def test_one_pledge_may_wait_for_so_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a nonce for each request it would else take all places while a MASA is slow."""
    monkeypatch.setattr(service_module, "MAX_UNDER_WAY_PER_DEVICE", 2)
    pledge, other = bench.maker.device("D-1"), bench.maker.device("D-2")

    async def scenario() -> None:
        gate = asyncio.Event()
        bench.masa.gate = lambda: wait_for(gate)
        service = bench.voucher_service(patience=0.05)

        async def ask(whose: Pledge, nonce: str) -> int:
            body = whose.request(bench.service.certificate, nonce)
            try:
                await bench.ask(whose, body, service=service)
            except Refusal as refusal:
                return refusal.status
            return 200

        assert [await ask(pledge, f"nonce-{number}") for number in range(4)] == [202, 202, 503, 503]
        assert await ask(pledge, "nonce-0") == 202
        assert await ask(other, "nonce-0") == 202
        gate.set()
        assert await ask(pledge, "nonce-0") == 200
        await service.close()

    asyncio.run(scenario())


def test_so_many_vouchers_are_made_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device asks with a new nonce as often as it likes: it must not fill the disk."""
    monkeypatch.setattr(service_module, "MAX_VOUCHERS", 4)
    monkeypatch.setattr(
        service_module,
        "_LAST_KEPT",
        service_module._LAST_KEPT.offset(None).offset(service_module.MAX_VOUCHERS),
    )
    pledge = bench.maker.device("D-1")
    bodies = [pledge.request(bench.service.certificate, f"nonce-{number}") for number in range(6)]
    first = bench.asks(pledge, bodies[0])
    for body in bodies[1:4]:
        bench.asks(pledge, body)
    refusal = refused(bench, pledge, bodies[4])
    assert (refusal.status, refusal.retry_after) == (503, 60)
    assert bench.asks(pledge, bodies[0]) == first
    bench.asks(bench.maker.device("D-2"))
    bench.now += timedelta(hours=1, seconds=1)
    for body in bodies[4:]:
        bench.asks(pledge, body)
    with reading(bench.engine) as connection:
        nonces = connection.scalars(
            sa.select(vouchers.c.nonce)
            .join(devices)
            .where(devices.c.serial_number == "D-1")
            .order_by(vouchers.c.id)
        ).all()
    assert nonces == [f"nonce-{number}" for number in range(2, 6)]


async def wait_for(gate: asyncio.Event) -> None:
    await gate.wait()


def test_a_pledge_that_goes_away_leaves_its_voucher_here(bench: Bench) -> None:
    """
    covers: R-51
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)

    async def scenario() -> None:
        gate = asyncio.Event()
        bench.masa.gate = lambda: wait_for(gate)
        task = asyncio.create_task(bench.ask(pledge, body))
        while not bench.masa.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.set()
        assert await bench.ask(pledge, body)
        assert bench.masa.count("requestvoucher") == 1

    asyncio.run(scenario())


# What the MASA does


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MasaAwayError("the MASA m: no route"), 202),
        (MasaAwayError("the MASA m cannot answer now (503)", 3600.0), 202),
        (MasaUntrustedError("the MASA m is not trusted: its certificate has expired"), 502),
        (MasaAnswerError("the MASA m answered with 302"), 502),
        (MasaRefusedError("the MASA m refuses (403): it is another's", 403, "it is another's"), 403),
        (MasaRefusedError("the MASA m refuses (404): unknown", 404, "unknown"), 404),
        (MasaRefusedError("the MASA m refuses (406)", 406, ""), 406),
        (MasaRefusedError("the MASA m wants to know who we are (401)", 401, ""), 502),
    ],
)
@pytest.mark.parametrize("when", ["voucher", "audit"])
def test_a_masa_that_gives_nothing(bench: Bench, error: Any, status: int, when: str) -> None:
    """
    covers: R-23, R-32, R-50
    """
    setattr(bench.masa, "error" if when == "voucher" else "audit_error", error)
    pledge = bench.maker.device("D-1")
    refusal = refused(bench, pledge)
    assert refusal.status == status
    assert refusal.detail == str(error)
    if status == 202:
        assert refusal.retry_after in (10, 60)
    if error.__class__ is MasaRefusedError and error.text:
        assert error.text in refusal.reason
    bench.masa.error = bench.masa.audit_error = None
    assert bench.asks(pledge)  # it comes again, and all is well


def test_a_masa_that_is_away_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """However many devices wait for it, and how often they ask."""
    caplog.set_level(logging.INFO)
    pledges = [bench.maker.device("D-1"), bench.maker.device("D-2")]
    bench.masa.error = MasaAwayError("the MASA m: no route")
    for pledge in pledges * 2:
        refused(bench, pledge)
    bench.masa.error = None
    for pledge in pledges:
        assert bench.asks(pledge)
    said = [record.getMessage() for record in caplog.records if "the MASA" in record.getMessage()]
    assert said[0] == "the MASA m: no route: its devices have to wait"
    assert len(said) == 2
    assert said[1].endswith("answers again")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"serial_number": "D-2"}, "D-2"),
        ({"nonce": None, "expires_on": "past"}, "expired"),
        ({"pinned_domain_cert": "stranger"}, "registrar"),
    ],
)
def test_vouchers_that_no_pledge_would_accept_are_not_passed_on(
    bench: Bench, change: dict[str, Any], sentence: str
) -> None:
    """
    covers: R-50, R-52
    """
    values = dict(change)
    if "expires_on" in values:
        values["expires_on"] = bench.now - timedelta(minutes=1)
    if "pinned_domain_cert" in values:
        values["pinned_domain_cert"] = Maker("Stranger").root.public_bytes(Encoding.DER)
    bench.masa.change = values
    refusal = refused(bench, bench.maker.device("D-1"))
    assert refusal.status == 406
    assert sentence in refusal.reason.lower() or sentence in refusal.reason
    assert bench.masa.count("requestauditlog") == 0


def test_a_voucher_signed_by_a_stranger(bench: Bench) -> None:
    """
    covers: R-52
    """
    stranger = Maker("Stranger")
    bench.masa.maker = stranger
    refusal = refused(bench, bench.maker.device("D-1"))
    assert refusal.status == 406
    bench.masa.maker = bench.maker
    bench.masa.signs = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    assert refused(bench, bench.maker.device("D-1")).status == 406
    bench.masa.signs = lambda _: b"<html>"
    assert refused(bench, bench.maker.device("D-1")).status == 406


def test_a_voucher_may_pin_any_of_ours(bench: Bench) -> None:
    """
    covers: R-52
    """
    for number, pin in enumerate([bench.service.certificate, *bench.service.authorities]):
        bench.masa.change = {"pinned_domain_cert": pin.public_bytes(Encoding.DER)}
        assert bench.asks(bench.maker.device(f"D-{number}"))


# The history


def test_a_device_with_a_bad_history_is_shut_out(bench: Bench) -> None:
    """
    covers: R-52, R-62, R-73
    """
    bench.masa.events = [AuditEvent(bench.now, b"x" * 20, None, Assertion.LOGGED)]
    pledge = bench.maker.device("D-1")
    with pytest.raises(Refusal) as caught:
        bench.asks(pledge)
    assert caught.value.status == 406
    assert caught.value.detail is not None
    assert "without a nonce" in caught.value.detail
    device = bench.device(pledge)
    assert device is not None
    assert device.audit_ok is False
    assert device.reason == caught.value.detail
    assert bench.counts()[1] == 0  # no voucher that could be had later
    assert [kind for kind, _ in bench.events()] == ["history"]
    # The operator knows better.
    with writing(bench.engine) as connection:
        waive_audit(connection, device.id)
    assert bench.asks(pledge)
    again = bench.device(pledge)
    assert again is not None
    assert again.audit_ok is True


def test_what_the_operator_should_know_of_a_history_is_told(bench: Bench) -> None:
    """
    covers: R-62
    """
    bench.masa.events = [AuditEvent(bench.now, b"x" * 20, "n", Assertion.LOGGED)]
    bench.asks(bench.maker.device("D-1"))
    ((_, detail),) = bench.events()
    assert "other domains" in detail["history"]


def test_a_masa_without_audit_log(bench: Bench) -> None:
    """
    covers: R-61, R-62
    """
    bench.masa.log = None
    with pytest.raises(Refusal) as caught:
        bench.asks(bench.maker.device("D-1"))
    assert caught.value.status == 406
    service = bench.voucher_service(Config(audit=Audit(unknown="accept")))
    assert bench.asks(bench.maker.device("D-2"), service=service)


# Whence it comes


def test_whether_it_came_through_the_acp_is_recorded(bench: Bench) -> None:
    """
    covers: R-25
    """
    address = str(bench.made.address)
    assert is_near(address, bench.service.certificate)
    assert not is_near("fd00::1", bench.service.certificate)
    assert not is_near("2001:db8::1", bench.service.certificate)
    assert not is_near(None, bench.service.certificate)
    assert not is_near("fe80::1%eth0", bench.service.certificate)
    assert not is_near(address, bench.maker.root)
    bench.asks(bench.maker.device("D-1"), peer=address)
    bench.asks(bench.maker.device("D-2"), peer="2001:db8::1")
    assert [detail["near"] for _, detail in bench.events()] == [True, False]


def test_an_operator_who_is_faster_than_the_masa(bench: Bench) -> None:
    """
    covers: R-22
    """
    pledge = bench.maker.device("D-1")
    bench.asks(pledge)

    async def deny() -> None:
        with writing(bench.engine) as connection:
            device = see_device(connection, bench.manufacturer.id, "D-1", when=bench.now)
            change_state(connection, device, DeviceState.DENIED, reason="stolen")

    bench.masa.gate = deny
    with pytest.raises(Refusal) as caught:
        bench.asks(pledge, pledge.request(bench.service.certificate, "nonce-2"))
    assert caught.value.status == 404
    assert bench.counts()[1] == 1
