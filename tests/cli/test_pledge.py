"""Into a domain by hand, and out of it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minerva.cli import pledge as module
from minerva.cli.main import cli
from minerva.connect.state import lock_directory
from minerva.core.errors import MinervaError, UsageError
from minerva.core.secret import Secret
from minerva.pki.certificates import dump_pem
from minerva.pki.identity import Identity, load_identity, store_identity
from minerva.pki.keys import dump_private_key, load_private_key
from tests.brski.pledge.world import DEVICE, DROP, ISSUING, NODE_NAME, ROOT, Answer, Registrar, certify
from tests.pki.certs import key

IDENTITY = Identity.from_certificates(
    certify(key("p256/node").public_key()), (ISSUING.certificate,), (ROOT.certificate,)
)


def write_device(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "cert.pem").write_bytes(dump_pem((DEVICE.certificate,)))
    (directory / "anchors.pem").write_bytes(dump_pem(DEVICE.anchors))
    (directory / "key.pem").write_bytes(dump_private_key(DEVICE.key))
    (directory / "key.pem").chmod(0o600)
    return directory


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with what the maker put there."""
    write_device(tmp_path / "state" / "idevid")
    return tmp_path / "state"


@contextmanager
def at_work(registrar: Registrar) -> Iterator[str]:
    """A registrar in a thread of its own; where it is."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        async with registrar.running():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait(10)
    try:
        yield f"[::1]:{registrar.port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def minerva(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], **options)


def complaint(result: Result) -> str:
    assert isinstance(result.exception, MinervaError), result
    return str(result.exception)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_into_a_domain(state: Path) -> None:
    """covers: P-60, P-51"""
    registrar = Registrar()
    with at_work(registrar) as where:
        result = minerva("pledge", "--registrar", where, "--state-dir", state, "--json")
    assert result.exit_code == 0, result
    told = json.loads(result.stdout)
    assert told["acp_node_name"] == str(NODE_NAME)
    assert told["address"] == str(NODE_NAME.address)
    assert told["serial_number"] == DEVICE.serial_number
    assert told["directory"] == str(state)
    assert told["registrar"] == "CN=registrar"
    assert told["reported"] is True
    steps = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert steps == [
        "connecting",
        "voucher_requested",
        "voucher_verified",
        "ca_certificates",
        "attributes",
        "requested",
        "enrolled",
        "reported",
    ]
    identity = load_identity(state)
    assert identity.node_name == NODE_NAME
    assert identity.chain == (ISSUING.certificate,)
    assert identity.anchors == (ROOT.certificate,)
    assert (
        load_private_key((state / "key.pem").read_bytes()).public_key() == identity.certificate.public_key()
    )
    assert stat.S_IMODE((state / "key.pem").stat().st_mode) == 0o600
    assert registrar.asked[0].headers["host"] == where
    assert set(contents(state)) == {
        "cert.pem",
        "chain.pem",
        "key.pem",
        "anchors.pem",
        "idevid/cert.pem",
        "idevid/key.pem",
        "idevid/anchors.pem",
    }


def test_for_people(tmp_path: Path) -> None:
    device = write_device(tmp_path / "elsewhere")
    with at_work(Registrar()) as where:
        result = minerva("pledge", "--registrar", where, "--state-dir", tmp_path / "new", "--idevid", device)
    assert result.exit_code == 0, result
    assert result.stdout.startswith(f"{NODE_NAME.address} in {tmp_path / 'new'}, a member of acp.example.com")


def test_whether_the_registrar_could_be_told(state: Path) -> None:
    with at_work(Registrar(handlers={"enrollstatus": lambda _: DROP})) as where:
        result = minerva("pledge", "--registrar", where, "--state-dir", state, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reported"] is False
    assert "could not be told" in result.stderr
    assert load_identity(state).node_name == NODE_NAME


def test_a_refusal_leaves_nothing(state: Path) -> None:
    before = contents(state)
    with at_work(Registrar(handlers={"requestvoucher": [Answer(404, b"who are you?")]})) as where:
        result = minerva("pledge", "--registrar", where, "--state-dir", state)
    assert 'status 404: "who are you?"' in complaint(result)
    assert contents(state) == before


def test_not_if_it_is_a_member_already(state: Path) -> None:
    """covers: P-4"""
    store_identity(state, IDENTITY, Secret(dump_private_key(key("p256/node"))))
    before = contents(state)
    registrar = Registrar()
    with at_work(registrar) as where:
        result = minerva("pledge", "--registrar", where, "--state-dir", state)
    assert "there is an identity" in complaint(result)
    assert "factory-reset" in complaint(result)
    assert contents(state) == before
    assert registrar.connections == 0


def test_not_while_a_node_runs(state: Path) -> None:
    """covers: P-4"""
    lock = lock_directory(state, "")
    try:
        assert "a node runs" in complaint(minerva("pledge", "--registrar", "x", "--state-dir", state))
        assert "a node runs" in complaint(minerva("factory-reset", "--yes", "--state-dir", state))
    finally:
        os.close(lock)


def test_without_an_idevid(tmp_path: Path) -> None:
    why = complaint(minerva("pledge", "--registrar", "x", "--state-dir", tmp_path))
    assert str(tmp_path / "idevid" / "cert.pem") in why
    assert "minerva masa device" in why


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in (("pledge", "--registrar", "x"), ("factory-reset", "--yes")):
        assert "cannot use the state directory" in complaint(
            minerva(*command, "--state-dir", tmp_path / "file" / "x")
        )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("registrar.example:1234", ("registrar.example", 1234)),
        ("registrar.example", ("registrar.example", 8443)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("[2001:db8::1]", ("2001:db8::1", 8443)),
        ("2001:db8::1", ("2001:db8::1", 8443)),
        ("[fe80::1%eth0]:443", ("fe80::1%eth0", 443)),
    ],
)
def test_where_a_registrar_is(text: str, parsed: tuple[str, int]) -> None:
    assert module._host_and_port(text) == parsed


@pytest.mark.parametrize("text", ["fd00::1:8443", "fe80::1%eth0:8443"])
def test_an_address_that_may_have_a_port_needs_brackets(text: str) -> None:
    address = text.rpartition(":")[0]
    with pytest.raises(UsageError) as caught:
        module._host_and_port(text)
    assert str(caught.value).endswith(f"say [{text}] or [{address}]:8443")
    assert module._host_and_port(f"[{address}]:8443") == (address, 8443)


@pytest.mark.parametrize(
    "text", ["", ":1", "x:", "x:0", "x:65536", "x:1x", "[::1", "[::1]x", "[]:1", "[::1]:", "x:²"]
)
def test_where_no_registrar_is(text: str) -> None:
    with pytest.raises(UsageError, match="--registrar takes"):
        module._host_and_port(text)


@pytest.mark.parametrize(
    ("registrar", "why"),
    [("registrar.invalid:1", "cannot be found"), ("a..b:1", "no name"), ("[::1]:1", "refused")],
)
def test_a_registrar_that_is_not_there(state: Path, registrar: str, why: str) -> None:
    assert why in complaint(minerva("pledge", "--registrar", registrar, "--state-dir", state))


# --- out of it ---------------------------------------------------------------------------------------------


@pytest.fixture
def member(state: Path) -> Path:
    store_identity(state, IDENTITY, Secret(dump_private_key(key("p256/node"))))
    (state / "node-secret").write_bytes(bytes(32))
    return state


def test_a_factory_reset(member: Path) -> None:
    """covers: P-70"""
    idevid = contents(member / "idevid")
    result = minerva("factory-reset", "--yes", "--state-dir", member)
    assert result.exit_code == 0
    assert "is removed" in result.stdout
    assert result.stderr == ""
    assert set(contents(member)) == {"node-secret", *(f"idevid/{name}" for name in idevid)}
    assert contents(member / "idevid") == idevid
    result = minerva("factory-reset", "--yes", "--state-dir", member)
    assert result.exit_code == 0
    assert "nothing to forget" in result.stdout


def test_and_then_into_a_domain_again(member: Path) -> None:
    """covers: P-4"""
    minerva("factory-reset", "--yes", "--state-dir", member)
    with at_work(Registrar()) as where:
        assert minerva("pledge", "--registrar", where, "--state-dir", member).exit_code == 0
    assert load_identity(member).node_name == NODE_NAME


def test_a_renewal_that_was_cut_off_does_not_come_back(member: Path) -> None:
    new = member / "renewed"
    new.mkdir()
    for path in member.glob("*.pem"):
        (new / path.name).write_bytes(path.read_bytes())
    (new / ".cert.pem.x").write_bytes(b"")
    assert minerva("factory-reset", "--yes", "--state-dir", member).exit_code == 0
    assert not list(member.glob("*.pem"))
    assert not new.exists()


def test_a_reset_asks(member: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(member)
    assert "--yes" in complaint(minerva("factory-reset", "--state-dir", member))
    assert contents(member) == before
    asked: list[str] = []

    def confirm(answer: bool) -> Callable[..., bool]:
        return lambda text, **_: asked.append(text) or answer  # type: ignore[func-returns-value]

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    monkeypatch.setattr(module, "sys", type("sys", (), {"stdin": Terminal}))
    monkeypatch.setattr(module.click, "confirm", confirm(False))
    assert minerva("factory-reset", "--state-dir", member).exit_code == 1
    assert contents(member) == before
    monkeypatch.setattr(module.click, "confirm", confirm(True))
    assert minerva("factory-reset", "--state-dir", member).exit_code == 0
    assert not list(member.glob("*.pem"))
    assert all(str(member) in text for text in asked)


def test_a_reset_of_a_machine_without_a_maker(tmp_path: Path) -> None:
    store_identity(tmp_path, IDENTITY, Secret(b"key"))
    result = minerva("factory-reset", "--yes", "--state-dir", tmp_path)
    assert result.exit_code == 0
    assert "there is no idevid" in result.stderr
