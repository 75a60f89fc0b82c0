"""The requests of RFC 8995 appendix C and of RFC 8366bis, as a MASA sees them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from minerva.brski.masa.requests import Prior, check_prior, open_request
from minerva.pki.certificates import load_pem
from minerva.pki.idevid import domain_id

WHEN = datetime(2021, 4, 14, 12, tzinfo=UTC)


@pytest.fixture
def examples(fixtures: Path) -> Path:
    return fixtures / "rfc8995"


def certificate(folder: Path, name: str) -> x509.Certificate:
    (path,) = (each for each in folder.glob(f"{name}*") if b"BEGIN CERTIFICATE" in each.read_bytes())
    (found,) = load_pem(path.read_bytes())
    return found


def test_the_registrars_request_of_appendix_c(examples: Path) -> None:
    """covers: M-3, M-4, M-6, M-7, M-9"""
    maker, domain = certificate(examples, "C1.1"), certificate(examples, "C1.3")
    (path,) = examples.glob("C2.2*.cms.der")
    request = open_request(path.read_bytes(), WHEN)
    assert request.request.serial_number == "00-D0-E5-F2-00-02"
    assert request.registrar == certificate(examples, "C1.4")
    assert request.lowest_ca in (domain, request.registrar)
    assert check_prior(request, (maker,), (maker,), WHEN) == Prior(proximity=True)


def test_domain_ids(examples: Path) -> None:
    """covers: M-17"""
    from base64 import b64encode

    for name, wanted in (
        ("C1.4", "Oy6w2vS8ar8m/FtEHuzs7sl7LSD3pW9yTCgCecoIL3M="),
        ("C1.3", "uaX2yxHhB6RJLKcIxnwQvIezdCY="),
    ):
        assert b64encode(domain_id(certificate(examples, name))).decode() == wanted
