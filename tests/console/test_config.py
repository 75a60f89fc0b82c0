"""The settings of a console server: defaults, every setting, and one sentence for what is wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from minerva.console import config
from minerva.console.port_config import (
    PORT_TYPES,
    POWER_TYPES,
    CommandPower,
    IpmiPort,
    IpmiPower,
    Port,
    Power,
    PtyPort,
    RedfishPower,
    Rfc2217Port,
    SerialPort,
    SshPort,
)
from minerva.core.errors import UsageError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f alice@desk"
HASH = "$scrypt$ln=14,r=8,p=5$AAECAwQFBgcICQoLDA0ODw$AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

EVERYTHING = f"""
log_level = "debug"

[console]
directory = "/srv/console"
listen = ["acp", "loopback", "192.0.2.1", "2001:db8::1"]
announce = false

[console.ssh]
enabled = true
port = 22
escape = "^^."

[console.web]
enabled = false
port = 443
certificate = "/c.pem"
key = "/k.pem"
session_hours = 1

[console.records]
ports = ["a*"]
input = ["ab*"]
rotate_mib = 1
rotate_hours = 2
compress = "none"
keep_days = 0
keep_mib = 0

[console.access]
user_ca = ["{KEY}"]
passwords = false
failures = 3

[console.groups.ops]
view = ["*"]
write = ["web*"]
power = ["web1"]
admin = []

[console.users.alice]
keys = ["{KEY}"]
password = "{HASH}"
groups = ["ops"]
admin = ["lab-?"]

[console.alerts.panic]
pattern = "Kernel panic"
ports = ["web*"]
to = ["log", "webhook"]
webhook = "https://example.net/hook"
context = 3
interval = 0

[console.ports.web1]
type = "serial"
device = "/dev/ttyS0"
speed = 9600
framing = "7E2"
flow = "rtscts"
dtr = false
rts = false
description = "rack 1"
ring = 4096
break_ms = 500
ssh_port = 2301
raw_port = 2302
telnet_port = 2303
tools_user = "alice"
power = {{ type = "command", on = ["pdu", "on", "1"] }}

[console.ports.bmc]
type = "ipmi"
host = "bmc.example.net"
user = "root"
password_file = "/etc/secret"

[console.ports.other]
type = "rfc2217"
host = "2001:db8::2"
port = 4000

[console.ports.other.power]
type = "redfish"
url = "https://bmc.example.net"
"""


def parse(text: str) -> config.Config:
    found = config.parse(text, "f")
    assert found is not None
    return found


def test_a_file_without_the_table_has_no_console_server() -> None:
    assert config.parse('name = "x"', "f") is None
    assert parse("[console]") == config.Config()


def test_all_settings() -> None:
    found = parse(EVERYTHING)
    assert found.directory == "/srv/console"
    assert found.records_directory == Path("/srv/console/records")
    assert found.audit_file == Path("/srv/console/audit.jsonl")
    assert found.listen == ("acp", "loopback", "192.0.2.1", "2001:db8::1")
    assert not found.announce
    assert found.ssh == config.Ssh(True, 22, "^^.")
    assert found.ssh.escape_bytes == b"\x1e."
    assert found.web == config.Web(False, 443, "/c.pem", "/k.pem", 1)
    assert found.records == config.Records(("a*",), ("ab*",), 1, 2, "none", 0, 0)
    assert found.access == config.Access((KEY,), False, 3)
    assert found.groups == {"ops": config.Group(("*",), ("web*",), ("web1",))}
    assert found.users == {"alice": config.User((KEY,), HASH, ("ops",), admin=("lab-?",))}
    assert found.alerts == {
        "panic": config.Alert("Kernel panic", ("web*",), ("log", "webhook"), "https://example.net/hook", 3, 0)
    }
    assert found.ports["web1"] == SerialPort(
        device="/dev/ttyS0",
        speed=9600,
        framing="7E2",
        flow="rtscts",
        dtr=False,
        rts=False,
        description="rack 1",
        ring=4096,
        break_ms=500,
        ssh_port=2301,
        raw_port=2302,
        telnet_port=2303,
        tools_user="alice",
        power=CommandPower(on=("pdu", "on", "1")),
    )
    assert found.ports["other"] == Rfc2217Port(
        host="2001:db8::2", port=4000, power=RedfishPower(url="https://bmc.example.net")
    )


def test_a_console_over_ipmi_is_switched_by_its_own_bmc() -> None:
    port = parse(EVERYTHING).ports["bmc"]
    assert isinstance(port, IpmiPort)
    assert port.power == IpmiPower(host="bmc.example.net", user="root", password_file="/etc/secret")


def test_a_reload_finds_what_changed() -> None:
    before, after = parse(EVERYTHING), parse(EVERYTHING.replace("/dev/ttyS0", "/dev/ttyS1"))
    assert before != after
    assert {name for name in before.ports if before.ports[name] != after.ports[name]} == {"web1"}
    assert dataclasses.replace(before, ports={}) == dataclasses.replace(after, ports={})


def test_the_hash_of_a_password_is_not_shown() -> None:
    assert "scrypt" not in repr(parse(EVERYTHING))


MINIMAL = {
    "serial": 'device = "/dev/ttyUSB0"',
    "pty": 'path = "/dev/pts/7"',
    "process": 'command = ["cat"]',
    "unix": 'path = "@obmc-console"',
    "tcp": 'host = "h"\nport = 7',
    "telnet": 'host = "h"',
    "rfc2217": 'host = "h"\nport = 7',
    "ssh": 'host = "h"\nuser = "root"\nkey_file = "/k"',
    "ipmi": 'host = "h"',
    "libvirt": 'domain = "vm1"',
}


@pytest.mark.parametrize("kind", PORT_TYPES)
def test_every_kind_of_line(kind: str) -> None:
    port = parse(f'[console.ports.x]\ntype = "{kind}"\n{MINIMAL[kind]}').ports["x"]
    assert port.type == kind
    assert type(port) is PORT_TYPES[kind]


@pytest.mark.parametrize("kind", PORT_TYPES)
def test_every_kind_of_line_says_what_it_needs(kind: str) -> None:
    with pytest.raises(UsageError, match=r"^f: console\.ports\.x\.\w+ is needed$"):
        parse(f'[console.ports.x]\ntype = "{kind}"')


@pytest.mark.parametrize("kind", PORT_TYPES)
def test_every_kind_of_line_has_what_all_have(kind: str) -> None:
    with pytest.raises(UsageError, match=r"^f: console\.ports\.x\.ring must be 4096 to 268435456$"):
        parse(f'[console.ports.x]\ntype = "{kind}"\nring = 1\n{MINIMAL[kind]}')


def test_the_consoles_of_one_ssh_server_differ_by_their_commands() -> None:
    lines = 'type = "ssh"\nhost = "h"\nuser = "u"\npassword_file = "/p"\ncommand = "console %d"\n'
    found = parse(f"[console.ports.a]\n{lines % 1}[console.ports.b]\n{lines % 2}")
    assert isinstance(found.ports["a"], SshPort)


PORT = "[console.ports.x]\n"
SERIAL = f'{PORT}type = "serial"\ndevice = "/dev/ttyS0"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("console = 1", "console must be a table"),
        (
            '[console.users.a]\npassword = "secret"',
            "console.users.a.password must be a hash that 'minerva console password' prints",
        ),
        (
            "[console.users.break-glass]",
            "console.users: break-glass is the name for one-time tokens, and nobody else's",
        ),
        ("[console]\nother = 1", "console: there is no setting 'other'"),
        ("[console]\nports = 1", "console.ports must be a table of tables"),
        ('[console]\ndirectory = "x"', "console.directory must begin with /"),
        ("[console]\nlisten = []", "console.listen must say where"),
        ('[console]\nlisten = ["eth0"]', "console.listen: 'eth0' is neither acp nor loopback nor an address"),
        ("[console.ssh]\nport = 0", "console.ssh.port must be 1 to 65535"),
        ('[console.ssh]\nescape = "a^"', "console.ssh.escape: ^ needs"),
        ('[console.ssh]\nescape = "^é"', "console.ssh.escape: ^ needs"),
        ('[console.ssh]\nescape = "é"', "console.ssh.escape must be of characters that can be seen"),
        ('[console.ssh]\nescape = "abcd"', "console.ssh.escape must have three characters at most"),
        ("[console.web]\nport = 65536", "console.web.port must be 1 to 65535"),
        ("[console.web]\nport = 2222", "console.web.port is 2222, and so is f: console.ssh.port"),
        ('[console.web]\nkey = "/k"', "console.web: certificate and key need each other"),
        ("[console.web]\nsession_hours = 0", "console.web.session_hours must be 1 to 8760"),
        ('[console.records]\ncompress = "xz"', "console.records.compress must be one of none, gzip, zstd"),
        ("[console.records]\nrotate_mib = 0", "console.records.rotate_mib must be"),
        ("[console.records]\nrotate_hours = 0", "console.records.rotate_hours must be"),
        ("[console.records]\nkeep_days = -1", "console.records.keep_days must be"),
        ("[console.records]\nkeep_mib = -1", "console.records.keep_mib must be"),
        ("[console.access]\nfailures = 0", "console.access.failures must be"),
        ('[console.access]\nuser_ca = ["ssh-rsa"]', "console.access.user_ca must be public SSH keys"),
        (f'[console.users.a]\nkeys = ["ssh-rsa {KEY[12:]}"]', "console.users.a.keys must be public SSH keys"),
        ('[console.users.a]\ngroups = ["g"]', "console.users.a.groups: there is no group 'g'"),
        ('[console.users."a b"]', "console.users: 'a b' cannot be a name"),
        ('[console.groups.".."]', "console.groups: '..' cannot be a name"),
        ("[console.alerts.a]", "console.alerts.a.pattern is needed"),
        ('[console.alerts.a]\npattern = "("', "console.alerts.a.pattern is no regular expression"),
        ('[console.alerts.a]\npattern = "x"\nto = ["mail"]', "console.alerts.a.to must be one of log,"),
        ('[console.alerts.a]\npattern = "x"\nto = ["webhook"]', "console.alerts.a.webhook must be the URL"),
        ('[console.alerts.a]\npattern = "x"\nwebhook = "http://h"', "console.alerts.a.webhook is of no use"),
        (
            '[console.alerts.a]\npattern = "x"\nto = ["webhook"]\nwebhook = "ftp://h"',
            "console.alerts.a.webhook must be a URL",
        ),
        (
            '[console]\nannounce = false\n[console.alerts.a]\npattern = "x"\nto = ["grasp"]',
            "console.alerts.a.to: grasp needs announce = true, acp in listen, and SSH or the web page",
        ),
        ('[console.alerts.a]\npattern = "x"\ncontext = -1', "console.alerts.a.context must be"),
        ('[console.alerts.a]\npattern = "x"\ninterval = -1', "console.alerts.a.interval must be"),
        ("[console.ports]\nx = 1", "console.ports.x must be a table"),
        (PORT, "console.ports.x.type must be one of serial, pty,"),
        (f"{PORT}type = 1", "console.ports.x.type must be one of serial, pty,"),
        (
            f'{PORT}type = "serial"\nspede = 1',
            "console.ports.x: there is no setting 'spede'; there are: break_ms,",
        ),
        (f"{SERIAL}speed = 7", "console.ports.x.speed must be"),
        (f'{SERIAL}framing = "9N1"', "console.ports.x.framing must be like 8N1"),
        (
            f'{SERIAL}framing = "8N1.5"',
            "console.ports.x.framing can have 1.5 stop bits only with 5 data bits",
        ),
        (f'{SERIAL}flow = "dsrdtr"', "console.ports.x.flow cannot be dsrdtr: Linux"),
        (f'{SERIAL}flow = "x"', "console.ports.x.flow must be one of none, rtscts, xonxoff, dsrdtr"),
        (f"{SERIAL}break_ms = 0", "console.ports.x.break_ms must be 1 to 10000"),
        (f"{SERIAL}input_rate = -1", "console.ports.x.input_rate must be 0 to 10000000"),
        (f"{SERIAL}line_delay_ms = -1", "console.ports.x.line_delay_ms must be 0 to 60000"),
        (f"{SERIAL}raw_port = 7", "console.ports.x.tools_user must say whose rights"),
        (f'{SERIAL}tools_user = "z"', "console.ports.x.tools_user: there is no user 'z'"),
        (f"{SERIAL}ssh_port = 2280", "console.ports.x.ssh_port is 2280, and so is f: console.web.port"),
        (f"{SERIAL}power = 1", "console.ports.x.power must be a table"),
        (f'{SERIAL}power.type = "steam"', "console.ports.x.power.type must be one of ipmi, redfish, command"),
        (f'{SERIAL}power.type = "ipmi"', "console.ports.x.power.host is needed"),
        (f'{SERIAL}power.type = "command"', "console.ports.x.power has no command"),
        (
            f'{SERIAL}power = {{ type = "redfish", url = "http://h" }}',
            "console.ports.x.power.url must be https://HOST",
        ),
        (
            f'{SERIAL}power = {{ type = "redfish", url = "https://h", fingerprint = "12" }}',
            "console.ports.x.power.fingerprint must be the 64 hex digits",
        ),
        (
            f'{SERIAL}power = {{ type = "ipmi", host = "h", privilege = "root" }}',
            "console.ports.x.power.privilege must be one of user, operator, administrator",
        ),
        (f'{PORT}type = "tcp"\nhost = "h"\nport = 70000', "console.ports.x.port must be 1 to 65535"),
        (
            f'{PORT}type = "ssh"\nhost = "h"\nuser = "u"',
            "console.ports.x needs a key_file or a password_file",
        ),
        (
            f'{PORT}type = "ssh"\nhost = "h"\nuser = "u"\nkey_file = "/k"\nredfish = "https://h"',
            "console.ports.x.redfish needs a password_file",
        ),
        (
            f'{SERIAL}[console.ports.y]\ntype = "serial"\ndevice = "/dev/ttyS0"',
            "console.ports.y is /dev/ttyS0, and so is port x",
        ),
        (f'[console.ports."-x"]\n{SERIAL.removeprefix(PORT)}', "console.ports: '-x' cannot be a name"),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"f: {sentence}")


def test_what_is_not_toml_is_named() -> None:
    with pytest.raises(UsageError, match="f is not TOML"):
        config.parse("[console", "f")


@pytest.mark.parametrize(
    ("text", "typed"),
    [("", b""), ("^Ec", b"\x05c"), ("^ec", b"\x05c"), ("~.", b"~."), ("^^", b"\x1e"), ("^]^]", b"\x1d\x1d")],
)
def test_an_escape(text: str, typed: bytes) -> None:
    assert config.parse_escape(text, "escape") == typed


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "minerva.toml"
    with pytest.raises(UsageError, match=r"there is no configuration file .*minerva\.toml$"):
        config.load(file)
    file.write_text("")
    with pytest.raises(UsageError, match=r"has no table \[console\]"):
        config.load(file)
    file.write_text('[console.ports.x]\ntype = "pty"\npath = "/dev/pts/0"\n')
    assert config.load(file).ports == {"x": PtyPort(path="/dev/pts/0")}
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot read the configuration file"):
        config.load(file)


# -- the document

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "console.md").read_text()


def test_the_example_of_five_minutes() -> None:
    text = DOCUMENT.split("```toml\n")[1].split("```")[0]
    assert list(parse(text).ports) == ["web1"]


def test_the_document_shows_the_defaults() -> None:
    section = DOCUMENT.split("\n## Configuration\n")[1]
    text = section.split("```toml\n")[1].split("```")[0].replace("ssh-ed25519 AAAA... alice@desk", KEY)
    shown, default = parse(text), config.Config()
    for item in dataclasses.fields(config.Config):
        if item.name not in ("groups", "users", "alerts", "ports"):
            assert getattr(shown, item.name) == getattr(default, item.name)
    assert (shown.alerts["panic"].context, shown.alerts["panic"].interval) == (5, 60)
    alert, group = shown.alerts["panic"], shown.groups["operators"]
    for settings in (shown.ssh, shown.web, shown.records, shown.access, alert, group):
        for item in dataclasses.fields(settings):
            assert re.search(rf"^{item.name} = ", text, re.MULTILINE), item.name


@pytest.mark.parametrize("kind", [Port, *PORT_TYPES.values(), *POWER_TYPES.values()])
def test_the_document_has_all_settings_of_consoles(kind: type[Port] | type[Power]) -> None:
    settings = DOCUMENT.partition("\n## Kinds of consoles")[0]
    rows = [row for row in settings.splitlines() if row.startswith("| `")]
    names = {item.name for item in dataclasses.fields(kind)}
    if kind is Port:
        shown = "\n".join(row.split("|")[1] for row in rows)
    else:
        power = settings.index("| `power.type`")
        rows = [row for row in rows if (settings.rindex(row) > power) is (kind in POWER_TYPES.values())]
        (shown,) = (row for row in rows if row.startswith(f"| `{kind.type}` |"))
        if issubclass(kind, Port):
            names -= {item.name for item in dataclasses.fields(Port)}
        if kind is Rfc2217Port:
            assert "those of `serial` but for `device`" in shown
            names -= {item.name for item in dataclasses.fields(SerialPort)}
    assert [name for name in sorted(names) if f"`{name}`" not in shown] == []
