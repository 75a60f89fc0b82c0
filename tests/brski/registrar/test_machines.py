"""A registrar on several machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.identity import load_service
from minerva.brski.registrar.machines import join, leave
from minerva.cli.registrar import registrar as command
from minerva.pki.ca import Issued, write_node_directory
from minerva.pki.identity import load_identity
from minerva.pki.node_name import AcpNodeName
from tests.brski.postgresql import Cluster
from tests.brski.registrar.world import Registrar, make_registrar


@pytest.fixture
def registrar(postgresql: Cluster, tmp_path: Path) -> Registrar:
    return make_registrar(tmp_path, postgresql.new_database())


def second_machine(registrar: Registrar, tmp_path: Path) -> tuple[Path, Path]:
    """A node that was enrolled as any other, and a copy of the registrar's directory."""
    node = registrar.enroll(registrar.vouchered("SN-2"))
    directory = tmp_path / "node-2"
    name = AcpNodeName.of(node.certificate)
    write_node_directory(
        directory, Issued(node.certificate, node.chain, registrar.anchors, name, None, node.key)
    )
    copy = tmp_path / "registrar-2"
    shutil.copytree(registrar.made.directory, copy)
    return copy, directory


def places(registrar: Registrar, serial_number: str) -> list[str]:
    """Where a new certificate says that the CRL is."""
    enrolled = registrar.enroll(registrar.vouchered(serial_number))
    found = enrolled.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    return [name.value for point in found for name in point.full_name or ()]


def test_a_second_machine(registrar: Registrar, tmp_path: Path) -> None:
    copy, node = second_machine(registrar, tmp_path)
    assert len(places(registrar, "SN-3")) == 1
    made = join(copy, node, registrar.engine, crl_port=8080, now=registrar.now)
    address = load_identity(node).address.with_v(1)
    service = load_service(copy / "service")
    assert service.certificate == made
    assert service.problem(registrar.now) is None
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [address.address]
    first, second = places(registrar, "SN-4")
    assert first.startswith(f"http://[{registrar.made.service_address}]:8080/crl/")
    assert second.startswith(f"http://[{address}]:8080/crl/")
    # The other machine has kept its own.
    assert load_service(registrar.made.directory / "service").certificate != made
    # Once more, and nothing is named twice.
    join(copy, node, registrar.engine, crl_port=8080, now=registrar.now)
    assert len(places(registrar, "SN-5")) == 2
    leave(node, registrar.engine, crl_port=8080, now=registrar.now)
    assert len(places(registrar, "SN-6")) == 1
    with pytest.raises(RegistrarError, match="this machine has not joined"):
        leave(node, registrar.engine, crl_port=8080, now=registrar.now)
    with pytest.raises(RegistrarError, match="the only machine"):
        leave(registrar.made.node_directory, registrar.engine, crl_port=8080, now=registrar.now)
    registrar.engine.dispose()


def test_the_commands(registrar: Registrar, tmp_path: Path) -> None:
    copy, node = second_machine(registrar, tmp_path)
    arguments = ["--dir", str(copy), "--node-dir", str(node)]
    done = CliRunner().invoke(command, ["join", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["directory"] == str(copy)
    done = CliRunner().invoke(command, ["leave", *arguments])
    assert done.exit_code == 0, done.output
    assert "has left" in done.output
    registrar.engine.dispose()
