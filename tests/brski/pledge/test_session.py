"""The one registrar of a session, and what can be checked of it before anybody vouches for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509

from minerva.brski.pledge import session as session_module
from minerva.brski.pledge.errors import AttemptError, UntrustedError
from minerva.brski.pledge.session import Session, check_signatures
from minerva.tls.context import make_context
from tests.brski.pledge.world import (
    DEVICE,
    DROP,
    FAKE_ISSUING,
    IMPOSTOR,
    ISSUING,
    REGISTRAR,
    ROOT,
    STRANGER,
    VALID,
    Answer,
    Asked,
    Registrar,
    enrol,
    fail,
    registrar_certificate,
)
from tests.https.ends import run
from tests.pki.certs import _make, key, subject

# --- the same registrar ------------------------------------------------------------------------------------


def test_after_the_voucher_the_connection_may_be_made_again() -> None:
    """covers: P-23"""
    closing = lambda asked: replace(Registrar().voucher(asked), close=True)  # noqa: E731
    registrar = Registrar(handlers={"requestvoucher": [closing]})
    enrol(registrar)
    assert registrar.connections == 2
    assert all(asked.chain[0] == DEVICE.certificate for asked in registrar.asked)


def test_but_only_with_the_same_certificate() -> None:
    """covers: P-23"""
    closing = lambda asked: replace(Registrar().voucher(asked), close=True)  # noqa: E731
    renewed = registrar_certificate()
    contexts = [
        make_context(certificate, ISSUING.chain, key("p256/registrar"))
        for certificate in (REGISTRAR, renewed)
    ]
    registrar = Registrar(handlers={"requestvoucher": [closing]}, contexts=contexts)
    assert "another certificate than before" in fail(registrar, UntrustedError)
    assert registrar.operations() == ["requestvoucher"], "it hears nothing"


def test_a_refusal_is_told_to_the_same_only() -> None:
    def handler(asked: Asked) -> Answer:
        return replace(Registrar().voucher(asked, serial_number="x"), close=True)

    contexts = [
        make_context(certificate, ISSUING.chain, key("p256/registrar"))
        for certificate in (REGISTRAR, registrar_certificate())
    ]
    registrar = Registrar(handlers={"requestvoucher": [handler]}, contexts=contexts)
    assert "the voucher is refused" in fail(registrar, UntrustedError)
    assert registrar.operations() == ["requestvoucher"]


def test_a_connection_that_is_lost_in_the_middle() -> None:
    registrar = Registrar(handlers={"cacerts": [DROP], "simpleenroll": [DROP]})
    enrol(registrar)
    assert registrar.connections == 3
    assert len({asked.body for asked in registrar.of("simpleenroll")}) == 1


def test_a_connection_that_is_lost_again_and_again() -> None:
    assert "closed the connection" in fail(Registrar(handlers={"requestvoucher": lambda _: DROP}))
    assert "closed the connection" in fail(Registrar(handlers={"csrattrs": lambda _: DROP}))


# --- chains that nobody vouches for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "good"),
    [
        ((REGISTRAR,), True),
        ((REGISTRAR, ISSUING.certificate), True),
        ((REGISTRAR, ISSUING.certificate, ROOT.certificate), True),
        ((REGISTRAR, ROOT.certificate, ISSUING.certificate), True),
        ((REGISTRAR, STRANGER.certificate, ISSUING.certificate), True),
        ((REGISTRAR, FAKE_ISSUING.certificate, ISSUING.certificate), True),
        ((REGISTRAR, FAKE_ISSUING.certificate), False),
        ((REGISTRAR, ISSUING.certificate, IMPOSTOR.certificate), False),
        ((), False),
        ((REGISTRAR, *[FAKE_ISSUING.certificate] * 15), False),
    ],
)
def test_signatures_in_a_chain(chain: tuple[x509.Certificate, ...], good: bool) -> None:
    """covers: P-20"""
    if good:
        check_signatures(chain)
    else:
        with pytest.raises(UntrustedError):
            check_signatures(chain)


def test_the_work_that_a_chain_makes_is_bounded() -> None:
    """covers: P-22"""
    name = subject("all the same")
    chain = [
        _make(name, key(f"p256/{number}").public_key(), name, key(f"p256/{number}"), ca=True, **VALID)
        for number in range(12)
    ]
    with pytest.raises(UntrustedError, match="without end"):
        check_signatures(chain)


def test_a_ca_with_a_new_key_is_no_forgery() -> None:
    name = subject("Root")
    old, new = key("p256/old"), key("p256/new")

    def certificate(own: Any, issuer: Any) -> x509.Certificate:
        return _make(
            name,
            own.public_key(),
            name,
            issuer,
            ca=True,
            extensions=[
                (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False),
                (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False),
            ],
            **VALID,
        )

    check_signatures([certificate(new, old)])
    check_signatures([certificate(new, old), certificate(new, new)])
    check_signatures([certificate(new, old), certificate(old, old)])


def test_a_weak_certificate_is_refused_at_once() -> None:
    """covers: P-20"""
    weak = registrar_certificate(kind="rsa1024/registrar")
    with pytest.raises(UntrustedError, match="RSA key of 1024 bits"):
        check_signatures([weak])


def test_an_attempt_looks_at_the_chain() -> None:
    """covers: P-20"""
    registrar = Registrar(chain=(FAKE_ISSUING.certificate,))
    assert "signature" in fail(registrar, UntrustedError)
    assert registrar.asked == []


def test_the_chain_is_kept() -> None:
    """covers: P-20"""

    async def test() -> None:
        registrar = Registrar()
        async with registrar.running():
            context = make_context(DEVICE.certificate, (), key("p256/device"))
            session = Session(registrar.connect, context)
            with pytest.raises(AttemptError, match="no connection"):
                _ = session.registrar
            async with session:
                await session.open()
                await session.open()
                assert registrar.connections == 1
                assert session.chain == (REGISTRAR, ISSUING.certificate)

    run(test())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (("fe80::1%eth0", 8443, 0, 3), "[fe80::1]:8443"),
        (("192.0.2.1", 443), "192.0.2.1"),
        ("", "registrar"),
        (OSError(107, "not connected"), "registrar"),
    ],
)
def test_what_stands_in_the_field_host(name: Any, shown: str) -> None:
    class Socket:
        def getpeername(self) -> Any:
            if isinstance(name, OSError):
                raise name
            return name

    assert session_module._address_of(Socket()) == shown  # type: ignore[arg-type]


# --- HTTP authentication -----------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["requestvoucher", "cacerts", "csrattrs", "simpleenroll"])
@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_a_device_has_no_password_for_anybody(operation: str, scheme: str) -> None:
    """Whoever asks for one, before there is a voucher or after, gets no second request with an answer.

    covers: E-11
    """
    challenge = Answer(401, b"who?", headers=[("WWW-Authenticate", f'{scheme} realm="est", nonce="n"')])
    registrar = Registrar(handlers={operation: lambda _: challenge})
    fail(registrar)
    assert registrar.of(operation)
    assert all("authorization" not in asked.headers for asked in registrar.asked)
    assert all(len({asked.body for asked in registrar.of(name)}) <= 1 for name in registrar.operations())
