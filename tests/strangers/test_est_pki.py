"""EST with strongSwan's client, and our TLS as openssl sees it, against a registrar on loopback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from asn1crypto.csr import CertificationRequest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.keys import PrivateKey, dump_private_key, generate_key
from minerva.pki.node_name import AcpNodeName
from minerva.pki.path import validate_path
from tests.brski.registrar.world import Identity, Registrar, Server, make_registrar

pytestmark = pytest.mark.skipif(
    shutil.which("pki") is None, reason="strongSwan's pki is not installed (package strongswan-pki)"
)


@dataclass
class Bench:
    """A registrar that serves, and a directory for the files of the stranger."""

    registrar: Registrar
    server: Server
    directory: Path

    @property
    def url(self) -> str:
        return f"https://{self.server.address}:{self.server.port}"

    def write(self, name: str, data: bytes) -> str:
        (self.directory / name).write_bytes(data)
        return name

    def run(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a program in the directory."""
        return subprocess.run(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def authorities(self) -> list[str]:
        """The options of pki for all that /cacerts says."""
        options = []
        for number, certificate in enumerate(self.registrar.est.ca_certificates()):
            options += ["--cacert", self.write(f"ca{number}.pem", dump_pem([certificate]))]
        return options

    def enrol(self, client: Identity, request: bytes) -> subprocess.CompletedProcess[bytes]:
        """Send a request with pki."""
        return self.run(
            *("pki", "--est", "--url", self.url, *self.authorities(), "--outform", "pem"),
            *("--cert", self.write("old.pem", dump_pem([client.certificate]))),
            *("--key", self.write("old.key", dump_private_key(client.key))),
            *("--in", self.write("request.der", request)),
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    registrar = make_registrar(tmp_path)
    files = tmp_path / "files"
    files.mkdir()
    with registrar.serving("127.0.0.1") as server:
        yield Bench(registrar, server, files)
    registrar.engine.dispose()


def _tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    length = len(content)
    long_form = b"" if length < 0x80 else b"\x81" if length < 0x100 else b"\x82"
    return bytes([tag]) + long_form + length.to_bytes(max(1, (length.bit_length() + 7) // 8)) + content


def request_for(bench: Bench, name: AcpNodeName, key: PrivateKey, subject: str) -> bytes:
    """Return a request made by openssl, as far as it can be.

    strongSwan 5.9.8 sends no request with a subjectAltName of a type that it does not know. It looks for one
    in the attribute extensionRequest. So the name stands in the attribute by which another vendor calls the
    same thing, which it does not look into.
    """
    bench.write("key.pem", dump_private_key(key))
    bench.write(
        "request.conf",
        b"[req]\nprompt=no\ndistinguished_name=name\nreq_extensions=extensions\n"
        b"[name]\nCN=%s\n"
        b"[extensions]\nsubjectAltName=otherName:1.3.6.1.5.5.7.8.10;IA5:%s\n"
        % (subject.encode(), str(name).encode()),
    )
    made = bench.run(
        *("openssl", "req", "-new", "-key", "key.pem", "-config", "request.conf", "-outform", "DER")
    )
    assert made.returncode == 0, made.stderr.decode()
    info = CertificationRequest.load(made.stdout)["certification_request_info"]
    values = info["attributes"][0]["values"].dump()
    other_type = bytes.fromhex("060a2b06010401823702010e")  # 1.3.6.1.4.1.311.2.1.14
    body = _tlv(
        0x30,
        *(info[field].dump() for field in ("version", "subject", "subject_pk_info")),
        _tlv(0xA0, _tlv(0x30, other_type, values)),
    )
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(body, ec.ECDSA(hashes.SHA256()))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return _tlv(0x30, body, ecdsa_with_sha256, _tlv(0x03, b"\0", signature))


def common_name(certificate: x509.Certificate) -> str:
    (name,) = certificate.subject.get_attributes_for_oid(x509.oid.NameOID.COMMON_NAME)
    return str(name.value)


def test_ca_certificates(bench: Bench) -> None:
    """covers: E-4"""
    root = bench.write("root.pem", dump_pem(bench.registrar.anchors))
    done = bench.run(
        *("pki", "--estca", "--url", bench.url, "--cacert", root, "--caout", "ca.pem", "--outform", "pem")
    )
    assert done.returncode == 0, done.stderr.decode()
    found = {
        certificate for file in bench.directory.glob("ca*.pem") for certificate in load_pem(file.read_bytes())
    }
    assert found == set(bench.registrar.est.ca_certificates())
    said = done.stderr.decode()
    assert "Root CA cert is trusted" in said
    assert "Sub CA cert is trusted" in said


def test_a_device_enrols_and_renews(bench: Bench) -> None:
    """covers: E-5, E-6, R-70"""
    registrar = bench.registrar
    device = registrar.vouchered("SN-1")
    name = registrar.name_of(device)
    key = generate_key("p256")
    done = bench.enrol(device, request_for(bench, name, key, "device"))
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "Issued certificate is trusted" in said
    (enrolled,) = load_pem(done.stdout)
    assert AcpNodeName.of(enrolled) == name
    assert enrolled.public_key() == key.public_key()

    new_key = generate_key("p256")
    request = request_for(bench, name, new_key, common_name(enrolled))
    done = bench.enrol(Identity(enrolled, key), request)
    assert done.returncode == 0, done.stderr.decode()
    (renewed,) = load_pem(done.stdout)
    assert renewed.serial_number != enrolled.serial_number
    assert AcpNodeName.of(renewed) == name
    assert renewed.public_key() == new_key.public_key()
    validate_path((renewed, *registrar.est.ca_certificates()), registrar.anchors, registrar.now)


def test_what_is_refused(bench: Bench) -> None:
    """covers: R-72, R-73"""
    registrar = bench.registrar
    device, other = registrar.vouchered("SN-1"), registrar.vouchered("SN-2")
    registrar.name_of(device)
    done = bench.enrol(device, request_for(bench, registrar.name_of(other), generate_key("p256"), "x"))
    assert done.returncode != 0
    assert "HTTP 400" in done.stderr.decode()
    stranger = registrar.maker.device("SN-3")
    done = bench.enrol(stranger, request_for(bench, registrar.name_of(other), generate_key("p256"), "x"))
    assert "HTTP 403" in done.stderr.decode()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_the_chain_that_openssl_sees(bench: Bench, version: str) -> None:
    """covers: R-10"""
    root = bench.write("root.pem", dump_pem(bench.registrar.anchors))
    server = f"{bench.server.address}:{bench.server.port}"
    done = bench.run(
        *("openssl", "s_client", "-connect", server, "-CAfile", root, version, "-showcerts"),
        *("-verify_return_error", "-verify_ip", bench.server.address, "-purpose", "sslserver"),
    )
    said = done.stdout.decode()
    assert "Verify return code: 0 (ok)" in said, said + done.stderr.decode()
    blocks = [part.split("-----END")[0] for part in said.split("-----BEGIN CERTIFICATE-----")[1:]]
    # Those after -showcerts are followed by the first one once more.
    shown = [
        load_pem(f"-----BEGIN CERTIFICATE-----{block}-----END CERTIFICATE-----\n".encode())[0]
        for block in blocks[:2]
    ]
    issuing, *_ = bench.registrar.est.ca_certificates()
    assert shown[1] == issuing
    assert shown[0].issuer == issuing.subject
    key = shown[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key != issuing.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
