"""What the maker put into a device."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from minerva.brski.pledge.device import Device, load_device
from minerva.brski.pledge.errors import DeviceError
from minerva.pki.certificates import dump_pem
from minerva.pki.keys import dump_private_key
from tests.brski.pledge.world import DEVICE, MAKER, NOW, SERIAL, VALID, idevid
from tests.pki.certs import key, subject

CERTIFICATE = dump_pem((DEVICE.certificate,))
ANCHORS = dump_pem(DEVICE.anchors)
KEY = dump_private_key(DEVICE.key)


def write(directory: Path, **changes: bytes | None) -> Path:
    files: dict[str, bytes | None] = {"cert": CERTIFICATE, "chain": b"", "anchors": ANCHORS, "key": KEY}
    for name, data in (files | changes).items():
        if data is not None:
            (directory / f"{name}.pem").write_bytes(data)
    return directory


def test_a_device(tmp_path: Path) -> None:
    """covers: P-1, P-3"""
    outer = MAKER.ca("Maker's CA", kind="p256/outer", **VALID)
    device = load_device(write(tmp_path, chain=dump_pem((outer.certificate,))))
    assert device.serial_number == SERIAL
    assert device.certificate == DEVICE.certificate
    assert device.chain == (outer.certificate,)
    assert device.anchors == (MAKER.certificate,)
    assert "key" not in repr(device)


def test_the_chain_need_not_be_there(tmp_path: Path) -> None:
    assert load_device(write(tmp_path, chain=None)).chain == ()


@pytest.mark.parametrize("name", ["cert", "anchors", "key"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeviceError, match=rf"{name}\.pem is missing: .*minerva masa device"):
        load_device(write(tmp_path, **{name: None}))


def test_an_unreadable_file(tmp_path: Path) -> None:
    write(tmp_path, cert=None)
    (tmp_path / "cert.pem").mkdir()
    with pytest.raises(DeviceError, match=r"cert\.pem cannot be read: Is a directory"):
        load_device(tmp_path)


NO_SERIAL = MAKER.node(subject=subject("no serial"), kind="p256/device", **VALID)
FOREIGN_KEY = key("ed25519").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cert": b"?"}, "not certificates in PEM"),
        ({"cert": b""}, "holds 0 certificates"),
        ({"cert": CERTIFICATE + ANCHORS}, "holds 2 certificates"),
        ({"chain": b"?"}, "chain.pem: not certificates"),
        ({"anchors": b""}, "no voucher could be believed"),
        ({"anchors": b"?"}, "anchors.pem: not certificates"),
        ({"key": b""}, "not a private key"),
        ({"key": FOREIGN_KEY}, "neither an RSA nor an elliptic curve key"),
        ({"key": dump_private_key(key("p256/other"))}, "do not belong together"),
        ({"cert": dump_pem((NO_SERIAL,))}, "no serial numbers of a device"),
        ({"cert": dump_pem((idevid(kind="rsa1024/device"),))}, "RSA key of 1024 bits"),
    ],
)
def test_a_device_of_no_use(tmp_path: Path, changes: dict[str, bytes], why: str) -> None:
    with pytest.raises(DeviceError, match=why) as caught:
        load_device(write(tmp_path, **changes))
    assert str(caught.value).startswith(str(tmp_path))


def test_from_memory() -> None:
    device = Device.from_pem(CERTIFICATE, b"", ANCHORS, KEY)
    assert replace(device, key=DEVICE.key) == DEVICE
    assert device.key.public_key() == DEVICE.key.public_key()


def test_a_clock_that_cannot_be_right() -> None:
    """covers: P-43"""
    made: x509.Certificate = DEVICE.certificate
    assert DEVICE.believable(NOW) == NOW
    assert DEVICE.believable(made.not_valid_before_utc - timedelta(seconds=1)) is None
