"""What the supervisor of a member takes from its children."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.connect import messages as m
from minerva.connect.member import renewal_problem
from minerva.core.secret import Secret
from minerva.pki.ca import CertificateAuthority, Issued
from minerva.pki.identity import Identity
from minerva.pki.keys import dump_private_key, generate_key

NOW = datetime.now(UTC)
SERVER = IPv6Address("fd00::1")


def identity(issued: Issued) -> Identity:
    return Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create("example.com", tmp_path / "ca")


def key_of(issued: Issued) -> bytes:
    assert issued.private_key is not None
    return dump_private_key(issued.private_key)


def problem(old: Issued, new: Issued, *, key: bytes | None = None, port: int = 8443) -> str | None:
    pem = key_of(new) if key is None else key
    return renewal_problem(
        identity(old), identity(new), m.Renewed(b"", b"", b"", Secret(pem), SERVER, port), NOW
    )


def test_a_renewed_certificate(ca: CertificateAuthority) -> None:
    """What a plane that has gone astray has kept would else end the node for good."""
    old = ca.issue(now=NOW)
    new_key = generate_key("p256")
    certificate = ca.certify(new_key.public_key(), old.node_name, lifetime=timedelta(days=1), now=NOW)
    new = Issued(certificate, old.chain, old.anchors, old.node_name, old.address, new_key)
    assert problem(old, new) is None
    assert "another key" in str(problem(old, new, key=key_of(old)))
    assert problem(old, new, key=b"no key") is not None
    for port in (0, -1, 65_536):
        assert "port" in str(problem(old, new, port=port))
    assert "another node" in str(problem(old, ca.issue(now=NOW)))


def test_one_that_does_not_fit_its_anchors(ca: CertificateAuthority, tmp_path: Path) -> None:
    old = ca.issue(now=NOW)
    stranger = CertificateAuthority.create("example.com", tmp_path / "other")
    foreign = Issued(
        old.certificate,
        old.chain,
        stranger.issue(now=NOW).anchors,
        old.node_name,
        old.address,
        old.private_key,
    )
    assert "no path to a trust anchor" in str(problem(old, foreign))
    expired = ca.issue(lifetime=timedelta(hours=1), now=NOW - timedelta(hours=3))
    assert "expired" in str(problem(expired, expired))
