"""``minerva ca`` as an operator types it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minerva.cli.ca import KEY_TYPES, NODE_SCHEMES, ca
from minerva.pki.address import Scheme
from minerva.pki.identity import check_own, load_identity
from minerva.pki.keys import KeyType

DOMAIN = "acp.example.com"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ca, [str(argument) for argument in arguments], catch_exceptions=False)


def run_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def ca_dir(tmp_path: Path) -> Path:
    assert run("init", DOMAIN, "--dir", tmp_path / "ca").exit_code == 0
    return tmp_path / "ca"


def one_sentence(result: Result, sentence: str) -> None:
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_init(tmp_path: Path) -> None:
    result = run("init", DOMAIN, "--dir", tmp_path / "ca", "--key-type", "p384", "--days", "10")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"CA for {DOMAIN} in {tmp_path / 'ca'}, valid until ")
    printed = run_json("init", DOMAIN, "--dir", tmp_path / "other", "--days", "10")
    assert printed["domain"] == DOMAIN
    assert printed["directory"] == str(tmp_path / "other")
    left = datetime.fromisoformat(printed["expires"]) - datetime.now(UTC)
    assert timedelta(days=9, hours=23) < left <= timedelta(days=10)


def test_issue(ca_dir: Path, tmp_path: Path) -> None:
    printed = run_json("issue", ca_dir, tmp_path / "n1")
    us = load_identity(tmp_path / "n1")
    check_own(us, datetime.now(UTC))
    assert printed["address"] == str(us.address)
    assert printed["prefix"] == str(us.address.prefix)
    assert printed["acp_node_name"] == str(us.node_name)
    assert int(printed["serial"], 16) == us.certificate.serial_number
    assert printed["directory"] == str(tmp_path / "n1")
    result = run("issue", ca_dir, tmp_path / "n2")
    assert result.stdout.startswith(str(load_identity(tmp_path / "n2").address))


@pytest.mark.parametrize("scheme", NODE_SCHEMES)
def test_issue_options(ca_dir: Path, tmp_path: Path, scheme: str) -> None:
    arguments = ("--scheme", scheme, "--rsub", "area51.research", "--name", "router 7", "--with-ip-san")
    printed = run_json(
        "issue", ca_dir, tmp_path / "node", *arguments, "--seconds", "90", "--key-type", "p521"
    )
    us = load_identity(tmp_path / "node")
    assert us.address.scheme.value == scheme
    assert us.address.global_id.hex() == "89b714f3db"
    assert us.certificate.subject.rfc4514_string() == "CN=router 7"
    left = datetime.fromisoformat(printed["expires"]) - datetime.now(UTC)
    assert timedelta(seconds=60) < left <= timedelta(seconds=90)


def test_no_address(ca_dir: Path, tmp_path: Path) -> None:
    printed = run_json("issue", ca_dir, tmp_path / "member", "--no-address", "--days", "2")
    assert printed["address"] is None
    assert printed["prefix"] is None
    assert printed["acp_node_name"] == "@acp.example.com"
    assert run("issue", ca_dir, tmp_path / "m2", "--no-address").stdout.startswith("@acp.example.com in ")


def test_list(ca_dir: Path, tmp_path: Path) -> None:
    assert run_json("list", ca_dir) == {"domain": DOMAIN, "issued": []}
    names = [run_json("issue", ca_dir, tmp_path / f"n{n}")["acp_node_name"] for n in range(3)]
    assert [entry["acp_node_name"] for entry in run_json("list", ca_dir)["issued"]] == names
    lines = run("list", ca_dir).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == names


def test_ca_below(ca_dir: Path, tmp_path: Path) -> None:
    assert run_json("init", "--parent", ca_dir, "--dir", tmp_path / "sub")["domain"] == DOMAIN
    run_json("issue", tmp_path / "sub", tmp_path / "node")
    us = load_identity(tmp_path / "node")
    assert len(us.chain) == 1
    check_own(us, datetime.now(UTC))


def test_refused_input(ca_dir: Path, tmp_path: Path) -> None:
    node = tmp_path / "node"
    one_sentence(run("init", "no domain", "--dir", tmp_path / "x"), "is no ACP domain")
    one_sentence(run("init", "--dir", tmp_path / "x"), "Give either DOMAIN")
    one_sentence(run("init", DOMAIN, "--dir", tmp_path / "x", "--parent", ca_dir), "Give either DOMAIN")
    one_sentence(run("init", DOMAIN, "--dir", tmp_path / "x", "--days", "0"), "0 is not in the range")
    one_sentence(run("init", DOMAIN, "--dir", tmp_path / "x", "--key-type", "rsa512"), "rsa512")
    one_sentence(run("init", DOMAIN, "--dir", ca_dir), "there is a CA in")
    one_sentence(run("issue", tmp_path / "x", node), "make one with `minerva ca init`")
    one_sentence(run("issue", ca_dir, node, "--rsub", "a..b"), "is no routing subdomain")
    one_sentence(run("issue", ca_dir, node, "--scheme", "manual"), "manual")
    one_sentence(run("issue", ca_dir, node, "--days", "1", "--seconds", "1"), "not both")
    one_sentence(run("issue", ca_dir, node, "--days", "99999999999"), "not in the range")
    one_sentence(run("issue", ca_dir, node, "--no-address", "--with-ip-san"), "needs an address")
    one_sentence(run("list", tmp_path / "x"), "no CA in")
    assert not node.exists()
    assert not (tmp_path / "x").exists()
    assert run_json("list", ca_dir)["issued"] == []


def test_a_place_that_cannot_be_written(ca_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_sentence(run("issue", ca_dir, tmp_path / "file" / "node"), "Not a directory")


def test_an_identity_is_not_overwritten(ca_dir: Path, tmp_path: Path) -> None:
    run_json("issue", ca_dir, tmp_path / "node")
    before = load_identity(tmp_path / "node")
    one_sentence(run("issue", ca_dir, tmp_path / "node"), "there is an identity in")
    assert load_identity(tmp_path / "node") == before
    address = run_json("issue", ca_dir, tmp_path / "next")["address"]
    assert load_identity(tmp_path / "next").address.node_number == before.address.node_number + 1
    assert address != str(before.address)


def test_choices_are_those_of_the_library() -> None:
    assert set(KEY_TYPES) == {key_type.value for key_type in KeyType}
    assert set(NODE_SCHEMES) == {scheme.value for scheme in Scheme} - {"manual"}


def test_help_does_not_load_cryptography() -> None:
    code = "import sys, minerva.cli.ca; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
