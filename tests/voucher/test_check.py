"""The pledge's judgement of a voucher and of the registrar that brought it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from minerva.pki.certificates import load_certificate, load_pem
from minerva.pki.idevid import authority_key_identifier_value
from minerva.pki.membership import RevocationStatus
from minerva.voucher.check import CLOCK_TOLERANCE, check_registrar_chain, check_voucher
from minerva.voucher.errors import Refusal, VoucherRefused
from minerva.voucher.leaves import encode_binary
from minerva.voucher.model import Assertion, Voucher

from .maker import (
    DAY,
    DEVICE,
    DOMAIN,
    FOREVER,
    ISSUING,
    LATER,
    MAKER,
    MASA,
    NODE,
    NONCE,
    NOW,
    REGISTRAR,
    SERIAL_NUMBER,
    TLS_CHAIN,
    VOUCHER,
    Ca,
    Signer,
    aki,
    cmc_ra,
    der,
    device_subject,
    idevid,
    key,
    subject,
)

MASA_SIGNS = Signer()


def judge(data: bytes, **changes: Any) -> Voucher:
    """What the device of the maker says of ``data``."""
    circumstances = {
        "serial_number": SERIAL_NUMBER,
        "certificate": DEVICE,
        "anchors": (MAKER.certificate,),
        "nonce": NONCE,
        "when": NOW,
    }
    return check_voucher(data, **{**circumstances, **changes})


def refusal(judged: Callable[[], object]) -> Refusal:
    with pytest.raises(VoucherRefused) as caught:
        judged()
    assert str(caught.value).startswith(caught.value.reason.sentence)
    return caught.value.reason


def pinning(certificate: x509.Certificate, **changes: Any) -> Voucher:
    return judge(MASA_SIGNS.voucher(pinned_domain_cert=der(certificate), **changes))


def test_a_voucher_for_this_device() -> None:
    """covers: P-40, P-41, P-42, P-46"""
    voucher = judge(MASA_SIGNS.voucher())
    assert voucher == VOUCHER
    assert check_registrar_chain(voucher, TLS_CHAIN, NOW) == (*TLS_CHAIN, DOMAIN.certificate)


def test_published(fixtures: Path) -> None:
    """The whole run of RFC 8995 appendix C.2, as the pledge sees it; the voucher pins the registrar itself.

    covers: P-40, P-41, P-42, P-46, CM-2
    """
    folder = fixtures / "rfc8995"
    (anchor,) = load_pem((folder / "C1.1-manufacturer-ca-p384.cert.pem").read_bytes())
    (registrar,) = load_pem((folder / "C1.4-registrar-ee-cmcRA-p256.cert.pem").read_bytes())
    data = (folder / "C2.3-voucher-masa-to-registrar.cms.der").read_bytes()
    of_device = {
        "serial_number": "00-D0-E5-F2-00-02",
        "certificate": load_certificate(
            (folder / "C2.1-embedded-idevid-serial-0d83afd9.cert.der").read_bytes()
        ),
        "anchors": (anchor,),
        "nonce": "-_XE9zK9q8Ll1qylMtLKeg",
    }
    when = datetime(2021, 4, 14, tzinfo=UTC)
    for moment in (when, None):
        voucher = judge(data, **of_device, when=moment)
        assert voucher.assertion is Assertion.LOGGED
        assert check_registrar_chain(voucher, (registrar,), moment) == (registrar,)
    assert refusal(lambda: judge(data, **of_device, when=NOW)) is Refusal.SIGNER_OUT_OF_TIME
    # The registrar's certificate expired a year before that of the MASA.
    in_2022 = datetime(2022, 12, 1, tzinfo=UTC)
    assert refusal(lambda: judge(data, **of_device, when=in_2022)) is Refusal.PINNED_OUT_OF_TIME
    assert (
        refusal(lambda: check_registrar_chain(voucher, (registrar,), in_2022))
        is Refusal.REGISTRAR_OUT_OF_TIME
    )
    domain = load_pem((folder / "C1.3-registrar-domain-ca-p384.cert.pem").read_bytes())
    assert refusal(lambda: judge(data, **{**of_device, "anchors": domain})) is Refusal.SIGNER_NOT_OF_MAKER


def test_who_signed() -> None:
    """covers: P-40"""
    stranger = Ca.root("Maker", "p384/stranger", end=FOREVER)
    forged = Signer(stranger.node(subject=subject("MASA"), kind="p256/masa"), chain=(stranger.certificate,))
    assert refusal(lambda: judge(forged.voucher())) is Refusal.SIGNER_NOT_OF_MAKER
    by_domain = Signer(REGISTRAR, key("p256/registrar"), TLS_CHAIN[1:])
    assert refusal(lambda: judge(by_domain.voucher())) is Refusal.SIGNER_NOT_OF_MAKER
    self_signed = Signer(stranger.certificate, key("p384/stranger"), ())
    assert refusal(lambda: judge(self_signed.voucher())) is Refusal.SIGNER_NOT_OF_MAKER
    old = Signer(MAKER.node(subject=subject("MASA"), kind="p256/masa", end=NOW - timedelta(hours=1)))
    assert refusal(lambda: judge(old.voucher())) is Refusal.SIGNER_OUT_OF_TIME
    assert judge(old.voucher(), when=None) == VOUCHER
    masa_ca = MAKER.ca("MASA CA", "p256/masa-ca")
    below = Signer(masa_ca.node(subject=subject("MASA"), kind="p256/masa"), chain=masa_ca.chain)
    assert judge(below.voucher()) == VOUCHER


def test_the_anchor_itself_signs() -> None:
    """With its certificate in the voucher, and without: the device has it.

    covers: P-40
    """
    by_root = Signer(MAKER.certificate, key("p384/maker"), ())
    assert judge(by_root.voucher()) == VOUCHER
    assert judge(MASA_SIGNS.voucher(), anchors=(MASA,)) == VOUCHER
    assert refusal(lambda: judge(MASA_SIGNS.voucher(), anchors=(DEVICE,))) is Refusal.SIGNER_NOT_OF_MAKER


def test_another_device_of_the_maker_signs() -> None:
    """It has a path to the same anchor, and a key that somebody may have taken out of it."""
    other = idevid(MAKER, "FD-0018", kind="p256/other")
    plain = MAKER.node(subject=device_subject("FD-0018"), kind="p256/other")
    for certificate in (other, plain):
        by_device = Signer(certificate, key("p256/other"), ())
        assert refusal(lambda signer=by_device: judge(signer.voucher())) is Refusal.SIGNER_IS_A_DEVICE


def test_tampered() -> None:
    """covers: P-40, CM-4"""
    data = MASA_SIGNS.voucher()
    assert refusal(lambda: judge(data.replace(b"FD-0017", b"FD-0018"))) is Refusal.BAD_SIGNATURE
    assert refusal(lambda: judge(data[:-1] + bytes([data[-1] ^ 1]))) is Refusal.BAD_SIGNATURE
    for rubbish in (b"", b"<html>", data[:-1], data + b"\x00", b"\x30\x80" * 30_000):
        assert refusal(lambda junk=rubbish: judge(junk)) is Refusal.NOT_A_VOUCHER
    for payload in (b"", b"{}", b"[1]", b'{"ietf-voucher:voucher":{}}', b"\xff"):
        assert refusal(lambda body=payload: judge(MASA_SIGNS.signed(body))) is Refusal.NOT_A_VOUCHER


def test_whose_voucher() -> None:
    """covers: P-41"""
    assert refusal(lambda: judge(MASA_SIGNS.voucher(serial_number="FD-0018"))) is Refusal.WRONG_SERIAL_NUMBER
    assert refusal(lambda: judge(MASA_SIGNS.voucher(serial_number="fd-0017"))) is Refusal.WRONG_SERIAL_NUMBER
    issuer = authority_key_identifier_value(DEVICE)
    assert issuer[:6] == bytes.fromhex("041830168014")
    for spelling in (issuer, issuer[2:], issuer[6:]):
        assert judge(MASA_SIGNS.voucher(idevid_issuer=spelling)).idevid_issuer == spelling
    for wrong in (issuer[:-1], issuer[:-1] + b"\x00", b"\x00" * 20, b""):
        data = MASA_SIGNS.voucher(idevid_issuer=wrong)
        assert refusal(lambda other=data: judge(other)) is Refusal.WRONG_ISSUER
    elsewhere = Ca.root("Another factory", "p256/elsewhere")
    data = MASA_SIGNS.voucher(idevid_issuer=issuer)
    twin = idevid(elsewhere)
    assert refusal(lambda: judge(data, certificate=twin)) is Refusal.WRONG_ISSUER


def test_nonce() -> None:
    """A nonce is the text that it is.

    covers: P-42
    """
    assert refusal(lambda: judge(MASA_SIGNS.voucher(nonce="other"))) is Refusal.WRONG_NONCE
    assert refusal(lambda: judge(MASA_SIGNS.voucher(), nonce=None)) is Refusal.WRONG_NONCE
    assert refusal(lambda: judge(MASA_SIGNS.voucher(nonce=NONCE + "="))) is Refusal.WRONG_NONCE
    nonceless = MASA_SIGNS.voucher(nonce=None, expires_on=LATER)
    assert judge(nonceless).nonce is None
    assert judge(nonceless, nonce=None).nonce is None
    assert refusal(lambda: judge(nonceless, allow_nonceless=False)) is Refusal.NONCELESS


def test_times() -> None:
    """covers: P-43"""
    nonceless = MASA_SIGNS.voucher(nonce=None, expires_on=LATER)
    assert judge(nonceless, when=LATER - timedelta(seconds=1)).expires_on == LATER
    assert refusal(lambda: judge(nonceless, when=LATER)) is Refusal.EXPIRED
    assert judge(nonceless, when=None).expires_on == LATER
    ahead = NOW + CLOCK_TOLERANCE
    assert judge(MASA_SIGNS.voucher(created_on=ahead, when=ahead)).created_on == ahead
    too_far = ahead + timedelta(seconds=1)
    assert refusal(lambda: judge(MASA_SIGNS.voucher(created_on=too_far))) is Refusal.NOT_YET_VALID
    assert refusal(lambda: judge(MASA_SIGNS.voucher(when=too_far))) is Refusal.NOT_YET_VALID
    assert judge(MASA_SIGNS.voucher(created_on=too_far, when=too_far), when=None).created_on == too_far
    assert judge(MASA_SIGNS.voucher(created_on=None, when=None)).created_on is None


def test_assertion() -> None:
    """covers: P-44"""
    strict = {"accept": (Assertion.VERIFIED, Assertion.PROXIMITY)}
    for assertion in Assertion:
        data = MASA_SIGNS.voucher(assertion=assertion)
        assert judge(data).assertion is assertion
        if assertion in strict["accept"]:
            assert judge(data, **strict).assertion is assertion
        else:
            refused = refusal(lambda other=data: judge(other, **strict))
            assert refused is Refusal.ASSERTION_NOT_ACCEPTABLE
    silent = MASA_SIGNS.signed(json_of(pinned_domain_cert=encode_binary(der(DOMAIN.certificate))))
    assert judge(silent).assertion is None
    assert refusal(lambda: judge(silent, **strict)) is Refusal.ASSERTION_NOT_ACCEPTABLE


def json_of(**leaves: Any) -> bytes:
    """A voucher of these leaves, such as Minerva would not make."""
    members = {name.replace("_", "-"): value for name, value in leaves.items()}
    return json.dumps({"ietf-voucher:voucher": {"serial-number": SERIAL_NUMBER, **members}}).encode()


@pytest.mark.parametrize("pin", [None, "", "AAAA"])
def test_no_pinned_certificate(pin: str | None) -> None:
    """covers: P-45"""
    data = MASA_SIGNS.signed(json_of(assertion="logged", pinned_domain_cert=pin))
    assert refusal(lambda: judge(data)) is Refusal.NO_PINNED_CERTIFICATE
    bare = Voucher.decode(json_of())
    assert refusal(lambda: check_registrar_chain(bare, TLS_CHAIN, NOW)) is Refusal.NO_PINNED_CERTIFICATE


def test_unknown_members() -> None:
    """covers: P-45, V-1"""
    pin = encode_binary(der(DOMAIN.certificate))
    data = json_of(assertion="logged", pinned_domain_cert=pin, flavour={"of": ["ice"]}, est_domain="x")
    assert judge(MASA_SIGNS.signed(data)).assertion is Assertion.LOGGED


def test_pinned_out_of_time() -> None:
    """covers: P-43"""
    old = Ca.root("Old", "p256/old", end=NOW - timedelta(hours=1)).certificate
    new = Ca.root("New", "p256/new", start=NOW + timedelta(hours=1)).certificate
    for certificate in (old, new):
        data = MASA_SIGNS.voucher(pinned_domain_cert=der(certificate))
        assert refusal(lambda other=data: judge(other)) is Refusal.PINNED_OUT_OF_TIME
        assert judge(data, when=None).pinned_domain_cert == der(certificate)


def test_pinned_registrar() -> None:
    """The registrar's own key, in its certificate or in another; of no CA, and for whatever purpose.

    covers: P-46
    """
    voucher = pinning(REGISTRAR)
    assert check_registrar_chain(voucher, TLS_CHAIN, NOW) == (REGISTRAR,)
    renewed = ISSUING.node(subject=subject("Renewed"), kind="p256/registrar")
    assert check_registrar_chain(voucher, (renewed,), NOW) == (renewed,)
    late = ISSUING.node(subject=subject("Late"), kind="p256/registrar", start=NOW + DAY)
    assert refusal(lambda: check_registrar_chain(voucher, (late,), NOW)) is Refusal.REGISTRAR_OUT_OF_TIME
    assert check_registrar_chain(voucher, (late,), None) == (late,)
    selfish = Ca.root("Selfish", "p256/selfish")
    assert check_registrar_chain(pinning(selfish.certificate), (selfish.certificate,), NOW)
    # A certificate without basicConstraints is the anchor for its own key only.
    bare = ISSUING.node(subject=subject("Bare"), kind="p256/bare", ca=None)
    under = Ca(bare, key("p256/bare")).node(subject=subject("Under"), extensions=[cmc_ra()])
    assert (
        refusal(lambda: check_registrar_chain(pinning(bare), (under,), NOW)) is Refusal.REGISTRAR_NOT_PINNED
    )


def test_pinned_ca() -> None:
    """The root, or the one below it; its keyUsage may be missing.

    covers: P-46, P-47, P-48
    """
    for pin, path in (
        (DOMAIN.certificate, (*TLS_CHAIN, DOMAIN.certificate)),
        (ISSUING.certificate, (REGISTRAR, ISSUING.certificate)),
    ):
        voucher = pinning(pin)
        assert check_registrar_chain(voucher, TLS_CHAIN, NOW) == path
        assert (
            check_registrar_chain(voucher, (*TLS_CHAIN, MAKER.certificate, DOMAIN.certificate), NOW) == path
        )
    voucher = pinning(DOMAIN.certificate)
    assert refusal(lambda: check_registrar_chain(voucher, (REGISTRAR,), NOW)) is Refusal.REGISTRAR_NOT_PINNED
    assert refusal(lambda: check_registrar_chain(voucher, (), NOW)) is Refusal.REGISTRAR_NOT_PINNED
    assert refusal(lambda: check_registrar_chain(voucher, (MASA,), NOW)) is Refusal.REGISTRAR_NOT_PINNED
    unrelated = pinning(Ca.root("Domain", "p256/unrelated").certificate)
    refused = refusal(lambda: check_registrar_chain(unrelated, TLS_CHAIN, NOW))
    assert refused is Refusal.REGISTRAR_NOT_PINNED
    assert check_registrar_chain(voucher, TLS_CHAIN, None)
    in_a_year = NOW + timedelta(days=365)
    assert (
        refusal(lambda: check_registrar_chain(voucher, TLS_CHAIN, in_a_year)) is Refusal.REGISTRAR_OUT_OF_TIME
    )


def test_any_other_node_of_the_domain() -> None:
    """It has a path to the pinned CA, but is not a registrar.

    covers: P-46, P-48
    """
    voucher = pinning(DOMAIN.certificate)
    web = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")])
    server = ISSUING.node(subject=subject("Web"), kind="p256/node", extensions=[(web, False)])
    for certificate in (NODE, server):
        chain = (certificate, ISSUING.certificate)
        refused = refusal(lambda other=chain: check_registrar_chain(voucher, other, NOW))
        assert refused is Refusal.REGISTRAR_NOT_AUTHORIZED


def test_weak_key_of_the_registrar() -> None:
    weak = ISSUING.node(subject=subject("Weak"), kind="rsa1024", extensions=[cmc_ra()])
    chain = (weak, ISSUING.certificate)
    for pin in (weak, DOMAIN.certificate):
        voucher = pinning(pin)
        refused = refusal(lambda other=voucher: check_registrar_chain(other, chain, NOW))
        assert refused is Refusal.REGISTRAR_NOT_PINNED


class _Knows:
    """Knows of one status."""

    def __init__(self, status: RevocationStatus) -> None:
        self._status = status
        self.asked = 0

    def status(
        self,
        certificate: x509.Certificate,  # noqa: ARG002
        issuer: x509.Certificate,  # noqa: ARG002
        when: datetime | None,  # noqa: ARG002
    ) -> RevocationStatus:
        self.asked += 1
        return self._status


def test_revocation() -> None:
    """covers: P-44"""
    good, revoked = _Knows(RevocationStatus.GOOD), _Knows(RevocationStatus.REVOKED)
    unknown = _Knows(RevocationStatus.UNAVAILABLE)
    must = pinning(DOMAIN.certificate, domain_cert_revocation_checks=True)
    must_not = pinning(DOMAIN.certificate, domain_cert_revocation_checks=False)
    as_usual = pinning(DOMAIN.certificate)
    for voucher in (must, must_not, as_usual):
        assert check_registrar_chain(voucher, TLS_CHAIN, NOW, revocation=good)
    assert good.asked == 4
    for voucher in (must, as_usual):
        refused = refusal(
            lambda other=voucher: check_registrar_chain(other, TLS_CHAIN, NOW, revocation=revoked)
        )
        assert refused is Refusal.REGISTRAR_REVOKED
    assert check_registrar_chain(must_not, TLS_CHAIN, NOW, revocation=revoked)
    for voucher in (must_not, as_usual):
        assert check_registrar_chain(voucher, TLS_CHAIN, NOW, revocation=unknown)
        assert check_registrar_chain(voucher, TLS_CHAIN, NOW)
    for knows in (unknown, None):
        refused = refusal(lambda other=knows: check_registrar_chain(must, TLS_CHAIN, NOW, revocation=other))
        assert refused is Refusal.REVOCATION_UNKNOWN


def test_what_the_registrar_is_told() -> None:
    """Nothing of the device's clock, its nonce or its policy.

    covers: P-50
    """
    assert {reason.report for reason in Refusal} == {
        "the voucher was not accepted",
        "the registrar's certificate does not match the voucher",
    }
    assert len({reason.sentence for reason in Refusal}) == len(Refusal)


def test_a_serial_number_of_a_stranger_is_harmless_to_show() -> None:
    with pytest.raises(VoucherRefused) as caught:
        judge(MASA_SIGNS.voucher(serial_number="\u202etxt\u0085" + "x" * 200))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_aki_with_more_than_a_key() -> None:
    """covers: P-41"""
    issuer, number = MAKER.certificate.subject, MAKER.certificate.serial_number
    long = x509.AuthorityKeyIdentifier(b"\x01" * 20, [x509.DirectoryName(issuer)], number)
    device = MAKER.node(subject=device_subject(), kind="p256/device", extensions=[(long, False)])
    assert aki(MAKER)[0] != long
    data = MASA_SIGNS.voucher(idevid_issuer=authority_key_identifier_value(device))
    assert judge(data, certificate=device).serial_number == SERIAL_NUMBER
    assert refusal(lambda: judge(data)) is Refusal.WRONG_ISSUER
