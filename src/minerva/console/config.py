"""The configuration of a console server: the table ``[console]`` of ``minerva.toml``, checked at once.

Two configurations can be compared, as a whole and port by port: that is how a reload finds what to change.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from minerva.console import passwords
from minerva.console.port_config import Port, choice, number, port
from minerva.core import settings
from minerva.core.errors import UsageError

ROLES: Final = ("view", "write", "power", "admin")
ALERT_TARGETS: Final = ("log", "syslog", "webhook", "grasp")
COMPRESSIONS: Final = ("none", "gzip", "zstd")
BREAK_GLASS: Final = "break-glass"
"""The name to log in with whose password is a one-time token."""
ACP: Final = "acp"
LOOPBACK: Final = "loopback"
RECORDS: Final = "records"
"""Where in the directory the records are."""
AUDIT: Final = "audit.jsonl"
"""Where in the directory the audit log is."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Ssh:
    """The front for SSH."""

    enabled: bool = True
    port: int = 2222
    escape: str = "^Ec"
    """What begins a command of ours: one to three characters, ^X for a control character; none, if empty."""

    @property
    def escape_bytes(self) -> bytes:
        """The escape as it is typed."""
        return parse_escape(self.escape, "escape")


@dataclass(frozen=True, slots=True)
class Web:
    """The web page."""

    enabled: bool = True
    port: int = 2280
    certificate: str = ""
    """A PEM file with a certificate and its chain; without one, browsers have to be told of the one made."""
    key: str = ""
    """The PEM file with its private key."""
    session_hours: int = 12
    """After so long one has to log in again."""


@dataclass(frozen=True, slots=True)
class Records:
    """What is written down of consoles."""

    ports: tuple[str, ...] = ("*",)
    """Patterns of the consoles of which there are records."""
    input: tuple[str, ...] = ()
    """Patterns of the consoles of which what is typed is written down, too: passwords are among it."""
    rotate_mib: int = 64
    """A new file is begun when the one has so many MiB."""
    rotate_hours: int = 24
    """A new file is begun when the one is so old."""
    compress: str = "gzip"
    """How files are packed that are finished."""
    keep_days: int = 90
    """Finished files are removed when they are so old; 0 for never."""
    keep_mib: int = 10_240
    """The oldest finished files are removed when all together have more MiB; 0 for never."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who gets in, besides what is said of each user."""

    user_ca: tuple[str, ...] = ()
    """Public SSH keys of CAs whose user certificates are good here, for the users whom they name."""
    passwords: bool = True
    """Whether users may log in with a password."""
    failures: int = 10
    """So many failed logins a minute from one address; then it has to wait."""
    revoked: str = ""
    """The file of the keys and certificates that are good no more: OpenSSH's KRL, or public keys."""


@dataclass(frozen=True, slots=True)
class Group:
    """What its members may do; each is a list of patterns of consoles. Each role has those before it."""

    view: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    power: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """One who may log in, and what for."""

    keys: tuple[str, ...] = ()
    """Public SSH keys, as in authorized_keys."""
    password: str = field(default="", repr=False)
    """The hash of the password that `minerva console password` prints."""
    groups: tuple[str, ...] = ()
    view: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    power: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """A pattern to look for in what consoles say, line by line."""

    pattern: str = ""
    """A regular expression of Python."""
    ports: tuple[str, ...] = ("*",)
    to: tuple[str, ...] = ("log",)
    webhook: str = ""
    """The URL that is sent each alert as JSON."""
    context: int = 5
    """So many lines before are shown with it."""
    interval: int = 60
    """Seconds between two alerts of one console at least; those between are counted."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a console server."""

    directory: str = "/var/lib/minerva/console"
    """Where its keys, records and audit log are."""
    listen: tuple[str, ...] = (ACP,)
    """Where the fronts listen: acp, loopback, or addresses."""
    announce: bool = True
    """Tell the other nodes which consoles are here."""
    ssh: Ssh = field(default_factory=Ssh)
    web: Web = field(default_factory=Web)
    records: Records = field(default_factory=Records)
    access: Access = field(default_factory=Access)
    groups: dict[str, Group] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    alerts: dict[str, Alert] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)

    @property
    def records_directory(self) -> Path:
        """Where the records are, in a directory for each console."""
        return Path(self.directory) / RECORDS

    @property
    def announced(self) -> tuple[int, int] | None:
        """The ports of SSH and of the web page (or 0) that the domain is told of; None if it is not told."""
        ssh = self.ssh.port if self.ssh.enabled else 0
        web = self.web.port if self.web.enabled else 0
        return (ssh, web) if self.announce and ACP in self.listen and (ssh or web) else None

    @property
    def audit_file(self) -> Path:
        """Where it is written who did what."""
        return Path(self.directory) / AUDIT


def parse(text: str, source: str) -> Config | None:
    """Return the settings in the table ``[console]`` of ``text`` (TOML); None if there is no such table.

    Other tables are the node's. ``source`` is where the text comes from. Raises UsageError.
    """
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML: {error}") from error
    return from_table(whole["console"], f"{source}: console") if "console" in whole else None


def load(path: Path | None) -> Config:
    """Return the settings in the file ``path``; without one, those in the default file.

    Raises UsageError, also if the file says nothing of consoles.
    """
    file = path or settings.DEFAULT_FILE
    try:
        config = parse(file.read_text(), str(file))
    except FileNotFoundError:
        hint = "" if path else "; name another with --config"
        raise UsageError(f"there is no configuration file {file}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration file {file}: {error}") from error
    if config is None:
        raise UsageError(f"{file} has no table [console]: there are no consoles to serve")
    return config


def from_table(table: object, where: str) -> Config:
    """Return the settings that TOML has at ``where``. Raises UsageError."""
    ports: object = {}
    if isinstance(table, dict):
        ports = table.get("ports", {})
        table = {name: value for name, value in table.items() if name != "ports"}
    config = settings.build(Config, table, where)
    if not isinstance(ports, dict):
        raise UsageError(f"{where}.ports must be a table of tables")
    found = {name: port(inner, f"{where}.ports.{_quoted(name)}") for name, inner in ports.items()}
    config = replace(config, ports=found)
    _check(config, where)
    return config


def parse_escape(text: str, where: str) -> bytes:
    """Return the bytes of an escape sequence: ``^E`` is Control-E, ``^^`` Control-^. Raises UsageError."""
    found = bytearray()
    rest = iter(text)
    for character in rest:
        if character == "^":
            control = next(rest, "").upper()
            if len(control) != 1 or not "@" <= control <= "_":
                raise UsageError(f"{where}: ^ needs a letter or one of @[\\]^_ after it")
            found.append(ord(control) - ord("@"))
        elif " " < character <= "~":
            found.append(ord(character))
        else:
            raise UsageError(f"{where} must be of characters that can be seen, and ^X for Control-X")
    if len(found) > 3:
        raise UsageError(f"{where} must have three characters at most")
    return bytes(found)


def _check(config: Config, where: str) -> None:
    if not config.directory.startswith("/"):
        raise UsageError(f"{where}.directory must begin with /")
    _check_fronts(config, where)
    _check_records(config.records, f"{where}.records")
    number(config.access.failures, 1, 1000, f"{where}.access.failures")
    if config.access.revoked and not config.access.revoked.startswith("/"):
        raise UsageError(f"{where}.access.revoked must be a file, and begin with /")
    for key in config.access.user_ca:
        _check_key(key, f"{where}.access.user_ca")
    for kind, names in (
        ("groups", config.groups),
        ("users", config.users),
        ("alerts", config.alerts),
        ("ports", config.ports),
    ):
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"{where}.{kind}: {name!r} cannot be a name: letters, digits, '.', '_' and '-' can, "
                    "at first a letter or digit"
                )
    if BREAK_GLASS in config.users:
        raise UsageError(f"{where}.users: {BREAK_GLASS} is the name for one-time tokens, and nobody else's")
    for name, user in config.users.items():
        _check_user(user, config, f"{where}.users.{_quoted(name)}")
    for name, alert in config.alerts.items():
        _check_alert(alert, f"{where}.alerts.{_quoted(name)}")
        if "grasp" in alert.to and config.announced is None:
            raise UsageError(
                f"{where}.alerts.{_quoted(name)}.to: grasp needs announce = true, {ACP} in listen, and SSH "
                "or the web page enabled"
            )
    _check_ports(config, where)


def _check_fronts(config: Config, where: str) -> None:
    if not config.listen:
        raise UsageError(f"{where}.listen must say where: {ACP}, {LOOPBACK}, or addresses")
    for place in config.listen:
        if place not in (ACP, LOOPBACK):
            try:
                ip_address(place)
            except ValueError:
                raise UsageError(
                    f"{where}.listen: {place!r} is neither {ACP} nor {LOOPBACK} nor an address"
                ) from None
    number(config.ssh.port, 1, 65_535, f"{where}.ssh.port")
    parse_escape(config.ssh.escape, f"{where}.ssh.escape")
    number(config.web.port, 1, 65_535, f"{where}.web.port")
    number(config.web.session_hours, 1, 24 * 365, f"{where}.web.session_hours")
    if bool(config.web.certificate) is not bool(config.web.key):
        raise UsageError(f"{where}.web: certificate and key need each other")


def _check_records(records: Records, where: str) -> None:
    choice(records.compress, COMPRESSIONS, f"{where}.compress")
    number(records.rotate_mib, 1, 1 << 20, f"{where}.rotate_mib")
    number(records.rotate_hours, 1, 24 * 365, f"{where}.rotate_hours")
    number(records.keep_days, 0, 36_500, f"{where}.keep_days")
    number(records.keep_mib, 0, 1 << 40, f"{where}.keep_mib")


def _check_user(user: User, config: Config, where: str) -> None:
    for key in user.keys:
        _check_key(key, f"{where}.keys")
    if user.password and not passwords.is_hash(user.password):
        raise UsageError(f"{where}.password must be a hash that 'minerva console password' prints")
    for group in user.groups:
        if group not in config.groups:
            raise UsageError(f"{where}.groups: there is no group {group!r}")


def _check_key(text: str, where: str) -> None:
    """Check the form of a public key: ``TYPE BASE64 [COMMENT]``, and in the base64 the type again."""
    words = text.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        blob = b""
    if len(words) < 2 or blob[4 : 4 + int.from_bytes(blob[:4])] != words[0].encode():
        raise UsageError(f"{where} must be public SSH keys, such as 'ssh-ed25519 AAAA... name'")


def _check_alert(alert: Alert, where: str) -> None:
    if not alert.pattern:
        raise UsageError(f"{where}.pattern is needed")
    try:
        re.compile(alert.pattern)
    except re.error as error:
        raise UsageError(f"{where}.pattern is no regular expression: {error}") from error
    for target in alert.to:
        choice(target, ALERT_TARGETS, f"{where}.to")
    if "webhook" in alert.to and not alert.webhook:
        raise UsageError(f"{where}.webhook must be the URL, since 'webhook' is in {where}.to")
    if alert.webhook and "webhook" not in alert.to:
        raise UsageError(f"{where}.webhook is of no use without 'webhook' in {where}.to")
    if alert.webhook:
        parts = urlsplit(alert.webhook)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{where}.webhook must be a URL with http or https")
    number(alert.context, 0, 1000, f"{where}.context")
    number(alert.interval, 0, 86_400, f"{where}.interval")


def _check_ports(config: Config, where: str) -> None:
    taken: dict[int, str] = {}
    for setting, used in _listening(config, where):
        if used in taken:
            raise UsageError(f"{setting} is {used}, and so is {taken[used]}")
        taken[used] = setting
    lines: dict[str, str] = {}
    for name, found in config.ports.items():
        place = f"{where}.ports.{_quoted(name)}"
        if found.tools_user and found.tools_user not in config.users:
            raise UsageError(f"{place}.tools_user: there is no user {found.tools_user!r}")
        if found.line and (other := lines.setdefault(found.line, name)) != name:
            raise UsageError(f"{place} is {found.line}, and so is port {other}")


def _listening(config: Config, where: str) -> Iterator[tuple[str, int]]:
    if config.ssh.enabled:
        yield f"{where}.ssh.port", config.ssh.port
    if config.web.enabled:
        yield f"{where}.web.port", config.web.port
    for name, found in config.ports.items():
        for setting, used in found.listening.items():
            yield f"{where}.ports.{_quoted(name)}.{setting}", used


def _quoted(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() else f'"{name}"'
