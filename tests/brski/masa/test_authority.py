"""The maker's certificates, and what stands in an IDevID."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minerva.brski.masa.authority import (
    NEVER,
    Authority,
    check_serial_number,
    create_authority,
    load_authority,
    renew,
)
from minerva.brski.masa.errors import MasaError
from minerva.brski.masa.settings import SETTINGS_FILE, Location, Settings
from minerva.pki.certificates import dump_pem
from minerva.pki.errors import PathError
from minerva.pki.idevid import MASA_URL_OID, masa_url, serial_number
from minerva.pki.keys import KeyType, generate_key
from minerva.pki.path import validate_path
from tests.brski.masa.world import NOW, Domain, Maker, new_nonce


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    settings = Settings("Maker", "masa.example.com:9443")
    return create_authority(tmp_path_factory.mktemp("masa"), settings, NOW)


def test_what_a_masa_knows_is_nobody_s_business(tmp_path: Path) -> None:
    """Its database as well, whose file anybody may read who gets there."""
    directory = tmp_path / "masa"
    directory.mkdir()
    directory.chmod(0o755)
    create_authority(directory, Settings("Maker", "masa.example.com:9443"), NOW)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_an_idevid(authority: Authority) -> None:
    """covers: P-1, P-2, P-3"""
    key = generate_key(KeyType.P256)
    certificate = authority.make_idevid("00-D0-E5-F2-00-02", key.public_key(), NOW)
    assert serial_number(certificate) == "00-D0-E5-F2-00-02"
    attribute = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0]
    assert attribute.value == "00-D0-E5-F2-00-02"
    assert certificate.not_valid_after_utc == NEVER
    # GeneralizedTime, as a UTCTime has no such year.
    assert b"\x18\x0f99991231235959Z" in certificate.public_bytes(Encoding.DER)
    url = certificate.extensions.get_extension_for_oid(MASA_URL_OID)
    assert not url.critical
    assert isinstance(url.value, x509.UnrecognizedExtension)
    assert url.value.value == b"\x16\x15masa.example.com:9443"
    assert masa_url(certificate) == "https://masa.example.com:9443/.well-known/brski"
    present = {extension.oid for extension in certificate.extensions}
    assert x509.AuthorityKeyIdentifier.oid in present
    assert x509.SubjectKeyIdentifier.oid in present
    assert x509.KeyUsage.oid not in present
    assert x509.ExtendedKeyUsage.oid not in present
    path = validate_path(
        (certificate, *authority.device_chain), authority.anchors, datetime(2999, 1, 1, tzinfo=UTC)
    )
    assert len(path) == 3


def test_every_device_is_another(maker: Maker) -> None:
    """covers: P-1"""
    first, second = maker.device(), maker.device()
    assert first.key.public_key() != second.key.public_key()
    with pytest.raises(MasaError, match="already"):
        maker.device(first.serial_number)


def test_devices_trust_the_ca_for_vouchers_alone(authority: Authority) -> None:
    """covers: P-1"""
    key = generate_key(KeyType.P256)
    idevid = authority.make_idevid("x", key.public_key(), NOW)
    signer = authority.signer.certificate
    assert validate_path((signer,), authority.device_anchors, NOW)
    assert validate_path((signer, *authority.voucher_chain), authority.anchors, NOW)
    with pytest.raises(PathError):
        validate_path((idevid, *authority.device_chain, authority.root), authority.device_anchors, NOW)


@pytest.mark.parametrize("text", ["", " x", "x ", "x" * 65, "a_b", "é", "a\nb", "a\0b", "*", "a@b", "\ud800"])
def test_what_is_no_serial_number(text: str) -> None:
    with pytest.raises(MasaError, match="serial number"):
        check_serial_number(text)


@pytest.mark.parametrize(
    ("text", "url", "host", "port"),
    [
        ("masa.example.com", "https://masa.example.com/.well-known/brski", "masa.example.com", 443),
        (
            "masa.example.com:8443",
            "https://masa.example.com:8443/.well-known/brski",
            "masa.example.com",
            8443,
        ),
        ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443/.well-known/brski", "2001:db8::1", 8443),
        ("https://h.example/a/b/", "https://h.example/a/b", "h.example", 443),
        ("https://h.example/", "https://h.example/.well-known/brski", "h.example", 443),
    ],
)
def test_where_a_masa_is(text: str, url: str, host: str, port: int) -> None:
    location = Location.parse(text)
    assert (location.url, location.host, location.port) == (url, host, port)
    assert url.endswith(location.path)


@pytest.mark.parametrize(
    "text", ["", "a b", "http://h.example", "ldap://h.example/x", "h.example:99999", "ü"]
)
def test_where_no_masa_is(text: str) -> None:
    with pytest.raises(MasaError):
        Location.parse(text)


@pytest.mark.parametrize("host", ["masa.example.com", "192.0.2.1", "[2001:db8::1]"])
def test_the_server_has_its_name(tmp_path: Path, host: str) -> None:
    """covers: M-1"""
    authority = create_authority(tmp_path / "m", Settings("Maker", host), NOW)
    certificate = authority.tls.certificate
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [host.strip("[]")]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH in usage
    assert validate_path((certificate,), authority.anchors, NOW)


def test_settings_are_checked(tmp_path: Path) -> None:
    for settings, words in (
        (Settings("", "h"), "name"),
        (Settings("x" * 65, "h"), "name"),
        (Settings("x", ""), "MASA"),
        (Settings("x", "h", sales="all"), "sales"),
        (Settings("x", "h", voucher_lifetime=0), "voucher_lifetime"),
    ):
        with pytest.raises(MasaError, match=words):
            create_authority(tmp_path, settings, NOW)
    assert not list(tmp_path.iterdir())
    settings = Settings('M "ü" \\', "h", "postgresql://u:p@h/db", "listed", 5)
    (tmp_path / SETTINGS_FILE).write_text(settings.dump(), encoding="utf-8")
    assert Settings.load(tmp_path) == settings
    for text in ("name = 1", "what = 2", "= =", 'name = "x"', 'name = "x"\nurl = "h"\nsales = "no"'):
        (tmp_path / SETTINGS_FILE).write_text(text)
        with pytest.raises(MasaError, match=SETTINGS_FILE):
            Settings.load(tmp_path)


def test_a_directory_is_a_masa_or_not(tmp_path: Path) -> None:
    with pytest.raises(MasaError, match="minerva masa init"):
        load_authority(tmp_path)
    made = create_authority(tmp_path / "m", Settings("Maker", "h"), NOW)
    with pytest.raises(MasaError, match="already"):
        create_authority(tmp_path / "m", Settings("Maker", "h"), NOW)
    assert load_authority(tmp_path / "m").signer.certificate == made.signer.certificate
    for path in (tmp_path / "m").glob("*/key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "m" / "signer" / "key.pem").write_bytes((tmp_path / "m" / "tls" / "key.pem").read_bytes())
    with pytest.raises(MasaError, match="do not belong together"):
        load_authority(tmp_path / "m")


def test_without_the_key_of_the_root(tmp_path: Path, domain: Domain) -> None:
    """It may be kept elsewhere; a new signer is believed by devices that are sold already.

    covers: M-1, M-19
    """
    maker = Maker.create(tmp_path / "masa")
    device = maker.device()
    away = (maker.directory / "root" / "key.pem").rename(tmp_path / "root.key")
    assert load_authority(maker.directory)
    with pytest.raises(MasaError, match=r"root/key\.pem"):
        renew(maker.directory, NOW)
    away.rename(maker.directory / "root" / "key.pem")
    renewed = renew(maker.directory, NOW)
    assert renewed.signer.certificate != maker.authority.signer.certificate
    assert renewed.tls.certificate != maker.authority.tls.certificate
    maker.masa = type(maker.masa)(renewed, maker.database)
    nonce = new_nonce()
    assert device.check(maker.ask(domain.request(device.serial_number, nonce)), nonce)
    maker.close()


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048"])
def test_openssl_verifies_what_we_make(maker: Maker, domain: Domain, tmp_path: Path, key_type: str) -> None:
    """covers: P-1, M-1, CM-1"""
    key = generate_key(key_type)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    idevid = maker.authority.make_idevid("SN 1", key.public_key(), NOW)
    root, chain, leaf, voucher = (tmp_path / name for name in ("root", "chain", "leaf", "voucher"))
    root.write_bytes(dump_pem(maker.authority.anchors))
    chain.write_bytes(dump_pem(maker.authority.device_chain))
    leaf.write_bytes(dump_pem((idevid,)))
    when = str(int(NOW.timestamp()))
    verify = ("openssl", "verify", "-x509_strict", "-attime", when, "-CAfile", str(root))
    subprocess.run([*verify, "-untrusted", str(chain), str(leaf)], check=True, capture_output=True)
    nonce, device = new_nonce(), maker.device()
    voucher.write_bytes(maker.ask(domain.request(device.serial_number, nonce)))
    verify = ("openssl", "cms", "-verify", "-attime", when, "-CAfile", str(root), "-purpose", "any")
    command = [*verify, "-inform", "DER", "-in", str(voucher)]
    done = subprocess.run(command, check=True, capture_output=True)
    assert nonce.encode() in done.stdout
