"""This node's own identity: what is accepted, and what the sentences say."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.core.secret import Secret
from minerva.pki.errors import IdentityError
from minerva.pki.identity import Identity, check_own, finish_storing, load_identity, store_identity

from .certs import DAY, NOW, Ca, node_name

OWN = node_name(1)


@pytest.fixture(scope="module")
def ca() -> Ca:
    return Ca.root()


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def write(directory: Path, cert: bytes, chain: bytes, anchors: bytes) -> Path:
    for name, data in (("cert.pem", cert), ("chain.pem", chain), ("anchors.pem", anchors)):
        (directory / name).write_bytes(data)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_power_fails_while_an_identity_is_stored(
    ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of it: afterwards all is the old one's or all is the new one's, and no more.

    covers: 6.2.5.5-5
    """
    old = {"cert.pem": b"old", "chain.pem": b"old", "anchors.pem": b"old", "key.pem": b"old"}
    identity = Identity.from_certificates(ca.node(OWN), (), (ca.certificate,))
    replace, steps = Path.replace, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal steps
        if steps == 0:
            raise KeyboardInterrupt
        steps -= 1
        return replace(self, target)

    seen = []
    for number in range(9):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, data in old.items():
            (directory / name).write_bytes(data)
        steps = number
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing)
            with suppress(KeyboardInterrupt):
                store_identity(directory, identity, Secret(b"new key"))
        finish_storing(directory)
        found = contents(directory)
        assert sorted(path.name for path in directory.iterdir()) == sorted(old)
        assert found == old or load_identity(directory) == identity
        assert (found["key.pem"] == b"new key") is (found["cert.pem"] != b"old")
        seen.append(found["key.pem"])
    assert seen == [b"old"] * 4 + [b"new key"] * 5
    assert (tmp_path / "8" / "key.pem").stat().st_mode & 0o777 == 0o600


def test_load(ca: Ca, tmp_path: Path) -> None:
    """covers: 6.2.2-2"""
    issuing = ca.ca("Issuing", "p256/issuing")
    leaf = issuing.node(OWN)
    identity = load_identity(write(tmp_path, pem(leaf), pem(*issuing.chain), pem(ca.certificate)))
    assert identity.certificate == leaf
    assert identity.chain == issuing.chain
    assert identity.anchors == (ca.certificate,)
    assert str(identity.node_name) == OWN
    assert identity.address.address == identity.node_name.address
    check_own(identity, NOW)


def test_the_private_key_is_not_read(ca: Ca, tmp_path: Path) -> None:
    write(tmp_path, pem(ca.node(OWN)), b"", pem(ca.certificate))
    # Reading a directory would fail, whoever runs this.
    (tmp_path / "key.pem").mkdir()
    load_identity(tmp_path)


@pytest.mark.parametrize("name", ["cert.pem", "chain.pem", "anchors.pem"])
def test_missing_file(ca: Ca, tmp_path: Path, name: str) -> None:
    write(tmp_path, pem(ca.node(OWN)), b"", pem(ca.certificate))
    (tmp_path / name).unlink()
    with pytest.raises(IdentityError) as caught:
        load_identity(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / name} is missing; make an identity with `minerva ca issue CA_DIR {tmp_path}`"
    )


@pytest.mark.parametrize("name", ["cert.pem", "chain.pem", "anchors.pem"])
def test_not_pem(ca: Ca, tmp_path: Path, name: str) -> None:
    write(tmp_path, pem(ca.node(OWN)), b"", pem(ca.certificate))
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(IdentityError, match=f"{tmp_path}: {name}: not certificates in PEM"):
        load_identity(tmp_path)


def test_unreadable_file(ca: Ca, tmp_path: Path) -> None:
    write(tmp_path, pem(ca.node(OWN)), b"", pem(ca.certificate))
    (tmp_path / "cert.pem").unlink()
    (tmp_path / "cert.pem").mkdir()
    with pytest.raises(IdentityError, match=r"cert\.pem cannot be read: Is a directory"):
        load_identity(tmp_path)


def test_certificate_file_with_the_chain_in_it(ca: Ca) -> None:
    with pytest.raises(IdentityError, match="holds 2 certificates"):
        Identity.from_pem(pem(ca.node(OWN), ca.certificate), b"", pem(ca.certificate))
    with pytest.raises(IdentityError, match="holds 0 certificates"):
        Identity.from_pem(b"\n", b"", pem(ca.certificate))


def test_no_anchors(ca: Ca) -> None:
    with pytest.raises(IdentityError, match="no trust anchor"):
        Identity.from_pem(pem(ca.node(OWN)), b"", b"")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("0@acp.example.com", 'holds the ACP address "0"'),
        ("@acp.example.com", "holds no ACP address"),
        ("fd739fc23c34c0000000020000006400@acp.example.com", "reserved ACP address type 3"),
        ("20010db8000000000000000000000001@acp.example.com", "does not begin with fd"),
        ("fd739fc23c3420010000000000000001@acp.example.com", "of the manual scheme"),
        ("fd739fc23c3400000000020000640003@acp.example.com", "has V=1, which must be 0"),
        ("fd739fc23c3442000000640000000101@acp.example.com", "has V=1, which must be 0"),
    ],
)
def test_own_address(ca: Ca, name: str, sentence: str) -> None:
    """covers: 6.2.2-2, 6.11.3-1, 6.11.5-1"""
    with pytest.raises(IdentityError, match=sentence) as caught:
        Identity.from_pem(pem(ca.node(name)), b"", pem(ca.certificate))
    assert "minerva ca issue" in str(caught.value)


def test_no_node_name(ca: Ca) -> None:
    with pytest.raises(IdentityError, match="is not an ACP certificate: no acp-node-name"):
        Identity.from_pem(pem(ca.node()), b"", pem(ca.certificate))


def test_own_certificate_out_of_time(ca: Ca) -> None:
    identity = ca.identity(end=NOW + DAY)
    check_own(identity, NOW)
    with pytest.raises(IdentityError, match="expired on 2026-06-02T12:00:00Z; get one"):
        check_own(identity, NOW + 2 * DAY)
    with pytest.raises(IdentityError, match="not valid before 2026-05-31T12:00:00Z"):
        check_own(identity, NOW - 2 * DAY)


def test_own_certificate_of_another_ca(ca: Ca) -> None:
    identity = ca.identity((Ca.root("Somebody Else", "p256/other").certificate,))
    with pytest.raises(IdentityError, match="no path to a trust anchor; its issuer is CN=Root"):
        check_own(identity, NOW)


def test_own_certificate_without_its_chain(ca: Ca) -> None:
    issuing = ca.ca("Issuing")
    identity = Identity.from_certificates(issuing.node(OWN), (), (ca.certificate,))
    with pytest.raises(IdentityError, match="no path to a trust anchor"):
        check_own(identity, NOW)


def test_own_weak_key(ca: Ca) -> None:
    """covers: 6.2.1-3"""
    with pytest.raises(IdentityError, match="RSA key of 1024 bits"):
        check_own(ca.identity(kind="rsa1024"), NOW)
