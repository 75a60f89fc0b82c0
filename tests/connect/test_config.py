"""The configuration: defaults, every setting, and one clear sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from minerva.connect import config
from minerva.core.errors import UsageError


def test_nothing_configured_is_a_configuration() -> None:
    assert config.parse("", "x") == config.Config()


def test_all_settings() -> None:
    text = """
    log_level = "debug"
    outer_addresses = "ula"
    [ports]
    include = ["eth*"]
    exclude = ["eth9"]
    bring_up = false
    [acp]
    interface = "acp7"
    unguarded = true
    [rpl]
    root = true
    [proxy]
    enabled = false
    [ike]
    ike_lifetime = 4
    child_lifetime = 3
    child_bytes = 1_048_576
    udp_encapsulation = "accept"
    [debug]
    key_log = "/tmp/keys"
    """
    parsed = config.parse(text, "x")
    assert parsed == config.Config(
        ports=config.Ports(("eth*",), ("eth9",), False),
        acp=config.Acp("acp7", True),
        rpl=config.Rpl(True),
        proxy=config.Proxy(False),
        ike=config.Ike(4, 3, 1 << 20, "accept"),
        debug=config.Debug("/tmp/keys"),
        outer_addresses="ula",
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[port]", "no setting 'port'"),
        ("[ports]\ninculde = []", "no setting 'inculde'; there are: bring_up, exclude, include"),
        ("ports = 1", "ports must be a table"),
        ('[ports]\ninclude = "eth0"', "must be a list of strings"),
        ("[ports]\nbring_up = 1", "must be true or false"),
        ("[acp]\ninterface = 5", "must be a string"),
        ('[acp]\ninterface = "a name too long"', "cannot be the name of an interface"),
        ('[ike]\nudp_encapsulation = "on"', "ike.udp_encapsulation must be one of off, accept, force"),
        ("[ike]\nudp_encapsulation = true", "ike.udp_encapsulation must be a string"),
        ("[ike]\nchild_lifetime = 1", "ike.child_lifetime must be 2 to 86400 seconds"),
        ("[ike]\nike_lifetime = 90_000", "ike.ike_lifetime must be 2 to 86400 seconds"),
        ("[ike]\nike_lifetime = 9.5", "must be a whole number"),
        ("[ike]\nchild_bytes = 1_048_575", "ike.child_bytes must be 1048576 to 274877906944 bytes"),
        ("[ike]\nchild_bytes = 274_877_906_945", "ike.child_bytes must be 1048576 to 274877906944 bytes"),
        ('log_level = "loud"', "log_level must be one of"),
        ('outer_addresses = "ULA"', "outer_addresses must be one of link-local, ula"),
        ("outer_addresses = true", "outer_addresses must be a string"),
        ('data_plane = "hardware"', "data_plane must be one of auto, kernel, user"),
        ("[ports", "is not TOML"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"^minerva\.toml") as caught:
        config.parse(text, "minerva.toml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["key", "psk", "spi", "secret", "manual"])
def test_no_key_can_be_set(setting: str) -> None:
    """Keys of channels come from IKE alone: there is nothing of which one could be made by hand.

    covers: 6.8.3.1-2
    """
    with pytest.raises(UsageError, match=f"there is no setting '{setting}'") as caught:
        config.parse(f'[ike]\n{setting} = "00"', "x")
    known = str(caught.value).rpartition("there are: ")[2].split(", ")
    assert set(known) == {"ike_lifetime", "child_lifetime", "child_bytes", "udp_encapsulation"}


def test_the_file_and_the_setting_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    for text, words in [
        ('[ports]\ninclude = "eth0"', "ports.include must be a list of strings"),
        ("ports = 1", "ports must be a table"),
        ("[ports]\ninculde = []", "ports: there is no setting 'inculde'"),
        ("port = 1", "there is no setting 'port'"),
        ('data_plane = "x"', "data_plane must be one of"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            config.load(path)
        assert str(caught.value).startswith(f"{path}: {words}")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no configuration file"):
        config.load(tmp_path / "none.toml")


def test_the_table_of_the_console_server_is_not_the_nodes() -> None:
    parsed = config.parse('[console.users.alice]\npassword = "scrypt"\n', "x")
    assert parsed.console == {"users": {"alice": {"password": "scrypt"}}}
    assert "scrypt" not in repr(parsed)
