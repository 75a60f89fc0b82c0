"""Consoles of other nodes, whose announcements may be anybody's."""

from __future__ import annotations

import os
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minerva.cli import console_remote
from minerva.cli.console import console
from minerva.console.announce import Announced
from minerva.console.events import State
from minerva.core.errors import UsageError

GOOD, EVIL = IPv6Address("fd01::1"), IPv6Address("fd01::bad")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run, of a domain in which two nodes say that they are called web."""
    commands: list[list[str]] = []
    servers = [
        Announced(GOOD, 2222, 0, {"web1": State.CONNECTED, "both": State.CONNECTED}),
        Announced(EVIL, 2022, 0, {"web2": State.CONNECTED, "both": State.CONNECTED}),
    ]
    names = {str(GOOD): "web", str(EVIL): "web", "fd01::2": "other"}
    monkeypatch.setattr(console_remote, "find", lambda _: servers)
    monkeypatch.setattr(console_remote, "node_names", lambda _: names)
    monkeypatch.setattr(os, "execvp", lambda _, words: commands.append(words))
    return commands


def attach(tmp_path: Path, *arguments: str) -> Result:
    words = ["attach", *arguments, "--run-dir", str(tmp_path)]
    return CliRunner().invoke(console, words, catch_exceptions=True)


def test_a_node_that_is_found_by_an_announcement_gets_no_password(
    tmp_path: Path, ran: list[list[str]]
) -> None:
    done = attach(tmp_path, "web2", "--user", "alice")
    assert "web2 is at fd01::bad, says that node; for a password, say web2@fd01::bad" in done.output
    [words] = ran
    assert {"PasswordAuthentication=no", "KbdInteractiveAuthentication=no"} <= set(words)


def test_no_node_gets_an_agent_or_a_forwarding(tmp_path: Path, ran: list[list[str]]) -> None:
    attach(tmp_path, f"web1@{GOOD}", "--user", "alice")
    [words] = ran
    assert {"-a", "-x", "ClearAllForwardings=yes", "StrictHostKeyChecking=ask"} <= set(words)
    assert f"HostKeyAlias=minerva-{GOOD}" in words
    assert "PasswordAuthentication=no" not in words
    assert words[-5:] == ["-p", "2222", "-l", "alice:web1", str(GOOD)]


def test_where_there_are_two_one_has_to_say_which(tmp_path: Path, ran: list[list[str]]) -> None:
    found = attach(tmp_path, "both", "--user", "alice").exception
    assert isinstance(found, UsageError)
    assert str(found) == "several nodes have a console both: say which of both@fd01::1, both@fd01::bad"
    found = attach(tmp_path, "web1@web", "--user", "alice").exception
    assert isinstance(found, UsageError)
    assert str(found) == "several nodes are called web: say one of web1@fd01::1, web1@fd01::bad"
    assert not ran
