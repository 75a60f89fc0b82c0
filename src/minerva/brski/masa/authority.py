"""The maker's keys and certificates: a directory, and what is signed with them.

::

    root/cert.pem         the maker's root CA; its key (key.pem, 0600) is needed by ``renew`` alone
    devices/cert.pem      the CA that signs IDevIDs, under the root
    vouchers/cert.pem     the CA that signs signers of vouchers, under the root: what devices trust
    signer/cert.pem       signs vouchers, under the CA above
    tls/cert.pem          the server's, under the root
    anchors.pem           the root: what registrars need

Devices do not trust the root, but only the CA for signers of vouchers. Else whoever gets the key out of one
device could sign vouchers for all others: an IDevID has no restrictions of usage (RFC 8995 section 2.3).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from minerva.brski.masa.errors import MasaError
from minerva.brski.masa.settings import SETTINGS_FILE, Settings
from minerva.core.text import printable
from minerva.pki.ca import key_usage
from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.errors import CertificateError, KeyRuleError
from minerva.pki.files import File, locked, write_files
from minerva.pki.identity import ANCHORS_FILE, CERTIFICATE_FILE, CHAIN_FILE, KEY_FILE
from minerva.pki.idevid import idevid_extensions
from minerva.pki.keys import (
    KeyType,
    PrivateKey,
    check_public_key,
    dump_private_key,
    generate_key,
    load_private_key,
    signature_hash,
)

NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The notAfter of certificates that do not expire (RFC 5280 section 4.1.2.5, RFC 8995 section 2.6.2)."""

LIFETIME = timedelta(days=3650)
"""How long the certificates of the server and of the signer are valid: ``renew`` makes new ones."""

MAX_SERIAL_NUMBER = 64
"""The longest serial number of a device, in characters (ub-serial-number of RFC 5280)."""

_BACKDATING = timedelta(days=1)
_SERIAL_NUMBER = re.compile(r"[A-Za-z0-9 '()+,./:=?-]{1,64}")

_ROOT, _DEVICES, _VOUCHERS, _SIGNER, _TLS = "root", "devices", "vouchers", "signer", "tls"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authority:
    """What a MASA signs with. Get one with :func:`create_authority` or :func:`load_authority`."""

    settings: Settings
    root: x509.Certificate
    devices: Pair
    vouchers: x509.Certificate
    signer: Pair
    tls: Pair

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """What registrars trust: for IDevIDs, for vouchers, and for the MASA's own TLS."""
        return (self.root,)

    @property
    def device_anchors(self) -> tuple[x509.Certificate, ...]:
        """What devices trust, for vouchers alone."""
        return (self.vouchers,)

    @property
    def voucher_chain(self) -> tuple[x509.Certificate, ...]:
        """What goes into a voucher besides the signer's certificate: all up to the root."""
        return (self.vouchers, self.root)

    @property
    def device_chain(self) -> tuple[x509.Certificate, ...]:
        """What stands between an IDevID and the root."""
        return (self.devices.certificate,)

    def make_idevid(
        self, serial_number: str, public_key: CertificatePublicKeyTypes, now: datetime
    ) -> x509.Certificate:
        """Return an IDevID for the device ``serial_number`` (RFC 8995 section 2.3).

        Raises :class:`MasaError`, and :class:`KeyRuleError` for a key that no registrar would accept.
        """
        check_serial_number(serial_number)
        check_public_key(public_key)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.settings.name),
                x509.NameAttribute(NameOID.COMMON_NAME, serial_number),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number),
            ]
        )
        builder = _builder(subject, public_key, now, NEVER)
        for extension, critical in idevid_extensions(self.settings.url):
            builder = builder.add_extension(extension, critical)
        return _sign(builder, self.devices)


def create_authority(directory: Path, settings: Settings, now: datetime) -> Authority:
    """Make the keys and certificates of a MASA, and its settings, in ``directory``.

    Raises :class:`MasaError` if there is a MASA already.
    """
    settings.check()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(directory):
        check_free(directory)
        # Also one that was there: who bought what is nobody's business on this machine.
        directory.chmod(0o700)
        root_key = generate_key(KeyType.P256)
        name = _name(settings, "Root CA")
        builder = _ca_builder(name, root_key, now, path_length=1).issuer_name(name)
        root = Pair(builder.sign(root_key, signature_hash(root_key)), root_key)
        devices = _make_ca(settings, "Device CA", root, now)
        vouchers = _make_ca(settings, "Voucher CA", root, now)
        signer = _make_signer(settings, vouchers, now)
        tls = _make_tls(settings, root, now)
        for where, pair in (
            (_ROOT, root),
            (_DEVICES, devices),
            (_VOUCHERS, vouchers),
            (_SIGNER, signer),
            (_TLS, tls),
        ):
            _write(directory / where, pair)
        write_files(
            directory,
            File(ANCHORS_FILE, dump_pem((root.certificate,))),
            # It may hold the password of a database. It is the sign that all is there.
            File(SETTINGS_FILE, settings.dump().encode(), secret=True),
        )
    return Authority(settings, root.certificate, devices, vouchers.certificate, signer, tls)


def check_free(directory: Path) -> None:
    """Raise :class:`MasaError` if there is a MASA in ``directory``, or a part of one."""
    for name in (SETTINGS_FILE, f"{_ROOT}/{KEY_FILE}"):
        if (directory / name).exists():
            raise MasaError(f"there is a MASA in {directory} already ({name}); it is left as it is")


def renew(directory: Path, now: datetime) -> Authority:
    """Give the server and the signer of vouchers new keys and certificates.

    Needs the keys of the root and of the CA for signers, which may be elsewhere at other times.
    Raises :class:`MasaError`.
    """
    settings = Settings.load(directory)
    with locked(directory):
        root, vouchers = (_load(directory / where) for where in (_ROOT, _VOUCHERS))
        _write(directory / _SIGNER, _make_signer(settings, vouchers, now))
        _write(directory / _TLS, _make_tls(settings, root, now))
    return load_authority(directory)


def load_authority(directory: Path) -> Authority:
    """Return what the MASA in ``directory`` signs with. Raises :class:`MasaError`."""
    settings = Settings.load(directory)
    return Authority(
        settings,
        _load_certificate(directory / _ROOT),
        _load(directory / _DEVICES),
        _load_certificate(directory / _VOUCHERS),
        _load(directory / _SIGNER),
        _load(directory / _TLS),
    )


def load_anchors(directory: Path) -> tuple[x509.Certificate, ...]:
    """Return what registrars trust, of the MASA in ``directory``. Raises :class:`MasaError`."""
    Settings.load(directory)
    path = directory / ANCHORS_FILE
    try:
        return load_pem(path.read_bytes())
    except OSError as error:
        raise MasaError(f"{path} cannot be read: {error.strerror}") from error
    except CertificateError as error:
        raise MasaError(f"{path}: {error}") from error


def is_serial_number(text: str) -> bool:
    """Return whether ``text`` can be the serial number of a device: a PrintableString, not too long."""
    return _SERIAL_NUMBER.fullmatch(text) is not None and text == text.strip()


def check_serial_number(text: str) -> None:
    """Raise :class:`MasaError` unless ``text`` can be the serial number of a device."""
    if not is_serial_number(text):
        raise MasaError(
            f'"{printable(text[:100])}" cannot be a serial number: one has 1 to {MAX_SERIAL_NUMBER} letters '
            "(A to Z, a to z), digits, spaces, and '()+,-./:=?"
        )


def _make_ca(settings: Settings, what: str, root: Pair, now: datetime) -> Pair:
    key = generate_key(KeyType.P256)
    builder = _ca_builder(_name(settings, what), key, now, path_length=0)
    return Pair(_sign(builder, root), key)


def _make_signer(settings: Settings, vouchers: Pair, now: datetime) -> Pair:
    key = generate_key(KeyType.P256)
    builder = (
        _builder(_name(settings, "MASA"), key.public_key(), now, now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
    )
    return Pair(_sign(builder, vouchers), key)


def _make_tls(settings: Settings, root: Pair, now: datetime) -> Pair:
    key = generate_key(KeyType.P256)
    host = settings.location.host
    common_name = host if len(host) <= 64 else "MASA"
    builder = (
        _builder(_name(settings, common_name), key.public_key(), now, now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
    )
    return Pair(_sign(builder, root), key)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.rstrip("."))


def _name(settings: Settings, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, settings.name),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, key: CertificatePublicKeyTypes, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATING)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _ca_builder(
    subject: x509.Name, key: PrivateKey, now: datetime, *, path_length: int
) -> x509.CertificateBuilder:
    # An IDevID does not expire, so nothing above it may.
    return (
        _builder(subject, key.public_key(), now, NEVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
    )


def _sign(builder: x509.CertificateBuilder, issuer: Pair) -> x509.Certificate:
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        builder.issuer_name(issuer.certificate.subject)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(issuer.key, signature_hash(issuer.key))
    )


def _write(directory: Path, pair: Pair) -> None:
    directory.mkdir(exist_ok=True, mode=0o700)
    write_files(
        directory,
        File(KEY_FILE, dump_private_key(pair.key), secret=True),
        File(CERTIFICATE_FILE, dump_pem((pair.certificate,))),
    )


def _load(directory: Path) -> Pair:
    certificate = _load_certificate(directory)
    path = directory / KEY_FILE
    try:
        key = load_private_key(path.read_bytes())
    except OSError as error:
        raise MasaError(f"{path} cannot be read: {error.strerror}") from error
    except KeyRuleError as error:
        raise MasaError(f"{path}: {error}") from error
    if key.public_key() != certificate.public_key():
        raise MasaError(f"{KEY_FILE} and {CERTIFICATE_FILE} in {directory} do not belong together")
    return Pair(certificate, key)


def _load_certificate(directory: Path) -> x509.Certificate:
    path = directory / CERTIFICATE_FILE
    try:
        (certificate,) = load_pem(path.read_bytes())
    except OSError as error:
        raise MasaError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, CertificateError) as error:
        raise MasaError(f"{path} is not one certificate in PEM") from error
    return certificate


def write_device(
    directory: Path, authority: Authority, certificate: x509.Certificate, key: PrivateKey | None
) -> None:
    """Write what a device needs into ``directory``, which is made if it is not there.

    ``cert.pem``, ``chain.pem``, ``anchors.pem`` (for vouchers), and if it was made here ``key.pem``.
    Raises :class:`MasaError` if there is an identity already.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = [
        File(ANCHORS_FILE, dump_pem(authority.device_anchors)),
        File(CHAIN_FILE, dump_pem(authority.device_chain)),
    ]
    if key is not None:
        files.append(File(KEY_FILE, dump_private_key(key), secret=True))
    with locked(directory):
        for name in (CERTIFICATE_FILE, KEY_FILE):
            if (directory / name).exists():
                raise MasaError(f"there is an identity in {directory} already ({name}); it is left as it is")
        write_files(directory, *files, File(CERTIFICATE_FILE, dump_pem((certificate,))))
