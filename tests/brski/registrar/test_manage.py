"""What operators do with manufacturers and devices, by the command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from minerva.brski.registrar.config import PORT as CONFIG_PORT
from minerva.brski.registrar.database import DeviceState, set_state, writing
from minerva.brski.registrar.devices import set_audit
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.init import OWN_NODE
from minerva.brski.registrar.policy import Policy
from minerva.brski.registrar.server import RUNNING
from minerva.cli import registrar_manage
from minerva.cli.main import main
from minerva.pki.certificates import dump_pem
from minerva.pki.idevid import SerialNumberSource
from tests.brski.registrar.makers import PEER, Bench, Maker


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, policy=Policy.APPROVE)


class Failed(Exception):
    """The command failed: its exit code and what it said."""


def run(bench: Bench, *arguments: str, input: str | None = None) -> str:  # noqa: A002
    result = CliRunner().invoke(
        registrar_manage.registrar,
        [*arguments, "--dir", str(bench.made.directory)],
        input=input,
    )
    if result.exception is not None:
        raise result.exception if not isinstance(result.exception, SystemExit) else Failed(result.output)
    return result.output


def run_json(bench: Bench, *arguments: str) -> Any:
    return json.loads(run(bench, *arguments, "--json"))


def test_the_names_are_those_of_the_program() -> None:
    assert [policy.value for policy in Policy] == list(registrar_manage.POLICIES)
    assert [state.value for state in DeviceState] == list(registrar_manage.STATES)
    assert [source.value for source in SerialNumberSource] == list(registrar_manage.SERIAL_SOURCES)
    assert registrar_manage.PORT == CONFIG_PORT


def test_manufacturers(bench: Bench, tmp_path: Path) -> None:
    """
    covers: R-11, R-31
    """
    other = Maker("Other")
    anchors = tmp_path / "other.pem"
    anchors.write_bytes(dump_pem([other.root]))
    added = run_json(
        bench,
        *("manufacturer", "add", "Other", "--anchors", str(anchors), "--masa-url", "masa.other.example"),
        *("--masa-anchors", "web", "--policy", "listed", "--ignore-expiry"),
    )
    assert added["masa_url"] == "https://masa.other.example/.well-known/brski"
    assert (added["policy"], added["masa_anchors"], added["ignore_expiry"]) == ("listed", "web", True)
    names = [one["name"] for one in run_json(bench, "manufacturer", "list")["manufacturers"]]
    assert names == ["Maker", "Other"]
    assert "masa.other.example" in run(bench, "manufacturer", "list")
    changed = run_json(bench, "manufacturer", "change", "Other", "--policy", "any", "--heed-expiry")
    assert (changed["policy"], changed["ignore_expiry"]) == ("any", False)
    assert (changed["masa_url"], changed["masa_anchors"]) == (added["masa_url"], "web")
    changed = run_json(
        bench, "manufacturer", "change", "Other", "--masa-url", "x.example", "--masa-anchors", str(anchors)
    )
    assert changed["masa_url"] == "https://x.example/.well-known/brski"
    assert changed["masa_anchors"] == [other.root.subject.rfc4514_string()]
    changed = run_json(bench, "manufacturer", "change", "Other", "--masa-url", "", "--masa-anchors", "")
    assert (changed["masa_url"], changed["masa_anchors"]) == (None, None)
    assert run_json(bench, "manufacturer", "remove", "Other") == {"removed": "Other"}
    for arguments in (
        ("manufacturer", "add", "Maker", "--anchors", str(anchors)),
        ("manufacturer", "remove", "Nobody"),
        ("manufacturer", "change", "Nobody"),
    ):
        with pytest.raises(Exception, match=r"Maker|Nobody"):
            run(bench, *arguments)
    anchors.write_bytes(b"0\x82no PEM")
    with pytest.raises(
        Exception, match=r"^anchors: not certificates in PEM, which begin with -----BEGIN CERT"
    ):
        run(bench, "manufacturer", "add", "Another", "--anchors", str(anchors))


def test_a_manufacturer_whose_devices_are_here_stays(bench: Bench) -> None:
    run(bench, "allow", "D-1")
    with pytest.raises(Exception, match="there are devices of Maker"):
        run(bench, "manufacturer", "remove", "Maker")


def test_a_device_that_waits_is_approved(bench: Bench) -> None:
    """
    covers: R-23
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    with pytest.raises(Refusal):
        bench.asks(pledge, body)
    (waiting,) = run_json(bench, "devices", "--state", "waiting")["devices"]
    assert (waiting["serial_number"], waiting["manufacturer"], waiting["peer"]) == ("D-1", "Maker", PEER)
    assert run(bench, "approve", "D-1") == "D-1 is approved\n"
    assert bench.asks(pledge, body)
    assert run_json(bench, "devices")["devices"][-1]["state"] == "vouchered"
    assert run_json(bench, "approve", "D-1")["state"] == "vouchered"
    kinds = [event["kind"] for event in run_json(bench, "log", "D-1")["events"]]
    assert kinds == ["waiting", "approved", "voucher", "approved"]


def test_devices_are_allowed_before_they_come(bench: Bench) -> None:
    """
    covers: R-22
    """
    assert run(bench, "allow", "D-1", "--from", "-", input="D-2\n\nD-3\n") == "3 allowed\n"
    assert bench.asks(bench.maker.device("D-2"))
    assert run_json(bench, "allow", "D-2")["devices"][0]["state"] == "vouchered"
    with pytest.raises(Exception, match=r"Give a SERIAL"):
        run(bench, "allow")
    with pytest.raises(Exception, match="can be seen"):
        run(bench, "allow", "\x1b[2J")


def test_devices_are_denied_and_come_back(bench: Bench) -> None:
    """
    covers: R-22
    """
    assert run_json(bench, "deny", "D-1", "--reason", "stolen")["reason"] == "stolen"
    pledge = bench.maker.device("D-1")
    with pytest.raises(Refusal) as caught:
        bench.asks(pledge)
    assert caught.value.status == 404
    assert "stolen" in run(bench, "devices")
    run(bench, "approve", "D-1")
    assert bench.asks(pledge)
    run(bench, "deny", "D-1")
    assert run_json(bench, "devices", "--state", "denied")["devices"][0]["serial_number"] == "D-1"


def test_a_device_is_revoked(bench: Bench) -> None:
    run(bench, "allow", "D-1")
    pledge = bench.maker.device("D-1")
    bench.asks(pledge)
    assert run_json(bench, "revoke", "D-1", "--reason", "sold")["state"] == "revoked"
    with pytest.raises(Refusal) as caught:
        bench.asks(pledge)
    assert "sold" in caught.value.reason
    with pytest.raises(Exception, match="no device D-9"):
        run(bench, "revoke", "D-9")


@pytest.mark.parametrize(("command", "state"), [("deny", "denied"), ("revoke", "revoked")])
def test_the_first_node_is_not_shut_out_by_mistake(bench: Bench, command: str, state: str) -> None:
    with pytest.raises(Exception, match=r"first node of the domain, .* say --own"):
        run(bench, command, OWN_NODE)
    assert run_json(bench, "devices")["devices"][0]["state"] == "enrolled"
    assert run_json(bench, command, OWN_NODE, "--own")["state"] == state


def test_an_address_to_listen_on_that_is_none(bench: Bench) -> None:
    with pytest.raises(Failed, match="x is not an IPv6 address"):
        run(bench, "run", "--address", "x")


def test_a_number_that_is_denied_before_its_device_comes(bench: Bench) -> None:
    assert "has not come yet" in run(bench, "deny", "D-9")
    with pytest.raises(Refusal):
        bench.asks(bench.maker.device("D-1"))
    assert run(bench, "deny", "D-1") == "D-1 is denied\n"


def test_a_history_that_the_operator_takes(bench: Bench) -> None:
    """
    covers: R-62
    """
    run(bench, "allow", "D-1")
    pledge = bench.maker.device("D-1")
    bench.masa.log = b"nonsense"
    with pytest.raises(Refusal):
        bench.asks(pledge)
    assert "history refused" in run(bench, "devices")
    assert run_json(bench, "approve", "D-1")["audit_ok"] is True
    assert bench.asks(pledge)
    assert "cannot be read" in run(bench, "log", "D-1")


def test_two_manufacturers_with_the_same_number(bench: Bench) -> None:
    other = Maker("Other")
    bench.add(other)
    with pytest.raises(Exception, match="2 manufacturers: say --manufacturer"):
        run(bench, "allow", "D-1")
    for name in ("Maker", "Other"):
        run(bench, "allow", "D-1", "--manufacturer", name)
    with pytest.raises(Exception, match="2 manufacturers have a device D-1"):
        run(bench, "revoke", "D-1")
    assert run_json(bench, "deny", "D-1", "--manufacturer", "Other")["state"] == "denied"
    assert len(run_json(bench, "devices", "--state", "denied")["devices"]) == 1


def test_what_was_refused_is_seen(bench: Bench) -> None:
    """
    covers: R-22
    """
    stranger = Maker("Stranger").device("S-1")
    with pytest.raises(Refusal) as caught:
        bench.asks(stranger)
    bench.journal.refused(caught.value, "requestvoucher", "2001:db8::1", bench.now)
    (refused,) = run_json(bench, "devices")["refused"]
    assert refused["peer"] == "2001:db8::1"
    assert refused["detail"]["status"] == 403
    assert "not known here" in refused["detail"]["reason"]
    text = run(bench, "log")
    assert "from 2001:db8::1" in text
    assert "Stranger Root" in text
    assert "refused in the last day" in run(bench, "devices")


def test_status(bench: Bench) -> None:
    status = run_json(bench, "status")
    assert status["domain"] == "acp.example.com"
    assert status["devices"]["enrolled"] == 1  # the registrar's own node
    assert status["running"] == []
    assert "no process runs" in run(bench, "status")
    assert status["crl"] is None
    assert "no CRL yet: `minerva registrar run` makes it" in run(bench, "status")
    now = datetime.now(UTC)
    for name, seen in (("a", now), ("b", now - timedelta(hours=1))):
        content = {"address": "fd00::1", "port": 8443, "seen": seen.isoformat(), "announced": name == "a"}
        with writing(bench.engine) as connection:
            set_state(connection, f"{RUNNING}{name}", json.dumps(content))
    assert len(run_json(bench, "status")["running"]) == 1
    assert "runs on [fd00::1]:8443, announced" in run(bench, "status")


def test_the_history_of_an_enrolled_device_is_shown_as_it_is(bench: Bench) -> None:
    with writing(bench.engine) as connection:
        set_audit(connection, 1, ok=False, reason="bad\x1b[2J")
    assert "\x1b" not in run(bench, "devices")


def test_a_directory_without_registrar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["registrar", "devices", "--dir", str(tmp_path)])
    assert caught.value.code == 2
    assert "minerva registrar init" in capsys.readouterr().err
