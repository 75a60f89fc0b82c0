"""What a factory needs: identities for devices, one or many at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, pkcs12
from cryptography.x509.oid import NameOID

from minerva.brski.masa.authority import Authority, check_serial_number, write_device
from minerva.brski.masa.database import Database
from minerva.brski.masa.errors import MasaError
from minerva.core.text import shortened
from minerva.pki.certificates import UNREADABLE, load_pem
from minerva.pki.errors import CertificateError, IdevidError, RequestError
from minerva.pki.files import File, write_files
from minerva.pki.identity import CERTIFICATE_FILE, KEY_FILE
from minerva.pki.idevid import serial_number as serial_number_of
from minerva.pki.keys import KeyType, PrivateKey, generate_key
from minerva.pki.request import load_request

KEY_TYPES = (KeyType.P256, KeyType.P384, KeyType.RSA2048)
"""The kinds of key that devices get. Every registrar verifies them."""

P12_FILE = "device.p12"

_AT_A_TIME = 100


@dataclass(frozen=True, slots=True)
class Made:
    """A device that was made, and where its identity was written."""

    serial_number: str
    directory: Path
    certificate: x509.Certificate


def make_device(
    authority: Authority,
    database: Database,
    serial_number: str,
    directory: Path,
    now: datetime,
    *,
    key_type: KeyType = KeyType.P256,
    p12: tuple[Path, bytes] | None = None,
) -> Made:
    """Make a device's key and IDevID and write them into ``directory``.

    ``p12`` is a file to write them into as PKCS #12 as well, and its password. Raises :class:`MasaError`.
    """
    check_serial_number(serial_number)
    _check_new(database, serial_number)
    made = _make(authority, serial_number, directory, now, key_type, p12)
    _register(database, [made], now)
    return made


def make_batch(
    authority: Authority,
    database: Database,
    serial_numbers: Sequence[str],
    directory: Path,
    now: datetime,
    *,
    key_type: KeyType = KeyType.P256,
    p12_password: bytes | None = None,
) -> Iterator[Made]:
    """Make many devices, each in a directory of its name in ``directory``, and yield them as they are done.

    With a password each gets a ``device.p12`` too. What an earlier run has done in ``directory`` before it
    was interrupted is left as it is. Serial numbers are checked before the first device is made.
    Raises :class:`MasaError`.
    """
    places: dict[str, Path] = {}
    done: dict[str, Made] = {}
    for name in serial_numbers:
        check_serial_number(name)
        if name in places:
            raise MasaError(f"the serial number {name} is there twice; give each once")
        places[name] = directory / directory_name(name)
        if (earlier := _earlier(authority, name, places[name])) is not None:
            done[name] = earlier
        else:
            _check_new(database, name)
    for start in range(0, len(serial_numbers), _AT_A_TIME):
        turn = []
        for name in serial_numbers[start : start + _AT_A_TIME]:
            p12 = None if p12_password is None else (places[name] / P12_FILE, p12_password)
            turn.append(done.get(name) or _make(authority, name, places[name], now, key_type, p12))
        _register(database, [made for made in turn if database.device(made.serial_number) is None], now)
        yield from turn


def sign_request(
    authority: Authority,
    database: Database,
    data: bytes,
    directory: Path,
    now: datetime,
    *,
    serial_number: str | None = None,
) -> Made:
    """Make an IDevID for a key that stays in its device: ``data`` is a request (PKCS #10) in PEM or DER.

    Without ``serial_number`` it is the one in the subject of the request. Raises :class:`MasaError`.
    """
    try:
        if data.lstrip().startswith(b"-----"):
            data = x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
        request = load_request(data)
    except UNREADABLE as error:
        raise MasaError("not a certificate request (PKCS #10) in PEM or DER") from error
    except RequestError as error:
        raise MasaError(f"the certificate request is of no use: {error}") from error
    if serial_number is None:
        found = request.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
        if len(found) != 1:
            raise MasaError("the subject of the request has not one serialNumber; give it with --serial")
        serial_number = str(found[0].value)
    made = Made(serial_number, directory, authority.make_idevid(serial_number, request.public_key, now))
    _check_new(database, serial_number)
    write_device(directory, authority, made.certificate, None)
    _register(database, [made], now)
    return made


def read_serial_numbers(path: Path) -> list[str]:
    """Return the serial numbers in a file: one a line, or the first column of CSV; ``#`` begins a comment.

    Raises :class:`MasaError`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [row[0].strip() for row in csv.reader(lines) if row and row[0].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MasaError(f"{path} is not a text of serial numbers, one a line: {error}") from error
    found = [name for name in rows if not name.startswith("#")]
    if not found:
        raise MasaError(f"there is no serial number in {path}")
    return found


def numbered(prefix: str, count: int, database: Database) -> list[str]:
    """Return the next ``count`` serial numbers of the form PREFIX000001."""
    start = database.highest_number(prefix) + 1
    return [f"{prefix}{number:06}" for number in range(start, start + count)]


def directory_name(serial_number: str) -> str:
    """Return the name of the directory for a device: its serial number, escaped where no name can have it."""
    name = quote(serial_number, safe=" '()+,:=")
    return "%2E" + name[1:] if name.startswith(".") else name


def _make(
    authority: Authority,
    serial_number: str,
    directory: Path,
    now: datetime,
    key_type: KeyType,
    p12: tuple[Path, bytes] | None,
) -> Made:
    key = generate_key(key_type)
    made = Made(serial_number, directory, authority.make_idevid(serial_number, key.public_key(), now))
    if p12 is not None and p12[0].exists():
        raise MasaError(f"{p12[0]} is there already; it is left as it is")
    write_device(directory, authority, made.certificate, key)
    if p12 is not None:
        _write_p12(p12[0], authority, made, key, p12[1])
    return made


def _earlier(authority: Authority, serial_number: str, directory: Path) -> Made | None:
    """Return the device that an earlier run wrote into ``directory``."""
    path = directory / CERTIFICATE_FILE
    if not path.exists() or not (directory / KEY_FILE).exists():
        return None
    try:
        (certificate,) = load_pem(path.read_bytes())
        certificate.verify_directly_issued_by(authority.devices.certificate)
        ours = serial_number_of(certificate) == serial_number
    except (CertificateError, IdevidError, InvalidSignature, *UNREADABLE):
        ours = False
    if not ours:
        raise MasaError(f"{path} is not the certificate of the device {serial_number}; it is left as it is")
    return Made(serial_number, directory, certificate)


def _check_new(database: Database, serial_number: str) -> None:
    if database.device(serial_number) is not None:
        shown = shortened(serial_number, 80)
        raise MasaError(f"there is a device {shown} already; it is left as it is")


def _register(database: Database, made: Sequence[Made], now: datetime) -> None:
    # When the files are on the disk: a device in the list whose key nobody has could not be made again.
    rows = [(each.serial_number, each.certificate.public_bytes(Encoding.DER)) for each in made]
    if rows:
        database.add_devices(rows, now)


def _write_p12(path: Path, authority: Authority, made: Made, key: PrivateKey, password: bytes) -> None:
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(password)
    )
    data = pkcs12.serialize_key_and_certificates(
        made.serial_number.encode("ascii"), key, made.certificate, authority.device_chain, encryption
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_files(path.parent, File(path.name, data, secret=True))
