"""The built-in CA: certificates, CRLs, and a new CA in the place of the old one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from minerva.brski.registrar.authority import current_crl
from minerva.brski.registrar.database import reading, writing
from minerva.brski.registrar.devices import get_device, revoke_device
from minerva.brski.registrar.domain import load_domain
from minerva.brski.registrar.errors import RegistrarError
from tests.brski.registrar.world import Registrar, make_registrar


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
