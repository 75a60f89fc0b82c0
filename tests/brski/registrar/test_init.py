"""``minerva registrar init``: all or nothing."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from minerva.brski.registrar import init as init_module
from minerva.brski.registrar.config import load
from minerva.brski.registrar.database import DeviceState, addresses, check_schema, open_database, reading
from minerva.brski.registrar.devices import find_device
from minerva.brski.registrar.errors import DatabaseError, RegistrarError
from minerva.brski.registrar.init import OWN_NODE, initialise
from minerva.cli.registrar import registrar as command
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import load_pem
from minerva.pki.errors import PkiError
from minerva.pki.identity import check_own, load_identity
from minerva.pki.keys import load_private_key
from minerva.pki.membership import check_membership
from tests.brski.postgresql import Cluster
from tests.brski.registrar.world import DOMAIN, make_registrar

NOW = datetime.now(UTC)


def test_what_is_made(tmp_path: Path) -> None:
    """covers: R-10, 6.2.5-4"""
    registrar = make_registrar(tmp_path)
    made = registrar.made
    node = load_identity(made.node_directory)
    check_own(node, NOW)
    assert node.address == made.address
    assert made.service_address == made.address.with_v(1)
    service = made.directory / "service"
    (certificate,) = load_pem((service / "cert.pem").read_bytes())
    chain = load_pem((service / "chain.pem").read_bytes())
    # A member of the domain for the rules 1 to 4, without an address.
    member = check_membership((certificate, *chain), node, when=NOW, channel=False)
    assert member.address is None
    with pytest.raises(PkiError, match="rule 5"):
        check_membership((certificate, *chain), node, when=NOW, channel=True)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {
        x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28"),
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [made.service_address.address]
    assert certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    keys = [load_private_key((path / "key.pem").read_bytes()) for path in (service, made.node_directory)]
    assert keys[0].public_key() == certificate.public_key()
    assert keys[1].public_key() == node.certificate.public_key() != keys[0].public_key()
    with reading(registrar.engine) as connection:
        own = find_device(connection, None, OWN_NODE)
        given = connection.scalars(sa.select(addresses.c.address)).all()
    assert own is not None
    assert own.state is DeviceState.ENROLLED
    assert given == [str(made.address)]
    registrar.engine.dispose()


def test_the_ca_is_one_of_minerva_ca(tmp_path: Path) -> None:
    made = make_registrar(tmp_path).made
    root = CertificateAuthority.open(made.directory / "ca" / "root")
    issuing = CertificateAuthority.open(made.directory / "ca" / "issuing")
    assert issuing.anchors == (root.certificate,)
    assert issuing.chain == (issuing.certificate,)
    # Its own allocator has another Registrar-ID, so that what it gives out collides with nothing.
    issued = issuing.issue()
    assert issued.address is not None
    assert issued.address.registrar_id != made.address.registrar_id


def test_files_are_private(tmp_path: Path) -> None:
    made = make_registrar(tmp_path).made
    for path in (made.directory, made.directory / "service", made.node_directory):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("service/key.pem", "ca/root/ca-key.pem", "ca/issuing/ca-key.pem", "registrar.toml"):
        assert stat.S_IMODE((made.directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((made.node_directory / "key.pem").stat().st_mode) == 0o600


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_registrar(tmp_path).engine.dispose()
    before = everything(tmp_path)
    with pytest.raises(RegistrarError, match="is not empty: what is there is left as it is"):
        initialise(DOMAIN, tmp_path / "registrar", tmp_path / "other", now=NOW)
    with pytest.raises(PkiError, match=r"there is an identity in .* already"):
        initialise(DOMAIN, tmp_path / "other", tmp_path / "node", now=NOW)
    assert everything(tmp_path) == before


def test_a_bad_domain_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="is no ACP domain"):
        initialise("-x-", tmp_path / "registrar", tmp_path / "node", now=NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "where", ["certify_service", "write_node_directory", "sync_directory", "store_domain"]
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_fails_leaves_nothing(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    kind: str,
) -> None:
    database = ""
    if kind == "postgresql":
        cluster: Cluster = request.getfixturevalue("postgresql")
        database = cluster.new_database()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(init_module, where, fail)
        with pytest.raises(OSError, match="No space left"):
            initialise(DOMAIN, tmp_path / "registrar", tmp_path / "node", now=NOW, database=database)
    assert list(tmp_path.iterdir()) == []
    made = initialise(DOMAIN, tmp_path / "registrar", tmp_path / "node", now=NOW, database=database)
    engine = open_database(load(made.directory).database_url(made.directory))
    check_schema(engine)
    engine.dispose()


def test_a_second_registrar_in_one_database(postgresql: Cluster, tmp_path: Path) -> None:
    url = postgresql.new_database()
    initialise(DOMAIN, tmp_path / "one", tmp_path / "node1", now=NOW, database=url)
    with pytest.raises(DatabaseError, match="already; it is left as it is"):
        initialise(DOMAIN, tmp_path / "two", tmp_path / "node2", now=NOW, database=url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node1", "one"]


def test_the_command(tmp_path: Path) -> None:
    arguments = ["init", DOMAIN, "--dir", str(tmp_path / "r"), "--node-dir", str(tmp_path / "n")]
    done = CliRunner().invoke(
        command, [*arguments, "--lifetime", "120", "--crl-port", "8081", "--scheme", "vlong8", "--json"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.output)
    node = load_identity(tmp_path / "n")
    assert answer["address"] == str(node.address)
    assert answer["domain"] == DOMAIN
    assert node.address.scheme.value == "vlong8"
    assert datetime.fromisoformat(answer["node_expires"]) == node.certificate.not_valid_after_utc
    assert load(tmp_path / "r").server.crl_port == 8081
    again = CliRunner().invoke(command, arguments)
    assert again.exit_code != 0


def test_what_the_command_says_to_people(tmp_path: Path) -> None:
    arguments = ["init", DOMAIN, "--dir", str(tmp_path / "r"), "--node-dir", str(tmp_path / "n")]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert f"registrar of {DOMAIN}" in done.output
    assert "offline" in done.output


def test_the_new_id_command(tmp_path: Path) -> None:
    made = make_registrar(tmp_path).made
    done = CliRunner().invoke(command, ["new-id", "--dir", str(made.directory), "--json"])
    assert done.exit_code == 0, done.output
    assert int(json.loads(done.output)["registrar_id"], 16) != made.address.registrar_id
