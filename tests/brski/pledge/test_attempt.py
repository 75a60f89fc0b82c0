"""One attempt, with a registrar that does what it should, and with many that do not."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minerva.brski.pledge import attempt as module
from minerva.brski.pledge import enrolment
from minerva.brski.pledge import session as session_module
from minerva.brski.pledge.attempt import Policy, Step, bootstrap, report_enrolled
from minerva.brski.pledge.enrolment import patiently
from minerva.brski.pledge.errors import AttemptError, RefusedError, UntrustedError
from minerva.est.bodies import decode_base64
from minerva.https.client import Response
from minerva.pki.idevid import authority_key_identifier_value
from minerva.pki.request import load_request
from minerva.tls.context import make_context
from minerva.voucher.cms import open_signed
from minerva.voucher.model import Assertion
from tests.brski.pledge.world import (
    DEVICE,
    DROP,
    ISSUING,
    MAKER,
    NODE_NAME,
    NOW,
    REGISTRAR,
    ROOT,
    SERIAL,
    STRANGER,
    VALID,
    Answer,
    Asked,
    Registrar,
    altered,
    clock,
    enrol,
    fail,
    idevid,
    make_voucher,
    not_yet,
    registrar_certificate,
    request_of,
    signed,
)
from tests.https.ends import dial, listener, run
from tests.pki.certs import _make, key, subject

ALL = ["requestvoucher", "voucher_status", "cacerts", "csrattrs", "simpleenroll"]


# --- when all goes well ------------------------------------------------------------------------------------


def test_from_nothing_to_a_member() -> None:
    """covers: P-20, P-21, P-23, P-40, P-46, P-50, P-60, P-61, E-1, E-4, E-5, E-7"""
    registrar = Registrar()
    steps: list[Step] = []
    enrolled = enrol(registrar, on_step=lambda step, _: steps.append(step))
    assert registrar.operations() == ALL
    assert steps == [
        Step.CONNECTING,
        Step.VOUCHER_REQUESTED,
        Step.VOUCHER_VERIFIED,
        Step.CA_CERTIFICATES,
        Step.ATTRIBUTES,
        Step.REQUESTED,
        Step.ENROLLED,
    ]
    assert registrar.connections == 1, "all over the connection that the voucher is about"
    assert registrar.asked[0].chain[0] == DEVICE.certificate
    assert enrolled.identity.node_name == NODE_NAME
    assert enrolled.certificate.public_key() == enrolled.key.public_key()
    assert enrolled.chain == (ISSUING.certificate,)
    assert enrolled.anchors == (ROOT.certificate,)
    assert enrolled.registrar == REGISTRAR
    assert registrar.statuses("voucher_status")[0].status is True
    assert "PRIVATE" not in repr(enrolled)


def test_what_the_voucher_request_says() -> None:
    """covers: P-3, P-15, P-30, P-31, P-32, P-33"""
    registrar = Registrar()
    enrol(registrar)
    (asked,) = registrar.of("requestvoucher")
    assert asked.method == "POST"
    assert asked.target == "/.well-known/brski/requestvoucher"
    assert asked.headers["content-type"] == "application/voucher-cms+json"
    assert asked.headers["accept"] == "application/voucher-cms+json"
    assert asked.body[0] == 0x30, "DER, and no base64"
    opened = open_signed(asked.body)
    assert opened.signer == DEVICE.certificate
    members = json.loads(opened.payload)["ietf-voucher-request:voucher"]
    assert set(members) == {
        "assertion",
        "created-on",
        "serial-number",
        "nonce",
        "proximity-registrar-cert",
    }
    request = request_of(asked)
    assert request.assertion is Assertion.PROXIMITY
    assert request.serial_number == SERIAL
    assert request.proximity_registrar_cert == REGISTRAR.public_bytes(Encoding.DER)
    assert request.created_on is not None
    assert request.created_on.microsecond == 0
    assert abs(request.created_on - clock()) < timedelta(minutes=1)


def test_without_a_clock_it_says_no_time() -> None:
    """covers: P-31, P-43"""
    registrar = Registrar(certificate=registrar_certificate(end=NOW - timedelta(hours=1)))
    enrol(registrar, now=lambda: None)
    assert request_of(registrar.asked[0]).created_on is None
    assert open_signed(registrar.asked[0].body).signing_time is None


def test_each_attempt_has_its_own_nonce_and_key() -> None:
    """covers: P-15"""
    registrar = Registrar()
    results = [enrol(registrar) for _ in range(3)]
    nonces = {request_of(asked).nonce for asked in registrar.of("requestvoucher")}
    assert len(nonces) == 3
    assert all(nonce and len(nonce) == 24 for nonce in nonces)
    assert len({enrolled.certificate.public_bytes(Encoding.DER) for enrolled in results}) == 3
    keys = {decode_base64(asked.body) for asked in registrar.of("simpleenroll")}
    assert len({load_request(request).public_key.public_numbers() for request in keys}) == 3  # type: ignore[union-attr]


def test_no_server_name_is_asked_for() -> None:
    """covers: P-21"""
    names: list[Any] = []
    context = make_context(REGISTRAR, ISSUING.chain, key("p256/registrar"))
    context.set_tlsext_servername_callback(lambda connection: names.append(connection.get_servername()))
    enrol(Registrar(contexts=[context]))
    assert names in ([], [None])


def test_openssl_agrees_on_the_requests(tmp_path: Path) -> None:
    """covers: P-30, CM-1"""
    registrar = Registrar()
    enrol(registrar)
    (tmp_path / "request.cms").write_bytes(registrar.of("requestvoucher")[0].body)
    (tmp_path / "maker.pem").write_bytes(MAKER.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "request.csr").write_bytes(decode_base64(registrar.of("simpleenroll")[0].body))
    options = ["-inform", "DER", "-purpose", "any", "-CAfile", tmp_path / "maker.pem"]
    verified = subprocess.run(
        ["openssl", "cms", "-verify", "-in", tmp_path / "request.cms", *options],
        capture_output=True,
        check=True,
    )
    assert json.loads(verified.stdout)["ietf-voucher-request:voucher"]["serial-number"] == SERIAL
    request = subprocess.run(
        ["openssl", "req", "-verify", "-inform", "DER", "-in", tmp_path / "request.csr", "-noout", "-text"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "verify OK" in request.stderr + request.stdout
    assert "1.3.6.1.5.5.7.8.10" in request.stdout


@pytest.mark.parametrize("version", ["TLS1_2_VERSION", "TLS1_3_VERSION"])
def test_both_versions_of_tls(version: str) -> None:
    """covers: P-20"""
    from OpenSSL import SSL

    context = make_context(REGISTRAR, ISSUING.chain, key("p256/registrar"))
    context.set_min_proto_version(getattr(SSL, version))
    context.set_max_proto_version(getattr(SSL, version))
    enrol(Registrar(contexts=[context]))


def test_the_registrar_hears_of_it_over_the_new_certificate() -> None:
    """covers: P-51"""
    registrar = Registrar()
    steps: list[Step] = []

    async def test() -> None:
        async with registrar.running():
            enrolled = await bootstrap(registrar.connect, DEVICE, now=clock)
            await report_enrolled(registrar.connect, enrolled, on_step=lambda step, _: steps.append(step))
            asked = registrar.asked[-1]
            assert asked.operation == "enrollstatus"
            assert asked.target == "/.well-known/brski/enrollstatus"
            assert asked.headers["content-type"] == "application/json"
            assert asked.chain == (enrolled.certificate, *enrolled.chain)
            assert asked.connection == 2
            assert json.loads(asked.body) == {"version": 1, "status": True}

    run(test())
    assert steps == [Step.REPORTED]


def test_it_is_not_told_to_another() -> None:
    """covers: P-23"""

    async def test() -> None:
        registrar, other = Registrar(), Registrar(certificate=registrar_certificate())
        async with registrar.running(), other.running():
            enrolled = await bootstrap(registrar.connect, DEVICE, now=clock)
            with pytest.raises(UntrustedError, match="another certificate"):
                await report_enrolled(other.connect, enrolled)
            assert other.asked == []

    run(test())


def test_nobody_there() -> None:
    async def test() -> None:
        registrar = Registrar()
        async with registrar.running():
            enrolled = await bootstrap(registrar.connect, DEVICE, now=clock)
        with pytest.raises(AttemptError, match="refused"):
            await report_enrolled(registrar.connect, enrolled)
        with pytest.raises(AttemptError, match="refused"):
            await bootstrap(registrar.connect, DEVICE, now=clock)

    run(test())


@pytest.mark.parametrize(
    "problem", [OSError(113, "No route to host"), OSError(0, "the port is gone"), TimeoutError()]
)
def test_no_connection(problem: OSError) -> None:
    async def connect() -> Any:
        raise problem

    async def test() -> None:
        with pytest.raises(AttemptError, match=r"No route|the port is gone|no connection"):
            await bootstrap(connect, DEVICE, now=clock)

    run(test())


# --- power cuts --------------------------------------------------------------------------------------------


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("last", [step for step in Step if step is not Step.REPORTED])
def test_a_device_whose_power_fails_begins_anew(last: Step) -> None:
    """covers: P-15, P-23"""
    registrar = Registrar(handlers={"requestvoucher": [not_yet()]})

    def cut(step: Step, _: str) -> None:
        if step is last:
            raise PowerCutError

    async def test() -> None:
        async with registrar.running():
            with pytest.raises(PowerCutError):
                await bootstrap(registrar.connect, DEVICE, now=clock, on_step=cut)
            before = len(registrar.of("requestvoucher"))
            enrolled = await bootstrap(registrar.connect, DEVICE, now=clock)
            assert enrolled.identity.node_name == NODE_NAME
            nonces = {request_of(asked).nonce for asked in registrar.of("requestvoucher")}
            assert len(nonces) == (2 if before else 1)

    run(test())


def test_a_cancelled_attempt_leaves_nothing() -> None:
    async def test() -> None:
        registrar = Registrar(handlers={"requestvoucher": [not_yet("60")]})
        waiting = asyncio.Event()

        async def on_step(step: Step, _: str) -> None:
            if step is Step.WAITING:
                waiting.set()

        async with registrar.running():
            task = asyncio.create_task(bootstrap(registrar.connect, DEVICE, now=clock, on_step=on_step))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(test())


# --- not yet -----------------------------------------------------------------------------------------------


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept, without sleeping: the time of the loop moves instead."""
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float, result: Any = None) -> Any:
        if delay:
            slept.append(delay)
        return await real(0, result)

    monkeypatch.setattr(enrolment.asyncio, "sleep", sleep)
    return slept


@pytest.mark.parametrize(
    ("said", "waited"),
    [
        ("3600", 60.0),
        ("99999999999999999999", 60.0),
        ("5", 5.0),
        ("0", 0.2),
        ("0.5", 0.5),
        ("-3", 30.0),
        ("soon", 30.0),
        ("nan", 30.0),
        (None, 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.2),
        ("Wed, 21 Oct 2093 07:28:00 GMT", 60.0),
    ],
)
def test_how_long_it_waits(naps: list[float], said: str | None, waited: float) -> None:
    """covers: P-25"""
    registrar = Registrar(handlers={"requestvoucher": [not_yet(said)]})
    texts: list[str] = []
    enrol(registrar, on_step=lambda step, text: texts.append(text) if step is Step.WAITING else None)
    assert naps == [waited]
    assert len(texts) == 1
    assert f"{waited:g} s" in texts[0]


def test_without_a_clock_a_date_says_nothing(naps: list[float]) -> None:
    registrar = Registrar(handlers={"requestvoucher": [not_yet("Wed, 21 Oct 2093 07:28:00 GMT")]})
    enrol(registrar, now=lambda: None)
    assert naps == [30.0]


@pytest.mark.usefixtures("naps")
def test_the_same_request_is_sent_again() -> None:
    """covers: P-25, E-5"""
    registrar = Registrar(
        handlers={
            "requestvoucher": [not_yet(), not_yet(), not_yet()],
            "simpleenroll": [not_yet(), not_yet()],
        }
    )
    enrol(registrar)
    assert len({asked.body for asked in registrar.of("requestvoucher")}) == 1
    assert len(registrar.of("requestvoucher")) == 4
    assert len({asked.body for asked in registrar.of("simpleenroll")}) == 1
    assert len(registrar.of("simpleenroll")) == 3


@pytest.mark.usefixtures("naps")
def test_the_same_request_also_over_a_new_connection() -> None:
    """covers: P-23, P-25"""
    later = replace(not_yet(), close=True)
    registrar = Registrar(handlers={"requestvoucher": [later, later]})
    enrol(registrar)
    assert registrar.connections == 3
    assert len({asked.body for asked in registrar.of("requestvoucher")}) == 1


def test_it_gives_up_after_four_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: P-25"""
    passed = 0.0
    asked = 0

    async def sleep(delay: float) -> None:
        nonlocal passed
        passed += delay

    async def send() -> Response:
        nonlocal asked
        asked += 1
        return Response(202, {"retry-after": "3600"})

    async def waiting(_: str) -> None:
        pass

    async def test() -> None:
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(enrolment.asyncio, "sleep", sleep)
        monkeypatch.setattr(loop, "time", lambda: real() + passed)
        with pytest.raises(AttemptError, match="not decided on the voucher request for 4 days"):
            await patiently(send, "the voucher request", waiting, clock)

    run(test())
    assert 3.99 * 86_400 < passed <= 4 * 86_400
    assert asked == pytest.approx(4 * 86_400 / 60, abs=2)


# --- somewhere else ----------------------------------------------------------------------------------------


def moved(location: str, status: int = 307) -> Answer:
    return Answer(status, headers=[("Location", location)])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_another_path_of_the_same_registrar(status: int) -> None:
    """covers: P-24"""
    registrar = Registrar()
    registrar.handlers["requestvoucher"] = [
        lambda _: moved(f"https://[::1]:{registrar.port}/v2/requestvoucher?x=1", status)
    ]
    enrol(registrar)
    second, first = registrar.of("requestvoucher")
    assert first.target == "/v2/requestvoucher?x=1"
    assert request_of(first).nonce != request_of(second).nonce
    assert registrar.connections == 1


def test_it_goes_on_once_and_not_twice() -> None:
    """covers: P-24"""
    registrar = Registrar(
        handlers={"requestvoucher": [moved("/a/requestvoucher"), moved("/b/requestvoucher")]}
    )
    assert "once more" in fail(registrar)
    assert registrar.operations() == ["requestvoucher", "requestvoucher"]


def test_over_a_link_there_is_nobody_else() -> None:
    """covers: P-24"""
    registrar = Registrar(handlers={"requestvoucher": [moved("https://other.example/requestvoucher")]})
    why = fail(registrar)
    assert "other.example" in why
    assert "cannot be reached over a link" in why


def test_another_registrar_that_can_be_reached() -> None:
    """covers: P-24"""

    async def test() -> None:
        registrar, other = Registrar(), Registrar(certificate=registrar_certificate())
        where: list[tuple[str, int]] = []

        async def connect_to(host: str, port: int) -> Any:
            where.append((host, port))
            return await other.connect()

        registrar.handlers["requestvoucher"] = [moved("https://Other.example:8443/x/requestvoucher")]
        async with registrar.running(), other.running():
            enrolled = await bootstrap(registrar.connect, DEVICE, now=clock, connect_to=connect_to)
            assert where == [("other.example", 8443)]
            assert enrolled.registrar == other.certificate
            assert [asked.operation for asked in registrar.asked] == ["requestvoucher"]
            assert other.operations() == ALL
            first, second = request_of(registrar.asked[0]), request_of(other.asked[0])
            assert first.nonce != second.nonce
            assert second.proximity_registrar_cert == other.certificate.public_bytes(Encoding.DER)
            assert other.asked[0].headers["host"] == "other.example:8443"
            other.handlers["requestvoucher"] = [moved("https://third.example/requestvoucher")]
            registrar.handlers["requestvoucher"] = [moved("https://other.example:8443/x/requestvoucher")]
            with pytest.raises(AttemptError, match=r"once more, to third\.example"):
                await bootstrap(registrar.connect, DEVICE, now=clock, connect_to=connect_to)

    run(test())


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://other.example/requestvoucher",
        "ftp://other.example/x",
        "https:///x",
        "//other.example/x",
        "https://other.example",
        "x/y",
        "https://other.example:99999/x",
        "https://[::1/x",
        "https://other.example/" + "x" * 600,
    ],
)
def test_places_not_to_go_to(location: str) -> None:
    why = fail(Registrar(handlers={"requestvoucher": [moved(location)]}))
    assert "redirects us" in why
    assert "cannot be reached" not in why


@pytest.mark.parametrize("status", [300, 303, 304, 305])
def test_what_is_no_redirection(status: int) -> None:
    fail(Registrar(handlers={"requestvoucher": [moved("/requestvoucher", status)]}), RefusedError)


# --- no ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 415, 429, 500, 502, 503])
def test_the_registrar_says_why_not(status: int) -> None:
    """covers: P-26"""
    body = b"this device belongs to somebody else\x1b[2J\nreally"
    registrar = Registrar(handlers={"requestvoucher": [Answer(status, body)]})
    why = fail(registrar, RefusedError)
    assert f"status {status}" in why
    assert "this device belongs to somebody else\\u001b[2J\\nreally" in why
    assert why.isprintable()
    assert registrar.operations() == ["requestvoucher"]


def test_a_long_refusal_is_cut() -> None:
    registrar = Registrar(handlers={"requestvoucher": [Answer(403, b"\xff" * 100_000)]})
    assert len(fail(registrar)) < 500


def test_an_endless_answer() -> None:
    """covers: P-22"""
    registrar = Registrar(handlers={"requestvoucher": [Answer(200, bytes(300_000))]})
    assert "larger than" in fail(registrar)


def test_too_many_headers() -> None:
    """covers: P-22"""
    headers = [(f"x-{number}", "y") for number in range(200)]
    fail(Registrar(handlers={"requestvoucher": [Answer(200, b"", headers=headers)]}))


def test_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: P-22"""
    monkeypatch.setattr(session_module, "HANDSHAKE_SECONDS", 0.2)

    async def test() -> None:
        with listener() as sock:

            async def silent() -> Any:
                return dial(sock.getsockname()[1])

            with pytest.raises(AttemptError, match=r"took more than 0\.2 s"):
                await bootstrap(silent, DEVICE, now=clock)

            async def never() -> Any:
                await asyncio.sleep(30)

            with pytest.raises(AttemptError, match=r"no connection within 0\.2 s"):
                await bootstrap(never, DEVICE, now=clock)

    run(test())


def test_a_registrar_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """covers: P-22"""
    monkeypatch.setattr(module, "VOUCHER_SECONDS", 0.2)

    class Silent(Registrar):
        async def _converse(self, stream: Any, number: int) -> None:  # noqa: ARG002
            await asyncio.sleep(30)

    assert "did not answer within 0.2 s" in fail(Silent())


# --- vouchers ----------------------------------------------------------------------------------------------


FOREIGN = STRANGER.node(subject=subject("Not the MASA"), kind="p256/foreign", **VALID)
OTHER_DEVICE = idevid("another", "p256/device2")


def tampered(asked: Asked) -> Answer:
    answer = Registrar().voucher(asked)
    return replace(answer, body=answer.body.replace(b"proximity", b"proximitY"))


def by(kind: str, certificate: x509.Certificate) -> Callable[[Asked], Answer]:
    def handler(asked: Asked) -> Answer:
        return Answer(200, signed(make_voucher(request_of(asked)), key(kind), certificate))

    return handler


def raw(payload: bytes) -> Callable[[Asked], Answer]:
    return lambda _: Answer(200, signed(payload))


def without_pin(asked: Asked) -> Answer:
    members = {"assertion": "logged", "serial-number": SERIAL, "nonce": request_of(asked).nonce}
    return Answer(200, signed(json.dumps({"ietf-voucher:voucher": members}).encode()))


REFUSED: dict[str, Any] = {
    "another serial number": altered(serial_number="JADA000000000"),
    "the serial number in another case": altered(serial_number=SERIAL.lower()),
    "another nonce": altered(nonce="AAAAAAAAAAAAAAAAAAAAAA=="),
    "expired": altered(nonce=None, expires_on=NOW - timedelta(minutes=1)),
    "made in the future": altered(created_on=NOW + timedelta(days=1)),
    "an assertion not for us": altered(assertion=Assertion.AGENT_PROXIMITY),
    "another issuer": altered(idevid_issuer=authority_key_identifier_value(REGISTRAR)),
    "pinned to a stranger": altered(pinned_domain_cert=STRANGER.certificate.public_bytes(Encoding.DER)),
    "pinned to no certificate": altered(pinned_domain_cert=b"\x30\x03\x02\x01\x00"),
    "tampered with": tampered,
    "signed by a stranger": by("p256/foreign", FOREIGN),
    "signed by the domain": by("p256/registrar", REGISTRAR),
    "signed by another device": by("p256/device2", OTHER_DEVICE),
    "no pin": without_pin,
    "no JSON": raw(b"voucher"),
    "another JSON": raw(b'{"ietf-voucher-request:voucher": {}}'),
    "not CMS": lambda _: Answer(200, b"here is your voucher"),
    "nothing": lambda _: Answer(200, b""),
    "our own request": lambda asked: Answer(200, asked.body),
}


@pytest.mark.parametrize("what", REFUSED)
def test_vouchers_that_are_refused(what: str) -> None:
    """covers: P-5, P-40, P-41, P-42, P-43, P-44, P-45, P-47, P-50"""
    registrar = Registrar(handlers={"requestvoucher": [REFUSED[what]]})
    assert fail(registrar, UntrustedError).startswith("the voucher is refused: ")
    assert registrar.operations() == ["requestvoucher", "voucher_status"], "told, and nothing more said"
    assert {asked.connection for asked in registrar.asked} == {1}
    (status,) = registrar.statuses("voucher_status")
    assert status.version == 1
    assert status.status is False
    assert status.reason
    assert len(status.reason) < 80, "nothing that helps an attacker"
    assert set(json.loads(registrar.asked[1].body)) == {"version", "status", "reason"}


def test_a_voucher_of_before_is_refused() -> None:
    """covers: P-42"""
    old = Registrar()
    answers: list[Answer] = []
    old.handlers["requestvoucher"] = lambda asked: answers.append(old.voucher(asked)) or answers[0]  # type: ignore[func-returns-value]
    enrol(old)
    replaying = Registrar(handlers={"requestvoucher": lambda _: answers[0]})
    assert "another request" in fail(replaying, UntrustedError)


ACCEPTED: dict[str, dict[str, Any]] = {
    "without a nonce": {"nonce": None},
    "without a nonce, to expire": {"nonce": None, "expires_on": NOW + timedelta(minutes=20)},
    "verified": {"assertion": Assertion.VERIFIED},
    "logged": {"assertion": Assertion.LOGGED},
    "our issuer": {"idevid_issuer": authority_key_identifier_value(DEVICE.certificate)},
    "pinned to the issuing CA": {"pinned_domain_cert": ISSUING.certificate.public_bytes(Encoding.DER)},
    "pinned to the registrar": {"pinned_domain_cert": REGISTRAR.public_bytes(Encoding.DER)},
    "no revocation checks": {"domain_cert_revocation_checks": False},
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_vouchers_that_are_accepted(what: str) -> None:
    """covers: P-42, P-44, P-45, P-46"""
    registrar = Registrar(handlers={"requestvoucher": [altered(**ACCEPTED[what])]})
    enrolled = enrol(registrar)
    assert enrolled.anchors == (ROOT.certificate,)
    assert enrolled.chain == (ISSUING.certificate,)
    assert registrar.operations() == ALL


def test_members_that_are_not_known_are_ignored() -> None:
    """covers: P-45"""

    def handler(asked: Asked) -> Answer:
        value = json.loads(make_voucher(request_of(asked)).encode())
        value["ietf-voucher:voucher"]["favourite-colour"] = {"deep": [1, 2]}
        return Answer(200, signed(json.dumps(value).encode()))

    enrol(Registrar(handlers={"requestvoucher": [handler]}))


def test_policy() -> None:
    """covers: P-42, P-44"""
    nonceless = Registrar(handlers={"requestvoucher": [altered(nonce=None)]})
    assert "no nonce" in fail(nonceless, UntrustedError, policy=Policy(nonceless=False))
    logged = Registrar(handlers={"requestvoucher": [altered(assertion=Assertion.LOGGED)]})
    fail(logged, UntrustedError, policy=Policy(assertions={Assertion.VERIFIED}))


def test_expired_is_of_no_interest_without_a_clock() -> None:
    """covers: P-43"""
    handler = altered(nonce=None, expires_on=NOW - timedelta(days=1))
    enrol(Registrar(handlers={"requestvoucher": [handler]}), now=lambda: None)


def test_a_registrar_that_has_expired() -> None:
    """covers: P-43"""
    registrar = Registrar(certificate=registrar_certificate(end=NOW - timedelta(hours=1)))
    fail(registrar, UntrustedError)


def test_any_node_of_the_domain_is_no_registrar() -> None:
    registrar = Registrar(certificate=registrar_certificate(usages=()))
    assert "cmcRA" in fail(registrar, UntrustedError)


def test_a_registrar_that_signed_itself() -> None:
    """covers: P-46"""
    own = key("p256/registrar")
    certificate = _make(subject("registrar"), own.public_key(), subject("registrar"), own, ca=False, **VALID)
    registrar = Registrar(certificate=certificate, chain=(), pinned=certificate)
    enrolled = enrol(registrar)
    assert enrolled.anchors == (ROOT.certificate,), "its word is all there is"


def test_whether_the_status_is_heard_does_not_matter() -> None:
    """covers: P-50"""
    for answer in (Answer(404), Answer(500, b"oh"), DROP, replace(Answer(), close=True)):
        enrol(Registrar(handlers={"voucher_status": [answer]}))


# --- anything ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    operation=st.sampled_from(["requestvoucher", "voucher_status", "cacerts", "csrattrs", "simpleenroll"]),
    status=st.sampled_from([200, 200, 200, 201, 204, 206, 299, 301, 404, 999]),
    cut=st.integers(0, 4000),
    noise=st.binary(max_size=8),
    decoded=st.booleans(),
)
def test_whatever_a_registrar_says_is_an_answer_or_one_kind_of_error(
    operation: str, status: int, cut: int, noise: bytes, decoded: bool
) -> None:
    """covers: P-22"""

    class Noisy(Registrar):
        def honest(self, asked: Asked) -> Answer:
            answer = super().honest(asked)
            if asked.operation != operation:
                return answer
            body = answer.body
            if decoded and "/est/" in asked.target:
                body = decode_base64(body)
            at = cut % (len(body) + 1)
            return replace(answer, status=status, body=body[:at] + noise + body[at + len(noise) :])

    async def test() -> None:
        registrar = Noisy()
        async with registrar.running():
            with suppress(AttemptError):
                await bootstrap(registrar.connect, DEVICE, now=clock)

    run(test())
