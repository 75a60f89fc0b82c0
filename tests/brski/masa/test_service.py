"""Who gets a voucher and what it says; who may read a log."""

from __future__ import annotations

from base64 import b64encode, encodebytes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minerva.brski.masa.database import KEPT_VOUCHERS, LogEntry
from minerva.brski.masa.errors import Refusal
from minerva.brski.masa.service import MAX_EVENTS, audit_log
from minerva.pki.certificates import ID_KP_CMC_RA, load_certificate
from minerva.pki.idevid import authority_key_identifier_value, domain_id
from minerva.pki.keys import generate_key
from minerva.voucher.check import check_registrar_chain
from minerva.voucher.cms import ANIMA_JSON_VOUCHER, DATA, open_signed, sign
from minerva.voucher.errors import VoucherRefused
from minerva.voucher.model import Assertion, VoucherRequest
from tests.brski.masa.world import NOW, Domain, Maker, new_nonce


def refusal(status: int, words: str, ask: Callable[[], object]) -> None:
    """``ask`` is refused."""
    with pytest.raises(Refusal) as caught:
        ask()
    assert caught.value.status == status, caught.value
    assert words in caught.value.reason


def rejects(maker: Maker, request: bytes, status: int, words: str, *, when: datetime = NOW) -> None:
    """The request is refused, and nothing is written."""

    def contents() -> list[object]:
        records = list(maker.database.devices())
        return [(record, maker.database.log(record), maker.database.vouchers(record)) for record in records]

    before = contents()
    refusal(status, words, lambda: maker.ask(request, when))
    assert contents() == before


def test_a_device_and_its_registrar_get_a_voucher_with_proximity(maker: Maker, domain: Domain) -> None:
    """The whole of a nonced request, as the pledge sees it.

    covers: M-1, M-6, M-7, M-9, M-10, M-14, R-40, R-41, V-5, P-40
    """
    device = maker.device()
    request, nonce = domain.proximity_request(
        device, idevid_issuer=authority_key_identifier_value(device.certificate)
    )
    data = maker.ask(request)
    voucher = device.check(data, nonce)
    assert voucher.assertion is Assertion.PROXIMITY
    assert voucher.nonce == nonce
    assert voucher.expires_on is None
    assert voucher.created_on == NOW
    assert voucher.idevid_issuer is None
    assert voucher.domain_cert_revocation_checks is False
    assert voucher.pinned_domain_cert == domain.issuing.certificate.public_bytes(Encoding.DER)
    check_registrar_chain(voucher, (domain.registrar, *domain.chain), NOW)
    signed = open_signed(data)
    assert signed.content_type == ANIMA_JSON_VOUCHER
    assert set(signed.certificates) == {
        maker.authority.signer.certificate,
        maker.authority.vouchers,
        maker.authority.root,
    }
    (entry,) = maker.database.log(maker.record(device))
    assert (entry.nonce, entry.assertion) == (nonce, "proximity")
    assert entry.domain_id == domain_id(domain.issuing.certificate)


def test_an_unknown_domain_is_trusted_for_the_moment(maker: Maker, domain: Domain) -> None:
    """Only the registrar's certificate, its CA, or the whole chain may come along.

    covers: M-3, M-9
    """
    for chain, pinned in (
        ((), domain.registrar),
        (domain.issuing.chain, domain.issuing.certificate),
        ((domain.root.certificate, *domain.issuing.chain), domain.issuing.certificate),
    ):
        device, nonce = maker.device(), new_nonce()
        data = maker.ask(domain.request(device.serial_number, nonce, chain=chain))
        voucher = device.check(data, nonce)
        assert voucher.pinned_domain_cert == pinned.public_bytes(Encoding.DER)
        assert voucher.assertion is Assertion.LOGGED
        check_registrar_chain(voucher, (domain.registrar, *domain.chain), NOW)


def test_a_chain_that_is_not_of_one_piece_is_refused(maker: Maker, domain: Domain, tmp_path: Path) -> None:
    """covers: M-3"""
    device = maker.device()
    namesake = Domain(domain.name, tmp_path / "namesake")
    request = domain.request(device.serial_number, new_nonce(), chain=namesake.chain)
    rejects(maker, request, 403, "is not our CA of that name")
    request = domain.request(device.serial_number, new_nonce())
    later = NOW + timedelta(days=60)
    rejects(maker, request, 403, "expired", when=later)


def test_the_signature_is_checked(maker: Maker, domain: Domain) -> None:
    """covers: M-3, M-13"""
    device = maker.device()
    request = bytearray(domain.request(device.serial_number, new_nonce()))
    where = request.index(device.serial_number.encode())
    request[where] ^= 1
    rejects(maker, bytes(request), 403, "not signed correctly")
    rejects(maker, b"", 400, "cannot be read")
    rejects(maker, b"\x30\x80" * 1000, 400, "cannot be read")
    rejects(maker, sign(b"{}", domain.key, domain.registrar, when=NOW), 400, "cannot be read")


def test_only_a_registrar_may_ask(maker: Maker, tmp_path: Path) -> None:
    """covers: M-4"""
    device = maker.device()
    for number, usages in enumerate(([], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])):
        member = Domain("acp.example.com", tmp_path / str(number), usages=usages)
        request, _ = member.proximity_request(device)
        rejects(maker, request, 403, "id-kp-cmcRA")


def test_the_request_of_the_device_has_to_fit(maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-6, M-7"""
    device, second = maker.device(), maker.device()
    serial, nonce = device.serial_number, new_nonce()

    def ask(prior: bytes, words: str, chosen: str | None = nonce) -> None:
        rejects(maker, domain.request(serial, chosen, prior=prior), 403, words)

    ask(second.request(domain.registrar, nonce), "is signed by the device")
    ask(second.request(domain.registrar, nonce, serial_number=serial), "is signed by the device")
    ask(device.request(domain.registrar, nonce, serial_number=second.serial_number), "is for the device")
    ask(device.request(other.registrar, nonce), "another registrar")
    ask(device.request(None, nonce), "no proximity-registrar-cert")
    ask(device.request(None, nonce, proximity_registrar_cert=b"0"), "not a certificate")
    ask(device.request(domain.registrar, new_nonce()), "nonce")
    ask(device.request(domain.registrar, None), "nonce")
    ask(device.request(domain.registrar, nonce), "nonce", None)
    ask(b"garbage", "not signed correctly")
    ask(sign(b"{}", device.key, device.certificate, when=NOW), "cannot be read")
    stranger = generate_key("p256")
    forged = VoucherRequest(
        serial_number=serial,
        nonce=nonce,
        proximity_registrar_cert=domain.registrar.public_bytes(Encoding.DER),
    )
    ask(sign(forged.encode(), domain.key, domain.registrar, domain.chain, when=NOW), "not signed by a device")
    with pytest.raises(ValueError):
        sign(forged.encode(), stranger, device.certificate, when=NOW)
    assert device.check(maker.ask(domain.proximity_request(device, nonce)[0]), nonce)


def test_the_proximity_certificate_may_be_another_of_the_same_key(maker: Maker, domain: Domain) -> None:
    """What counts is the fingerprint of its SubjectPublicKeyInfo.

    covers: M-6
    """
    device, nonce = maker.device(), new_nonce()
    renewed = domain.certify()
    assert renewed != domain.registrar
    request = domain.request(device.serial_number, nonce, prior=device.request(renewed, nonce))
    assert device.check(maker.ask(request), nonce).assertion is Assertion.PROXIMITY


def test_a_device_without_chain_is_known_all_the_same(maker: Maker, domain: Domain) -> None:
    device, nonce = maker.device(), new_nonce()
    device.chain = ()
    request = domain.request(device.serial_number, nonce, prior=device.request(domain.registrar, nonce))
    assert device.check(maker.ask(request), nonce).assertion is Assertion.PROXIMITY


def test_a_device_cannot_make_vouchers(maker: Maker, domain: Domain) -> None:
    """Not even with a chain up to the maker's root: devices trust the CA for vouchers alone.

    covers: P-40
    """
    thief, victim = maker.device(), maker.device()
    nonce = new_nonce()
    payload = open_signed(maker.ask(domain.request(victim.serial_number, nonce))).payload
    forged = sign(payload, thief.key, thief.certificate, (*thief.chain, maker.authority.root), when=NOW)
    with pytest.raises(VoucherRefused):
        victim.check(forged, nonce)


def test_what_a_registrar_may_not_say_is_ignored(maker: Maker, domain: Domain) -> None:
    """covers: M-8"""
    device, nonce = maker.device(), new_nonce()
    request = domain.request(
        device.serial_number,
        nonce,
        assertion=Assertion.VERIFIED,
        proximity_registrar_cert=domain.registrar.public_bytes(Encoding.DER),
    )
    assert device.check(maker.ask(request), nonce).assertion is Assertion.LOGGED


def test_unknown_devices(maker: Maker, domain: Domain) -> None:
    """covers: M-13, M-10"""
    device = maker.device()
    for serial_number in ("nobody", "é" * 200):
        rejects(maker, domain.request(serial_number, new_nonce()), 404, "not known")
    wrong = authority_key_identifier_value(domain.registrar)
    rejects(maker, domain.request(device.serial_number, new_nonce(), idevid_issuer=wrong), 404, "not known")
    whole = authority_key_identifier_value(device.certificate)
    for issuer in (whole, whole[2:], whole[-20:]):
        nonce = new_nonce()
        request = domain.request(device.serial_number, nonce, idevid_issuer=issuer)
        assert device.check(maker.ask(request), nonce)


@pytest.mark.parametrize("nonce", ["x" * 257, "a\0b", "a\nb", "\u202e12345678"])
def test_odd_nonces(maker: Maker, domain: Domain, nonce: str) -> None:
    device = maker.device()
    rejects(maker, domain.request(device.serial_number, nonce), 400, "nonce")


@pytest.mark.parametrize("nonce", ["-_XE9zK9q8Ll1qylMtLKeg", "62a2e7693d82fcda2624de58fb6722e5", "é" * 8])
def test_nonces_are_texts(maker: Maker, domain: Domain, nonce: str) -> None:
    """covers: M-7"""
    device = maker.device()
    request, _ = domain.proximity_request(device, nonce)
    assert device.check(maker.ask(request), nonce).nonce == nonce
    log, _ = maker.masa.request_audit_log(request, NOW)
    assert log.events[0].nonce == nonce


def test_a_second_owner_is_refused_until_the_first_has_released(
    any_maker: Maker, domain: Domain, other: Domain
) -> None:
    """covers: M-13, M-18"""
    maker = any_maker
    device = maker.device()
    first, nonce = domain.proximity_request(device)
    maker.ask(first)
    wanted, _ = other.proximity_request(device)
    rejects(maker, wanted, 403, "belongs to another domain")
    later = NOW + timedelta(minutes=1)
    maker.database.release(device.serial_number, later)
    wanted, other_nonce = other.proximity_request(device, when=later)
    assert device.check(maker.ask(wanted, later), other_nonce, later)
    again, _ = domain.proximity_request(device, when=later)
    for request in (again, first):
        with pytest.raises(Refusal, match="belongs to another domain"):
            maker.ask(request, later)
    log, _ = maker.masa.request_audit_log(wanted, later)
    assert [event.nonce for event in log.events] == [other_nonce, nonce]


def test_what_is_from_before_a_release_is_stale(maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-13"""
    device = maker.device()
    first, _ = domain.proximity_request(device)
    unanswered, _ = other.proximity_request(device)
    maker.ask(first)
    later = NOW + timedelta(minutes=1)
    maker.database.release(device.serial_number, later)
    with pytest.raises(Refusal, match="stale"):
        maker.ask(first, later)
    with pytest.raises(Refusal, match="stale"):
        maker.ask(unanswered, later)
    assert maker.record(device).owner is None


def test_the_same_domain_gets_another_voucher_at_any_time(maker: Maker, domain: Domain) -> None:
    """Also with a new registrar, and with nothing but its certificate.

    covers: M-12
    """
    device = maker.device()
    maker.ask(domain.proximity_request(device)[0])
    owner = maker.record(device).owner
    key, certificate = domain.key, domain.registrar
    try:
        domain.key = generate_key("p256")
        domain.registrar = domain.certify()
        for chain in (None, domain.issuing.chain, ()):
            nonce = new_nonce()
            request = domain.request(device.serial_number, nonce, chain=chain)
            assert device.check(maker.ask(request), nonce)
        assert maker.record(device).owner == owner
        log, _ = maker.masa.request_audit_log(request, NOW)
        assert sum(1 + event.truncated for event in log.events) == 4
    finally:
        domain.key, domain.registrar = key, certificate


def test_an_old_voucher_can_be_renewed(maker: Maker, domain: Domain, other: Domain) -> None:
    """The old one comes in prior-signed-voucher-request.

    covers: V-4, M-12
    """
    device = maker.device()
    maker.database.assign(device.serial_number, domain.owner, nonceless=True, now=NOW)
    old = maker.ask(domain.request(device.serial_number, None))
    later = NOW + timedelta(days=2)
    with pytest.raises(VoucherRefused):
        device.check(old, None, later)
    renewal = domain.request(device.serial_number, None, prior=old, when=later)
    new = maker.ask(renewal, later)
    assert device.check(new, None, later).expires_on == later + timedelta(minutes=20)
    # Not the voucher of another device, of a former owner, of another domain, or of nobody.
    second = maker.device()
    maker.database.assign(second.serial_number, domain.owner, nonceless=True, now=NOW)
    rejects(maker, domain.request(second.serial_number, None, prior=old), 403, "another device")
    rejects(maker, domain.request(device.serial_number, new_nonce(), prior=old), 403, "nonce")
    rejects(maker, other.request(device.serial_number, None, prior=old), 403, "sold to another domain")
    forged = sign(open_signed(old).payload, domain.key, domain.registrar, domain.chain, when=NOW)
    rejects(maker, domain.request(device.serial_number, None, prior=forged), 403, "not one of ours")
    maker.database.release(device.serial_number, later)
    maker.database.assign(device.serial_number, domain.owner, nonceless=True, now=later)
    again = domain.request(device.serial_number, None, prior=old, when=later)
    rejects(maker, again, 403, "former owner", when=later)


def test_vouchers_without_a_nonce_are_for_the_known_and_allowed(
    maker: Maker, domain: Domain, other: Domain
) -> None:
    """covers: M-5, M-7, M-9, M-11, R-43, V-5"""
    device = maker.device()
    request = domain.request(device.serial_number, None)
    rejects(maker, request, 403, "without a nonce")
    maker.database.assign(device.serial_number, domain.owner, nonceless=False, now=NOW)
    rejects(maker, request, 403, "without a nonce")
    maker.database.assign(device.serial_number, domain.owner, nonceless=True, now=NOW)
    rejects(maker, other.request(device.serial_number, None), 403, "sold to another domain")
    voucher = device.check(maker.ask(request), None)
    assert voucher.nonce is None
    assert voucher.expires_on == NOW + timedelta(minutes=20)
    assert voucher.assertion is Assertion.VERIFIED
    # The highest CA that is known: another registrar may use it.
    assert voucher.pinned_domain_cert == domain.root.certificate.public_bytes(Encoding.DER)
    log, _ = maker.masa.request_audit_log(request, NOW)
    (event,) = log.events
    assert event.nonce is None
    assert b'"nonce":null' in log.encode()


def test_a_voucher_expires_before_what_it_rests_on(tmp_path: Path, domain: Domain) -> None:
    """covers: M-11"""
    maker = Maker.create(tmp_path / "masa", voucher_lifetime=3650 * 86400)
    device = maker.device()
    maker.database.assign(device.serial_number, domain.owner, nonceless=True, now=NOW)
    voucher = device.check(maker.ask(domain.request(device.serial_number, None)), None)
    assert voucher.expires_on == domain.registrar.not_valid_after_utc
    maker.close()


def test_sales_that_are_listed(tmp_path: Path, domain: Domain, other: Domain) -> None:
    """covers: M-18, M-5"""
    maker = Maker.create(tmp_path / "masa", sales="listed")
    device = maker.device()
    request, nonce = domain.proximity_request(device)
    rejects(maker, request, 403, "has not been sold")
    maker.database.assign(device.serial_number, domain.owner, nonceless=False, now=NOW)
    rejects(maker, other.proximity_request(device)[0], 403, "sold to another domain")
    assert device.check(maker.ask(request), nonce).assertion is Assertion.PROXIMITY
    plain = new_nonce()
    data = maker.ask(domain.request(device.serial_number, plain, chain=()))
    assert device.check(data, plain).assertion is Assertion.VERIFIED
    maker.close()


def test_sales_by_proof(tmp_path: Path, domain: Domain, other: Domain) -> None:
    """covers: M-6, M-18"""
    maker = Maker.create(tmp_path / "masa", sales="proof")
    device = maker.device()
    rejects(maker, domain.request(device.serial_number, new_nonce()), 403, "speaks with")
    maker.ask(domain.proximity_request(device)[0])
    # Who owns it need not prove it again.
    maker.ask(domain.request(device.serial_number, new_nonce()))
    rejects(maker, other.proximity_request(device)[0], 403, "belongs to another domain")
    maker.close()


def test_blocked_devices(any_maker: Maker, domain: Domain) -> None:
    """covers: M-18, M-13"""
    maker = any_maker
    device = maker.device()
    request, nonce = domain.proximity_request(device)
    maker.database.block(device.serial_number, "stolen\x1b[2J", NOW)
    rejects(maker, request, 403, "blocked")
    assert maker.record(device).blocked == "stolen\\u001b[2J"
    maker.database.unblock(device.serial_number, NOW)
    assert device.check(maker.ask(request), nonce)
    maker.database.block(device.serial_number, "", NOW)
    with pytest.raises(Refusal, match="blocked"):
        maker.ask(request)


def test_requests_of_another_time(maker: Maker, domain: Domain) -> None:
    """covers: M-13"""
    device = maker.device()
    request, _ = domain.proximity_request(device)
    rejects(maker, request, 403, "stale", when=NOW + timedelta(days=6))
    rejects(maker, request, 403, "future", when=NOW - timedelta(days=2))
    undated = domain.request(device.serial_number, new_nonce(), when=None)
    assert maker.ask(undated, NOW + timedelta(days=6))


def test_the_same_request_gets_the_same_voucher(any_maker: Maker, domain: Domain) -> None:
    """A repetition is no second event.

    covers: M-14
    """
    maker = any_maker
    device = maker.device()
    request, nonce = domain.proximity_request(device)
    vouchers = {maker.ask(request, NOW + timedelta(minutes=minute)) for minute in range(5)}
    assert len(vouchers) == 1
    assert device.check(vouchers.pop(), nonce)
    (entry,) = maker.database.log(maker.record(device))
    assert entry.issued == 1
    assert len(maker.database.vouchers(maker.record(device))) == 1


def test_the_log_is_abridged_and_counts(any_maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-14, M-15, M-16, M-17"""
    maker = any_maker
    device = maker.device()
    for minute in range(3):
        when = NOW + timedelta(minutes=minute)
        maker.ask(domain.request(device.serial_number, f"nonce {minute}", when=when), when)
    release = NOW + timedelta(minutes=10)
    maker.database.release(device.serial_number, release)
    maker.database.assign(device.serial_number, other.owner, nonceless=True, now=release)
    for minute in range(11, 13):
        when = NOW + timedelta(minutes=minute)
        maker.ask(other.request(device.serial_number, None, when=when), when)
    request = other.request(device.serial_number, "last", when=when)
    maker.ask(request, when + timedelta(minutes=1))
    log, slug = maker.masa.request_audit_log(request, when)
    assert [(event.nonce, event.truncated) for event in log.events] == [
        ("last", 0),
        (None, 1),
        ("nonce 2", 2),
    ]
    assert [event.domain_id for event in log.events] == [
        domain_id(other.issuing.certificate),
        domain_id(other.root.certificate),
        domain_id(domain.issuing.certificate),
    ]
    assert (log.nonced_duplicates, log.nonceless_duplicates, log.arbitrary) == (2, 1, 0)
    # The former owner may read it as well, with a request of any time.
    former, former_slug = maker.masa.request_audit_log(domain.request(device.serial_number, "x"), when)
    assert former == log
    assert maker.masa.audit_log_at(slug) == maker.masa.audit_log_at(former_slug) == log
    assert len(slug) >= 22
    assert slug != former_slug


def test_who_may_not_read_a_log(maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-15"""
    device, unused = maker.device(), maker.device()
    maker.ask(domain.request(device.serial_number, new_nonce()))
    for request in (
        other.request(device.serial_number, new_nonce()),
        domain.request(unused.serial_number, new_nonce()),
        domain.request("nobody", new_nonce()),
    ):
        refusal(404, "not known", partial(maker.masa.request_audit_log, request, NOW))
    for slug in ("", "x", "\0", "1"):
        refusal(404, "no such log", partial(maker.masa.audit_log_at, slug))
    tampered = bytearray(domain.request(device.serial_number, new_nonce()))
    tampered[-1] ^= 1
    refusal(403, "not signed correctly", lambda: maker.masa.request_audit_log(bytes(tampered), NOW))


def test_counters_end(domain: Domain) -> None:
    """covers: M-16"""
    entry = LogEntry(b"k", b"d", NOW, "n", "logged", 5000, "s")
    log = audit_log([entry, replace(entry, nonce=None, issued=2)] * MAX_EVENTS)
    assert len(log.events) == MAX_EVENTS
    encoded = log.encode()
    assert b'"truncated":1024' in encoded
    assert b'"nonced duplicates":1024' in encoded
    assert b'"arbitrary":1024' in encoded
    assert domain.name


def test_old_vouchers_are_forgotten_but_counted(maker: Maker, domain: Domain) -> None:
    """covers: M-16"""
    device = maker.device()
    total = 2 * KEPT_VOUCHERS
    for number in range(total):
        maker.ask(domain.request(device.serial_number, f"nonce {number}", chain=()))
    record = maker.record(device)
    assert len(maker.database.vouchers(record)) == KEPT_VOUCHERS
    (entry,) = maker.database.log(record)
    assert (entry.issued, entry.nonce) == (total, f"nonce {total - 1}")


def test_of_two_registrars_at_once_one_wins(any_maker: Maker, domain: Domain, other: Domain) -> None:
    """Many times, with two threads each.

    covers: M-14, M-18
    """
    maker = any_maker
    with ThreadPoolExecutor(2) as threads:
        for _ in range(15):
            device = maker.device()
            barrier = Barrier(2)
            requests = [each.proximity_request(device)[0] for each in (domain, other)]

            def ask(request: bytes, barrier: Barrier = barrier) -> bytes | Refusal:
                barrier.wait()
                try:
                    return maker.ask(request)
                except Refusal as refusal:
                    return refusal

            answers = list(threads.map(ask, requests))
            won = [number for number, answer in enumerate(answers) if isinstance(answer, bytes)]
            assert len(won) == 1, answers
            assert "belongs to another domain" in str(answers[1 - won[0]])
            owner = maker.record(device).owner
            assert owner is not None
            assert load_certificate(owner.certificate) == (domain, other)[won[0]].issuing.certificate
            (entry,) = maker.database.log(maker.record(device))
            assert entry.issued == 1


def test_one_registrar_that_asks_twice_at_once(any_maker: Maker, domain: Domain) -> None:
    maker = any_maker
    device = maker.device()
    request, nonce = domain.proximity_request(device)
    others = [domain.request(device.serial_number, f"nonce {number}") for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(maker.ask, [request] * 6))
        assert len(set(answers)) == 1
        assert device.check(answers[0], nonce)
        assert len(set(threads.map(maker.ask, others))) == 6
    (entry,) = maker.database.log(maker.record(device))
    assert entry.issued == 7


def test_assigning_what_is_owned(maker: Maker, domain: Domain, other: Domain) -> None:
    device = maker.device()
    maker.ask(domain.proximity_request(device)[0])
    with pytest.raises(Exception, match="release it first"):
        maker.database.assign(device.serial_number, other.owner, nonceless=False, now=NOW)
    maker.database.assign(device.serial_number, domain.owner, nonceless=False, now=NOW)
    nonce = new_nonce()
    data = maker.ask(domain.request(device.serial_number, nonce))
    assert device.check(data, nonce).assertion is Assertion.VERIFIED


def test_requests_in_other_writings(maker: Maker, domain: Domain) -> None:
    """Of id-data, as all published ones are, and in base64.

    covers: M-3, CM-1, CM-2
    """
    for write in (bytes, b64encode, encodebytes):
        device, nonce = maker.device(), new_nonce()
        payload = VoucherRequest(serial_number=device.serial_number, nonce=nonce).encode()
        request = sign(payload, domain.key, domain.registrar, domain.chain, when=None, content_type=DATA)
        assert device.check(maker.ask(write(request)), nonce)


def test_a_registrar_that_certified_itself(maker: Maker, domain: Domain, tmp_path: Path) -> None:
    """A domain without a CA: its registrar's certificate is all there is.

    covers: M-9, M-12
    """
    alone = Domain("alone.example.com", tmp_path / "alone")
    certify_itself(alone)
    device = maker.device()
    request, nonce = alone.proximity_request(device, chain=())
    voucher = device.check(maker.ask(request), nonce)
    assert voucher.assertion is Assertion.PROXIMITY
    check_registrar_chain(voucher, (alone.registrar,), NOW)
    # Without a SKI the domainID is the fingerprint of the key.
    (event,) = maker.masa.request_audit_log(request, NOW)[0].events
    assert len(event.domain_id) == 32
    rejects(maker, domain.proximity_request(device)[0], 403, "belongs to another domain")


def certify_itself(domain: Domain, *extensions: x509.ExtensionType) -> None:
    """Give the registrar a certificate that it signed itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registrar")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(domain.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ID_KP_CMC_RA]), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    domain.registrar = builder.sign(domain.key, SHA256())


def test_a_borrowed_key_identifier(any_maker: Maker, domain: Domain, tmp_path: Path) -> None:
    """Who takes the domainID of others gets neither their log nor their device.

    covers: M-15, M-17
    """
    maker = any_maker
    thief = Domain("thief.example.com", tmp_path / "thief")
    ski = domain.issuing.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certify_itself(thief, ski)
    device = maker.device()
    maker.ask(domain.proximity_request(device)[0])
    request, _ = thief.proximity_request(device, chain=())
    rejects(maker, request, 403, "belongs to another domain")
    refusal(404, "not known", lambda: maker.masa.request_audit_log(request, NOW))
    maker.database.release(device.serial_number, NOW)
    maker.ask(request)
    log, _ = maker.masa.request_audit_log(request, NOW)
    assert [event.truncated for event in log.events] == [0, 0]
    assert log.events[0].domain_id == log.events[1].domain_id


@pytest.mark.parametrize("size", [0, 65, 4000])
def test_odd_key_identifiers(maker: Maker, tmp_path: Path, size: int) -> None:
    alone = Domain("alone.example.com", tmp_path / "alone")
    certify_itself(alone, x509.SubjectKeyIdentifier(bytes(size)))
    device = maker.device()
    rejects(maker, alone.proximity_request(device, chain=())[0], 403, "subjectKeyIdentifier")
