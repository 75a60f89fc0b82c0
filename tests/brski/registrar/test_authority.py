"""The built-in CA: certificates, CRLs, and a new CA in the place of the old one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from minerva.brski.registrar import rollover
from minerva.brski.registrar.authority import current_crl, issuer_identifier
from minerva.brski.registrar.database import reading, writing
from minerva.brski.registrar.devices import get_device, revoke_device
from minerva.brski.registrar.domain import load_domain
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.identity import load_service
from minerva.brski.registrar.rollover import roll_over
from minerva.brski.registrar.service_certificate import renew_service
from minerva.cli.registrar import registrar as command
from minerva.pki.errors import AuthorityError, PathError
from minerva.pki.path import validate_path
from tests.brski.registrar.world import Identity, Registrar, make_registrar


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[Registrar]:
    made = make_registrar(tmp_path)
    yield made
    made.engine.dispose()


def revoke(registrar: Registrar, serial_number: str) -> None:
    with writing(registrar.engine) as connection:
        row = get_device(connection, registrar.device_id(serial_number), lock=True)
        assert row is not None
        revoke_device(connection, row, reason="stolen", when=registrar.now)


def crl_of(registrar: Registrar, issuer: str | None = None) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(
        current_crl(registrar.engine, registrar.authority, registrar.now, issuer).der
    )


def number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_what_a_certificate_of_a_device_is_like(registrar: Registrar) -> None:
    """covers: 6.2.5.3-1"""
    enrolled = registrar.enroll(registrar.vouchered("SN-1"))
    certificate = enrolled.certificate
    extensions = certificate.extensions
    (point,) = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    with reading(registrar.engine) as connection:
        domain = load_domain(connection)
    assert point.full_name is not None
    assert point.full_name[0].value == (
        f"http://[{registrar.made.service_address}]:8080/crl/{domain.issuing}"
    )
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_after_utc - registrar.now <= timedelta(days=30)


def test_a_revoked_certificate_is_on_the_crl_at_once(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    old, new = registrar.enroll(device), registrar.enroll(device)
    other = registrar.enroll(registrar.vouchered("SN-2"))
    before = crl_of(registrar)
    assert not list(before)
    revoke(registrar, "SN-1")
    after = crl_of(registrar)
    serials = {identity.certificate.serial_number for identity in (old, new)}
    assert {entry.serial_number for entry in after} == serials
    assert after.get_revoked_certificate_by_serial_number(other.certificate.serial_number) is None
    assert number(after) == number(before) + 1
    assert after.is_signature_valid(registrar.est.ca_certificates()[0].public_key())
    assert after.next_update_utc == (registrar.now + timedelta(hours=1)).replace(microsecond=0)


def test_expired_certificates_are_no_longer_on_the_crl(registrar: Registrar) -> None:
    registrar.enroll(registrar.vouchered("SN-1"))
    revoke(registrar, "SN-1")
    assert len(list(crl_of(registrar))) == 1
    registrar.now += timedelta(days=31)
    assert not list(crl_of(registrar))


def test_a_crl_is_made_anew_when_half_of_its_time_is_over(registrar: Registrar) -> None:
    first = crl_of(registrar)
    registrar.now += timedelta(minutes=29)
    assert crl_of(registrar) == first
    registrar.now += timedelta(minutes=2)
    second = crl_of(registrar)
    assert number(second) == number(first) + 1
    assert second.last_update_utc == registrar.now.replace(microsecond=0)


def test_many_who_ask_at_once_make_one(registrar: Registrar) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: number(crl_of(registrar)), range(16)))
    assert found == [1] * 16


def test_the_crl_of_a_ca_that_is_not_ours(registrar: Registrar) -> None:
    with pytest.raises(RegistrarError, match="there is no CRL of a CA 00ff"):
        crl_of(registrar, "00ff")


def test_a_ca_that_works(registrar: Registrar) -> None:
    """covers: 6.2.5.1-5"""
    with reading(registrar.engine) as connection:
        domain = load_domain(connection)
    assert registrar.authority.problem(domain, registrar.now) is None
    late = registrar.now + timedelta(days=3651)
    problem = registrar.authority.problem(domain, late)
    assert problem is not None
    assert "expired on" in problem
    assert "minerva registrar rollover" in problem


def test_a_ca_whose_key_is_not_there(registrar: Registrar) -> None:
    """covers: 6.2.5.1-5"""
    (registrar.made.directory / "ca" / "issuing" / "ca-key.pem").unlink()
    with reading(registrar.engine) as connection:
        domain = load_domain(connection)
    problem = registrar.authority.problem(domain, registrar.now)
    assert problem is not None
    assert "ca-key.pem" in problem


def test_the_roots_key_may_be_away(registrar: Registrar) -> None:
    (registrar.made.directory / "ca" / "root" / "ca-key.pem").unlink()
    registrar.enroll(registrar.vouchered("SN-1"))
    crl_of(registrar)


def test_lifetimes_of_seconds(tmp_path: Path) -> None:
    registrar = make_registrar(
        tmp_path, certificate_lifetime=timedelta(seconds=120), crl_lifetime=timedelta(seconds=10)
    )
    enrolled = registrar.enroll(registrar.vouchered("SN-1"))
    assert enrolled.certificate.not_valid_after_utc == (registrar.now + timedelta(seconds=120)).replace(
        microsecond=0
    )
    first = number(crl_of(registrar))
    registrar.now += timedelta(seconds=6)
    assert number(crl_of(registrar)) == first + 1
    registrar.engine.dispose()


# Rollover


def trusts(identity: Identity, anchors: tuple[x509.Certificate, ...], when: datetime) -> bool:
    try:
        validate_path(identity.certificates, anchors, when)
    except PathError:
        return False
    return True


def anchors_of(registrar: Registrar) -> tuple[x509.Certificate, ...]:
    """The trust anchors that a client takes from /cacerts now."""
    return tuple(
        one for one in registrar.est.ca_certificates() if one.issuer == one.subject and self_signed(one)
    )


def self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, InvalidSignature):
        return False
    return True


def chain_of(registrar: Registrar) -> tuple[x509.Certificate, ...]:
    """What a client sends along with its certificate."""
    return tuple(one for one in registrar.est.ca_certificates() if not self_signed(one))


@pytest.mark.parametrize("new_root", [False, True])
def test_rollover_without_an_outage(registrar: Registrar, new_root: bool) -> None:
    """covers: E-4"""
    before = registrar.anchors
    device = registrar.vouchered("SN-1")
    old = registrar.enroll(device)
    made = roll_over(registrar.made.directory, registrar.engine, now=registrar.now, new_root=new_root)
    assert (made.root is not None) is new_root

    after = anchors_of(registrar)
    assert set(before) < set(after) if new_root else set(before) == set(after)
    new = replace(registrar.enroll(registrar.vouchered("SN-2")), chain=chain_of(registrar))
    assert new.certificate.issuer == old.certificate.issuer
    assert issuer_identifier(new.certificate) != issuer_identifier(old.certificate)
    # Whoever has renewed and whoever has not accept each other.
    for identity in (old, new):
        for anchors in (before, after):
            assert trusts(identity, anchors, registrar.now)
    # So they do with the registrar, whose certificate is a new one.
    service = load_service(registrar.made.directory / "service")
    shown = Identity(service.certificate, service.key, service.chain)
    assert issuer_identifier(service.certificate) == issuer_identifier(new.certificate)
    assert trusts(shown, before, registrar.now)
    assert trusts(shown, after, registrar.now)
    assert set(service.anchors) == set(after)
    # The old node renews, and gets what is new.
    renewed = replace(registrar.enroll(old, renew=True), chain=chain_of(registrar))
    assert issuer_identifier(renewed.certificate) == issuer_identifier(new.certificate)
    assert trusts(renewed, before, registrar.now)
    assert trusts(renewed, after, registrar.now)


def test_crls_during_a_rollover(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    old = registrar.enroll(device)
    issuer = issuer_identifier(old.certificate)
    roll_over(registrar.made.directory, registrar.engine, now=registrar.now)
    new = registrar.enroll(device)
    revoke(registrar, "SN-1")
    found = {
        issuer_identifier(one.certificate): crl_of(registrar, issuer_identifier(one.certificate))
        for one in (old, new)
    }
    assert len(found) == 2
    assert [entry.serial_number for entry in found[issuer]] == [old.certificate.serial_number]
    assert crl_of(registrar) == found[issuer_identifier(new.certificate)]
    assert {entry.serial_number for entry in crl_of(registrar)} == {new.certificate.serial_number}


def test_other_processes_change_over_at_once(registrar: Registrar) -> None:
    other = Registrar(registrar.made, registrar.engine, registrar.maker, registrar.now)
    device = registrar.vouchered("SN-1")
    old = other.enroll(device)
    roll_over(registrar.made.directory, registrar.engine, now=registrar.now, new_root=True)
    new = other.enroll(device)
    assert issuer_identifier(new.certificate) != issuer_identifier(old.certificate)
    assert set(anchors_of(other)) == set(anchors_of(registrar))


def test_the_old_root_goes_when_nobody_needs_it(registrar: Registrar) -> None:
    before = registrar.anchors
    roll_over(
        registrar.made.directory, registrar.engine, now=registrar.now, new_root=True, keep=timedelta(days=1)
    )
    assert len(registrar.est.ca_certificates()) == 6
    registrar.now += timedelta(days=1, seconds=1)
    issuing, root = registrar.est.ca_certificates()
    assert root not in before
    issuing.verify_directly_issued_by(root)


def test_two_rollovers(registrar: Registrar) -> None:
    device = registrar.vouchered("SN-1")
    first = registrar.enroll(device)
    for new_root in (True, False, True):
        roll_over(registrar.made.directory, registrar.engine, now=registrar.now, new_root=new_root)
    last = replace(registrar.enroll(device), chain=chain_of(registrar))
    anchors = anchors_of(registrar)
    assert len(anchors) == 3
    assert trusts(first, anchors, registrar.now)
    assert trusts(last, registrar.anchors, registrar.now)


def test_a_rollover_without_the_roots_key(registrar: Registrar) -> None:
    (registrar.made.directory / "ca" / "root" / "ca-key.pem").unlink()
    with pytest.raises(AuthorityError, match="a rollover needs the root's key: put it into"):
        roll_over(registrar.made.directory, registrar.engine, now=registrar.now)


def test_a_rollover_that_fails_changes_nothing(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = registrar.est.ca_certificates()
    monkeypatch.setattr(rollover, "_change_over", fail)
    with pytest.raises(OSError, match="No space left"):
        roll_over(registrar.made.directory, registrar.engine, now=registrar.now, new_root=True)
    assert registrar.est.ca_certificates() == before
    assert sorted(path.name for path in (registrar.made.directory / "ca").iterdir()) == ["issuing", "root"]


def test_the_rollover_command(registrar: Registrar) -> None:
    arguments = ["rollover", "--dir", str(registrar.made.directory)]
    done = CliRunner().invoke(command, [*arguments, "--root", "--keep", "60", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.output)
    assert Path(answer["issuing"]).name == "issuing-2"
    assert Path(answer["root"]).name == "root-2"
    done = CliRunner().invoke(command, arguments)
    assert "issuing-3" in done.output


# The registrar's own certificate


def test_the_service_certificate_is_renewed_in_time(registrar: Registrar) -> None:
    directory = registrar.made.directory
    old = load_service(directory / "service")
    for days in (0, 59):
        now = registrar.now + timedelta(days=days)
        assert renew_service(directory, registrar.engine, registrar.authority, now=now) is None
    now = registrar.now + timedelta(days=61)
    new = renew_service(directory, registrar.engine, registrar.authority, now=now)
    assert new == load_service(directory / "service").certificate
    assert new.public_key() != old.certificate.public_key()
    names = [
        one.extensions.get_extension_for_class(x509.SubjectAlternativeName) for one in (old.certificate, new)
    ]
    assert names[0] == names[1]
