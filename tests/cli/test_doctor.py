"""``minerva doctor`` where there is no node, or nothing for one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minerva.cli.main import main
from minerva.pki.ca import CertificateAuthority, write_node_directory


def doctor(capsys: pytest.CaptureFixture[str], directory: Path, *more: str) -> tuple[int, str]:
    """Return exit code and output; all that it looks at is in ``directory``."""
    where = {"state-dir": "state", "run-dir": "run", "config": "minerva.toml"}
    options = [f"--{option}={directory / name}" for option, name in where.items()]
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *options, *more])
    assert isinstance(ended.value.code, int)
    found = capsys.readouterr()
    assert found.err == ""
    return ended.value.code, found.out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to read the state of a node")
def test_without_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "minerva.toml").write_text("")
    authority = CertificateAuthority.create("example.net", tmp_path / "ca")
    write_node_directory(tmp_path / "state", authority.issue())
    code, text = doctor(capsys, tmp_path)
    assert code == 1
    assert "@example.net in" in text
    assert "minerva.toml is right" in text
    assert "no node runs with the run directory" in text
    assert "\n1 problem, no warnings\n" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to read the state of a node")
def test_what_a_node_would_stumble_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "minerva.toml").write_text('log_level = "loud"\n')
    authority = CertificateAuthority.create("example.net", tmp_path / "ca")
    write_node_directory(tmp_path / "state", authority.issue())
    (tmp_path / "state" / "key.pem").chmod(0o644)
    code, text = doctor(capsys, tmp_path, "--json")
    found = json.loads(text)
    assert (code, found["ok"]) == (1, False)
    problems = {item["area"]: item["what"] for item in found["findings"] if item["level"] == "problem"}
    assert "log_level must be one of" in problems["configuration"]
    assert "key.pem can be read by others" in problems["identity"]
    before = sorted((tmp_path / "state").iterdir())
    doctor(capsys, tmp_path)
    assert sorted((tmp_path / "state").iterdir()) == before


def test_a_console_server_that_should_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "minerva.toml").write_text('[console.ports.web1]\ntype = "serial"\ndevice = "/dev/ttyS0"\n')
    code, text = doctor(capsys, tmp_path)
    if os.geteuid() == 0:
        assert code == 1
        assert "no console server runs" in text
    else:
        assert "run it as root" in text
