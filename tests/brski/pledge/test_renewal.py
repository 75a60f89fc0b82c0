"""How a member stays one, and how one that came too late comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from minerva.brski.pledge.attempt import Step
from minerva.brski.pledge.device import Device
from minerva.brski.pledge.enrolment import Enrolled
from minerva.brski.pledge.errors import AttemptError, RefusedError, UntrustedError
from minerva.brski.pledge.renewal import MAX_PROXIES, Alternation, Method, reenrol, renew, renew_at
from minerva.est.bodies import decode_base64, encode_base64
from minerva.est.csrattrs import for_node_name
from minerva.https.stream import TlsStream
from minerva.pki.certificates import ID_KP_CMC_RA
from minerva.pki.identity import Identity
from minerva.pki.keys import KeyType
from minerva.pki.membership import RevocationStatus
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import load_request
from minerva.tls.context import make_context
from tests.brski.pledge.world import (
    DEVICE,
    ISSUING,
    NODE_NAME,
    NOW,
    OTHER_NAME,
    REGISTRAR,
    ROOT,
    STRANGER,
    VALID,
    Answer,
    Asked,
    Registrar,
    certify,
    not_yet,
    pkcs7,
    registrar_certificate,
)
from tests.https.ends import run
from tests.pki.certs import Ca, _make, key, node_name, subject


def clock() -> datetime:
    return datetime.now(UTC)


def member(anchors: tuple[x509.Certificate, ...] = (ROOT.certificate,), **options: Any) -> Identity:
    certificate = certify(key("p256/node").public_key(), **options)
    return Identity.from_certificates(certificate, ISSUING.chain, anchors)


IDENTITY = member()
EXPIRED = member(start=NOW - timedelta(days=9), end=NOW - timedelta(days=1))


def renewed(registrar: Registrar, identity: Identity = IDENTITY, **options: Any) -> Enrolled:
    found: list[Enrolled] = []

    async def test() -> None:
        async with registrar.running():
            context = make_context(identity.certificate, identity.chain, key("p256/node"))
            stream = await TlsStream.client(await registrar.connect(), context)
            try:
                found.append(await renew(stream, identity, **{"now": clock} | options))
            finally:
                assert stream.transport.closed

    run(test())
    return found[0]


def refused(registrar: Registrar, **options: Any) -> str:
    with pytest.raises(AttemptError) as caught:
        renewed(registrar, **options)
    return str(caught.value)


def attributes(name: AcpNodeName) -> dict[str, Any]:
    return {"csrattrs": [Answer(200, encode_base64(for_node_name(name)))]}


# --- renewal -----------------------------------------------------------------------------------------------


def test_a_new_certificate_in_time() -> None:
    """covers: 6.2.5-1, 6.2.5-4, E-6, P-62"""
    registrar = Registrar()
    steps: list[Step] = []
    enrolled = renewed(registrar, on_step=lambda step, _: steps.append(step))
    assert registrar.operations() == ["cacerts", "csrattrs", "simplereenroll"]
    assert registrar.asked[0].chain == (IDENTITY.certificate, *IDENTITY.chain)
    assert enrolled.identity.address == IDENTITY.address
    assert enrolled.identity.node_name == IDENTITY.node_name
    assert enrolled.certificate.public_key() == enrolled.key.public_key()
    assert enrolled.certificate.public_key() != IDENTITY.certificate.public_key(), "a new key"
    request = load_request(decode_base64(registrar.of("simplereenroll")[0].body))
    assert request.subject == IDENTITY.certificate.subject
    assert request.node_name == IDENTITY.node_name
    assert steps == [Step.CA_CERTIFICATES, Step.ATTRIBUTES, Step.REQUESTED, Step.ENROLLED]


def test_when_to_renew() -> None:
    """covers: 6.2.5.2-2, E-10"""
    start, end = IDENTITY.certificate.not_valid_before_utc, IDENTITY.certificate.not_valid_after_utc
    assert renew_at(IDENTITY.certificate) - start == (end - start) / 2
    assert renew_at(IDENTITY.certificate, fraction=0.4) - start == (end - start) * 0.4
    assert renew_at(IDENTITY.certificate, fraction=0.9) == renew_at(IDENTITY.certificate)


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (registrar_certificate(usages=()), "extended key usage"),
        (registrar_certificate(usages=(x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1"),)), "extended key usage"),
        (registrar_certificate(STRANGER), "rule 2"),
        (registrar_certificate(end=NOW - timedelta(hours=1)), "rule 2"),
        (
            ISSUING.node(
                "@other.example",
                kind="p256/registrar",
                extensions=[(x509.ExtendedKeyUsage([ID_KP_CMC_RA]), False)],
                **VALID,
            ),
            "rule 4",
        ),
    ],
)
def test_only_from_a_registrar_of_our_domain(certificate: x509.Certificate, why: str) -> None:
    """covers: 6.2.5-4, E-8"""
    registrar = Registrar(certificate=certificate)
    assert why in refused(registrar)
    assert registrar.asked == [], "nothing is said to it"


def test_not_from_one_that_is_revoked() -> None:
    """covers: 6.2.5-4"""

    class Revoked:
        def status(self, *_: object) -> RevocationStatus:
            return RevocationStatus.REVOKED

    with_crl = _make(
        subject("registrar"),
        key("p256/registrar").public_key(),
        ISSUING.certificate.subject,
        ISSUING.key,
        ca=False,
        extensions=[
            (x509.ExtendedKeyUsage([ID_KP_CMC_RA]), False),
            (
                x509.SubjectAlternativeName([AcpNodeName.parse("@acp.example.com").other_name()]),
                False,
            ),
            (
                x509.CRLDistributionPoints(
                    [
                        x509.DistributionPoint(
                            [x509.UniformResourceIdentifier("http://[fd00::1]/crl")], None, None, None
                        )
                    ]
                ),
                False,
            ),
        ],
        **VALID,
    )
    registrar = Registrar(certificate=with_crl)
    assert "revoked" in refused(registrar, revocation=Revoked())
    renewed(Registrar(certificate=with_crl))


def test_the_address_stays() -> None:
    """covers: E-6"""
    why = refused(Registrar(name=OTHER_NAME))
    assert "another address" in why


def test_the_domain_stays() -> None:
    name = AcpNodeName.parse(node_name(7, domain="other.example"))
    assert "one of acp.example.com" in refused(Registrar(handlers=attributes(name)))


@pytest.mark.parametrize("answer", [Answer(204), Answer(404), Answer(200, encode_base64(b"\x30\x00"))])
def test_a_registrar_that_tells_no_names(answer: Answer) -> None:
    """covers: E-6"""
    registrar = Registrar(handlers={"csrattrs": [answer]})
    assert renewed(registrar).identity.node_name == NODE_NAME
    request = x509.load_der_x509_csr(decode_base64(registrar.of("simplereenroll")[0].body))
    names = [
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        for certificate in (request, IDENTITY.certificate)
    ]
    assert names[0] == names[1]


def test_another_kind_of_key() -> None:
    body = encode_base64(for_node_name(NODE_NAME, KeyType.P384))
    assert renewed(Registrar(handlers={"csrattrs": [Answer(200, body)]})).key.key_size == 384


def test_it_has_time() -> None:
    registrar = Registrar(handlers={"simplereenroll": [not_yet(), not_yet()]})
    renewed(registrar)
    assert len({asked.body for asked in registrar.of("simplereenroll")}) == 1


@pytest.mark.parametrize("operation", ["cacerts", "csrattrs", "simplereenroll"])
def test_a_renewal_that_is_refused(operation: str) -> None:
    registrar = Registrar(handlers={operation: [Answer(403, b"not you")]})
    assert "not you" in refused(registrar)
    assert "enrollstatus" not in registrar.operations()


def test_a_certificate_for_another_key() -> None:
    other = certify(key("p256/other").public_key())
    assert "another key" in refused(Registrar(handlers={"simplereenroll": [pkcs7(other)]}))


def test_trust_anchors_come_along() -> None:
    """covers: 6.2.4-2, 6.2.5-1, E-4"""
    new = Ca.root("Domain root 2", kind="p384/root2", **VALID)
    registrar = Registrar(authorities=(ROOT.certificate, ISSUING.certificate, new.certificate))
    assert set(renewed(registrar).anchors) == {ROOT.certificate, new.certificate}


def test_a_registrar_without_roots() -> None:
    only = member(anchors=(ISSUING.certificate,))
    enrolled = renewed(Registrar(authorities=(ISSUING.certificate,)), only)
    assert enrolled.anchors == (ISSUING.certificate,)
    assert "no trust anchor" in refused(Registrar(authorities=(REGISTRAR, ISSUING.certificate)))


def test_the_certificate_has_to_lead_to_the_new_anchors() -> None:
    assert "no path" in refused(Registrar(authorities=(STRANGER.certificate,)))


# --- too late ----------------------------------------------------------------------------------------------


def back(
    method: Method,
    registrar: Registrar,
    former: Identity = EXPIRED,
    device: Device | None = DEVICE,
    **options: Any,
) -> Enrolled:
    found: list[Enrolled] = []

    async def test() -> None:
        async with registrar.running():
            found.append(
                await reenrol(
                    method,
                    registrar.connect,
                    device,
                    former,
                    key("p256/node"),
                    **{"now": clock} | options,
                )
            )

    run(test())
    return found[0]


def test_back_with_the_old_certificate() -> None:
    """covers: P-71, 6.2.5.5-1, 6.2.5.5-2, 6.2.5.5-4"""
    registrar = Registrar()
    steps: list[Step] = []
    enrolled = back(Method.AS_MEMBER, registrar, on_step=lambda step, _: steps.append(step))
    assert registrar.operations() == ["cacerts", "csrattrs", "simplereenroll"], "no voucher"
    assert registrar.asked[0].chain[0] == EXPIRED.certificate
    assert enrolled.identity.address == EXPIRED.address
    assert enrolled.certificate.not_valid_after_utc > NOW
    assert steps[0] is Step.CONNECTING
    assert steps[-1] is Step.ENROLLED


def test_back_with_the_idevid_and_the_old_anchors() -> None:
    """covers: P-71, 6.2.5.5-3, 6.2.5.5-4"""
    registrar = Registrar()
    enrolled = back(Method.AS_DEVICE, registrar)
    assert registrar.operations() == ["cacerts", "csrattrs", "simpleenroll"]
    assert registrar.asked[0].chain[0] == DEVICE.certificate
    assert enrolled.identity.node_name == NODE_NAME


def test_back_with_a_voucher() -> None:
    """covers: P-71, 6.2.5.5-4"""
    registrar = Registrar()
    back(Method.WITH_VOUCHER, registrar)
    assert registrar.operations()[0] == "requestvoucher"
    assert registrar.asked[0].chain[0] == DEVICE.certificate


@pytest.mark.parametrize("method", [Method.AS_MEMBER, Method.AS_DEVICE])
def test_a_registrar_that_the_old_anchors_do_not_know(method: Method) -> None:
    """covers: P-71, 6.2.5.5-4"""
    registrar = Registrar()
    with pytest.raises(AttemptError, match="rule 2"):
        back(
            method,
            registrar,
            member(
                anchors=(STRANGER.certificate,), end=NOW - timedelta(days=1), start=NOW - timedelta(days=2)
            ),
        )
    assert registrar.asked == []


@pytest.mark.parametrize("method", [Method.AS_DEVICE, Method.WITH_VOUCHER])
def test_a_node_without_a_maker_has_its_old_certificate_only(method: Method) -> None:
    registrar = Registrar()
    with pytest.raises(AttemptError, match="only its old one"):
        back(method, registrar, device=None)
    assert registrar.connections == 0
    assert back(Method.AS_MEMBER, registrar, device=None).identity.address == EXPIRED.address


def test_any_member_is_no_registrar() -> None:
    registrar = Registrar(certificate=registrar_certificate(usages=()))
    with pytest.raises(AttemptError, match="extended key usage"):
        back(Method.AS_MEMBER, registrar)


def test_another_address_is_taken_by_one_that_has_none_any_more() -> None:
    registrar = Registrar(name=OTHER_NAME)
    assert back(Method.AS_MEMBER, registrar).identity.node_name == OTHER_NAME


def test_what_fails_is_told() -> None:
    """covers: P-51"""
    registrar = Registrar(handlers={"simplereenroll": [Answer(401, b"too late")]})
    with pytest.raises(RefusedError, match="too late"):
        back(Method.AS_MEMBER, registrar)
    (status,) = registrar.statuses("enrollstatus")
    assert status.status is False


def test_a_connection_made_again_is_checked_again() -> None:
    answer = replace(pkcs7(ROOT.certificate, ISSUING.certificate), close=True)

    contexts = [
        make_context(certificate, ISSUING.chain, key("p256/registrar"))
        for certificate in (REGISTRAR, registrar_certificate())
    ]
    registrar = Registrar(handlers={"cacerts": [answer]}, contexts=contexts)
    with pytest.raises(UntrustedError, match="another certificate"):
        back(Method.AS_MEMBER, registrar)


def test_the_methods_take_turns() -> None:
    """covers: P-71, 6.2.5.5-3, 6.2.5.5-4"""
    alternation = Alternation()
    turns = [alternation.next("a") for _ in range(6)]
    assert turns == [Method.AS_MEMBER, Method.AS_DEVICE, Method.WITH_VOUCHER] * 2
    assert alternation.next("b") is Method.AS_MEMBER, "each proxy has its own"
    for number in range(2 * MAX_PROXIES):
        alternation.next(number)
    assert len(alternation._tried) == MAX_PROXIES


def test_refused_as_a_member_it_comes_as_a_device() -> None:
    """covers: P-71, 6.2.5.5-3"""

    def only_devices(asked: Asked) -> Answer:
        known = asked.chain[0] == DEVICE.certificate
        return Registrar().honest(asked) if known else Answer(401, b"expired")

    alternation = Alternation()
    tried: list[Method] = []
    handlers: dict[str, Callable[[Asked], Answer]] = {
        "simplereenroll": only_devices,
        "simpleenroll": only_devices,
    }
    registrar = Registrar(handlers=dict(handlers))
    while True:
        tried.append(alternation.next("the proxy"))
        try:
            enrolled = back(tried[-1], registrar)
        except AttemptError:
            continue
        break
    assert tried == [Method.AS_MEMBER, Method.AS_DEVICE]
    assert enrolled.identity.address == EXPIRED.address
