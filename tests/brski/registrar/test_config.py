"""registrar.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from minerva.brski.registrar.config import CONFIG_FILE, Config, load, parse
from minerva.core.errors import UsageError


def test_everything_has_a_default() -> None:
    """
    covers: R-24
    """
    assert parse("", "f") == Config()
    assert not Config().pledges.open
    assert Config().server.announce_period == 60


def test_the_database_is_a_file_unless_it_is_said(tmp_path: Path) -> None:
    assert Config().database_url(tmp_path) == f"sqlite:///{tmp_path / 'registrar.db'}"
    assert Config(database="postgresql:///r").database_url(tmp_path) == "postgresql:///r"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server]\nannounce_period = 59", "server.announce_period must be 60 to 86400"),
        ('[server]\naddress = "10.0.0.1"', "server.address must be an IPv6 address"),
        ("[server]\nport = 65536", "server.port must be 0 to 65535"),
        ("[pledges]\nretry_after = 61", "pledges.retry_after must be 1 to 60"),
        ('[audit]\nforeign = "x"', "audit.foreign must be one of accept, refuse"),
        ('[audit]\ndomains = ["%"]', "audit.domains must be base64"),
        ('[masa.servers."m"]\nkey = "k"', 'masa.servers."m": certificate and key need each other'),
        ('[masa.servers."m"]\nuser = "u"', 'masa.servers."m": user and password_file need each other'),
        ('log_level = "x"', "log_level must be one of"),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "f")
    assert f"f: {sentence}" in str(caught.value)


def test_a_directory_without_a_registrar(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minerva registrar init"):
        load(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path)
