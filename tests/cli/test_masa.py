"""``minerva masa`` as a maker types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from cryptography.x509.oid import NameOID

from minerva.brski.masa.factory import KEY_TYPES as FACTORY_KEY_TYPES
from minerva.brski.masa.settings import DATABASE_FILE as SETTINGS_DATABASE_FILE
from minerva.brski.masa.settings import MAX_VOUCHER_LIFETIME as SETTINGS_MAX_VOUCHER_LIFETIME
from minerva.brski.masa.settings import VOUCHER_LIFETIME as SETTINGS_VOUCHER_LIFETIME
from minerva.brski.masa.settings import Sales
from minerva.cli.masa import DATABASE_FILE, KEY_TYPES, MAX_VOUCHER_LIFETIME, SALES, VOUCHER_LIFETIME, masa
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import load_pem
from minerva.pki.idevid import serial_number
from minerva.pki.keys import generate_key, load_private_key
from minerva.pki.path import validate_path


def run(*arguments: str | Path, directory: Path | None = None, **more: Any) -> Result:
    words = [str(argument) for argument in arguments]
    if directory is not None:
        words += ["--dir", str(directory)]
    return CliRunner().invoke(masa, words, catch_exceptions=False, **more)


def run_json(*arguments: str | Path, directory: Path) -> Any:
    result = run(*arguments, "--json", directory=directory)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(sentence: str, *arguments: str | Path, directory: Path | None = None, **more: Any) -> None:
    result = run(*arguments, directory=directory, **more)
    assert result.exit_code in (1, 2), result.output
    assert sentence in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def made(tmp_path: Path) -> Path:
    directory = tmp_path / "masa"
    run_json("init", "--name", "Maker", "--url", "localhost:9443", directory=directory)
    return directory


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    authority = CertificateAuthority.create("acp.example.com", tmp_path / "owner")
    return authority.directory / "ca-cert.pem"


def test_names_are_those_of_the_package() -> None:
    assert tuple(FACTORY_KEY_TYPES) == KEY_TYPES
    assert set(Sales) == set(SALES)
    assert VOUCHER_LIFETIME == SETTINGS_VOUCHER_LIFETIME
    assert MAX_VOUCHER_LIFETIME == SETTINGS_MAX_VOUCHER_LIFETIME
    assert DATABASE_FILE == SETTINGS_DATABASE_FILE


def test_init(tmp_path: Path) -> None:
    directory = tmp_path / "masa"
    made = run_json(
        "init", "--name", "Maker", "--url", "[::1]:9443", "--sales", "listed", directory=directory
    )
    assert made["url"] == "https://[::1]:9443/.well-known/brski"
    assert (made["host"], made["port"], made["sales"]) == ("::1", 9443, "listed")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "masa.toml").stat().st_mode & 0o777 == 0o600
    fails("already", "init", "--name", "Maker", "--url", "localhost", directory=directory)
    fails("cannot be there", "init", "--name", "Maker", "--url", "a b", directory=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    anchors = run("anchors", directory=directory).stdout
    assert load_pem(anchors.encode()) == load_pem((directory / "anchors.pem").read_bytes())
    assert run_json("anchors", directory=directory) == {"anchors": anchors}
    fails("minerva masa init", "devices", directory=tmp_path / "other")


def test_a_device(made: Path, tmp_path: Path) -> None:
    """covers: P-1"""
    out, p12, password = tmp_path / "out", tmp_path / "d.p12", tmp_path / "password"
    password.write_text("correct horse\n")
    shown = run_json(
        *("device", "SN 1", out, "--key-type", "p384", "--p12", p12, "--password-file", password),
        directory=made,
    )
    assert (shown["serial_number"], shown["directory"]) == ("SN 1", str(out))
    (certificate,) = load_pem((out / "cert.pem").read_bytes())
    key = load_private_key((out / "key.pem").read_bytes())
    assert key.public_key() == certificate.public_key()
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    chain = load_pem((out / "chain.pem").read_bytes())
    anchors = load_pem((made / "anchors.pem").read_bytes())
    assert validate_path((certificate, *chain), anchors, None)
    store = pkcs12.load_pkcs12(p12.read_bytes(), b"correct horse")
    assert store.cert is not None
    assert store.cert.certificate == certificate
    assert [each.certificate for each in store.additional_certs] == list(chain)
    assert p12.stat().st_mode & 0o777 == 0o600
    fails("already", "device", "SN 1", tmp_path / "again", directory=made)
    assert not (tmp_path / "again").exists()
    fails("already", "device", "SN 2", out, directory=made)
    fails(
        "already", "device", "SN 2", tmp_path / "b", "--p12", p12, "--password-file", password, directory=made
    )
    fails("serial number", "device", "a_b", tmp_path / "c", directory=made)
    fails("--p12", "device", "SN 2", tmp_path / "c", "--password-file", password, directory=made)
    password.write_text("\n")
    fails(
        "empty", "device", "SN 2", tmp_path / "c", "--p12", p12, "--password-file", password, directory=made
    )
    assert [each["serial_number"] for each in run_json("devices", directory=made)["devices"]] == ["SN 1"]


def test_the_password_is_asked_for(made: Path, tmp_path: Path) -> None:
    p12 = tmp_path / "d.p12"
    result = run("device", "SN", tmp_path / "out", "--p12", p12, directory=made, input="secret\nsecret\n")
    assert result.exit_code == 0
    assert "secret" not in result.output
    assert pkcs12.load_pkcs12(p12.read_bytes(), b"secret").key is not None


def test_a_batch(made: Path, tmp_path: Path) -> None:
    """covers: P-1"""
    out, numbers = tmp_path / "out", tmp_path / "numbers"
    numbers.write_text("\ufeffA/1,first\n\n# a comment\n..\nB 2\n")
    shown = run_json("batch", numbers, out, directory=made)["devices"]
    assert [each["serial_number"] for each in shown] == ["A/1", "..", "B 2"]
    for each in shown:
        assert Path(each["directory"]).parent == out
        (certificate,) = load_pem((Path(each["directory"]) / "cert.pem").read_bytes())
        assert serial_number(certificate) == each["serial_number"]
    # Once more is no harm, not even after a part was not done.
    numbers.write_text(numbers.read_text() + "C3\n")
    again = run_json("batch", numbers, out, directory=made)["devices"]
    assert again[:3] == shown
    assert len(run_json("devices", directory=made)["devices"]) == 4
    fails("already", "batch", numbers, tmp_path / "elsewhere", directory=made)
    numbers.write_text("X\nX\n")
    fails("twice", "batch", numbers, out, directory=made)
    numbers.write_text("#\n")
    fails("no serial number", "batch", numbers, out, directory=made)
    numbers.write_text("C3\n")
    (out / "C3" / "cert.pem").write_bytes((out / "B 2" / "cert.pem").read_bytes())
    fails("is not the certificate", "batch", numbers, out, directory=made)


def test_a_batch_of_numbers(made: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("pw")
    command = ("batch", "--count", "2", "--prefix", "M_%-", tmp_path / "out")
    fails("serial number", *command, directory=made)
    command = ("batch", "--count", "2", "--prefix", "m-", tmp_path / "out")
    run("device", "M-000007", tmp_path / "a", directory=made)
    run("device", "m-x", tmp_path / "b", directory=made)
    first = run_json(*command, "--p12", "--password-file", password, directory=made)["devices"]
    second = run_json(*command, directory=made)["devices"]
    names = [each["serial_number"] for each in first + second]
    assert names == ["m-000001", "m-000002", "m-000003", "m-000004"]
    assert pkcs12.load_pkcs12((tmp_path / "out" / "m-000001" / "device.p12").read_bytes(), b"pw").key
    fails("Give FILE", "batch", tmp_path / "out", directory=made)
    fails("--count", "batch", "--prefix", "x", tmp_path, tmp_path / "out", directory=made)


def test_signing_requests(made: Path, tmp_path: Path) -> None:
    """covers: P-1"""
    key = generate_key("p256")
    subject = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "TPM 1")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    csr, out = tmp_path / "csr", tmp_path / "out"
    csr.write_bytes(request.public_bytes(Encoding.PEM))
    assert run_json("sign-csr", csr, out, directory=made)["serial_number"] == "TPM 1"
    (certificate,) = load_pem((out / "cert.pem").read_bytes())
    assert certificate.public_key() == key.public_key()
    assert not (out / "key.pem").exists()
    csr.write_bytes(request.public_bytes(Encoding.DER))
    shown = run_json("sign-csr", csr, tmp_path / "b", "--serial", "TPM 2", directory=made)
    assert shown["serial_number"] == "TPM 2"
    fails("already", "sign-csr", csr, tmp_path / "c", directory=made)
    csr.write_bytes(b"x")
    fails("certificate request", "sign-csr", csr, tmp_path / "c", directory=made)
    empty = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    csr.write_bytes(empty.public_bytes(Encoding.PEM))
    fails("--serial", "sign-csr", csr, tmp_path / "c", directory=made)


def test_sales(made: Path, tmp_path: Path, owner: Path) -> None:
    """covers: M-18"""
    run("batch", "--count", "3", "--prefix", "S", tmp_path / "out", directory=made)
    shown = run_json("assign", "S000001", "S000002", owner, "--nonceless", directory=made)["devices"]
    assert [each["state"] for each in shown] == ["assigned", "assigned"]
    assert shown[0]["nonceless"]
    assert "acp" in shown[0]["assigned"]["name"].lower()
    (released,) = run_json("release", "S000001", directory=made)["devices"]
    assert (released["state"], released["assigned"], released["nonceless"]) == ("free", None, False)
    (blocked,) = run_json("block", "S000001", "--reason", "lost", directory=made)["devices"]
    assert (blocked["state"], blocked["blocked"]) == ("blocked", "lost")
    assert run_json("unblock", "S000001", directory=made)["devices"][0]["state"] == "free"
    log = run_json("log", "S000001", directory=made)
    assert [each["action"] for each in log["actions"]] == ["unblock", "block", "release", "assign"]
    assert log["audit_log"]["events"] == []
    text = run("log", "S000001", directory=made).stdout
    assert text.splitlines()[0].endswith("made")
    assert "block  lost" in text
    assert "S000002" in run("devices", directory=made).stdout
    for command in ("release", "block", "unblock", "log"):
        fails("there is no device nobody", command, "nobody", directory=made)
    owner.write_bytes(owner.read_bytes() * 2)
    fails("one certificate", "assign", "S000001", owner, directory=made)


def test_running(made: Path) -> None:
    """It says when it is ready, and ends when it is told to.

    covers: M-1
    """
    fails("where to listen", "run", "--listen", "x", directory=made)
    command = [sys.executable, "-m", "minerva", "masa", "run", "--dir", str(made), "--listen", "[::1]:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "ready on [::1]:" in line
        port = int(line.strip().rpartition(":")[2])
        fails("cannot listen on [::1]", "run", "--listen", f"[::1]:{port}", directory=made)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert "rror" not in process.stderr.read()


def test_without_the_libraries(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minerva.brski.database", None)
    monkeypatch.delitem(sys.modules, "minerva.brski.database")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    fails("pip install 'minerva-acp[registrar]'", "devices", directory=made)
