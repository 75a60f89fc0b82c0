"""The configuration of a registrar: ``registrar.toml`` in its directory, in which everything has a default.

What concerns single manufacturers and devices is not here but in the database, where the commands of
``minerva registrar`` change it under a running registrar.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from minerva.core import settings
from minerva.core.errors import UsageError

DEFAULT_DIRECTORY: Final = Path("/var/lib/minerva/registrar")
NODE_DIRECTORY: Final = Path("/var/lib/minerva")
"""Where the node of the registrar's machine has its identity."""

CONFIG_FILE: Final = "registrar.toml"
SERVICE_DIRECTORY: Final = "service"
"""Where in the registrar's directory the certificate and key are by which pledges know it."""

DATABASE_FILE: Final = "registrar.db"
PORT: Final = 8443
CRL_PORT: Final = 8080
ANNOUNCE_PERIOD: Final = 60

_FOREIGN = ("accept", "refuse")
_NONCELESS = ("accept", "own", "refuse")


@dataclass(frozen=True, slots=True)
class Server:
    """Where the registrar listens, and how it makes itself known."""

    address: str = ""
    """The address to listen on; without one, that of this machine's node with V=1."""
    port: int = PORT
    crl_port: int = CRL_PORT
    """The port on which the CRL is, over plain HTTP."""
    node_directory: str = str(NODE_DIRECTORY)
    """The state directory of this machine's node: should its certificate have expired, it gets a new one."""
    announce_period: int = ANNOUNCE_PERIOD
    """Seconds between two announcements in the ACP; not below 60 (RFC 8995 section 4.3)."""


@dataclass(frozen=True, slots=True)
class Pledges:
    """How new devices are treated, whoever made them."""

    open: bool = False
    """Take devices of manufacturers nobody added here, too, if the web PKI knows the MASA they name.

    The first device of such a manufacturer brings the trust anchor along. RFC 8995 section 7.3: never the
    default."""
    retry_after: int = 10
    """After how many seconds a device that has to wait asks again; pledges wait 60 at most."""


@dataclass(frozen=True, slots=True)
class Login:
    """How the registrar shows a manufacturer's service whose it is (RFC 8995 section 5.4.1)."""

    certificate: str = ""
    """A PEM file with a certificate and its chain; without one, none is shown."""
    key: str = ""
    """The PEM file with its private key."""
    user: str = ""
    """The name for HTTP Basic authentication; without one, there is none."""
    password_file: str = ""
    """The file whose first line is the password."""


@dataclass(frozen=True, slots=True)
class Masa:
    """How manufacturers' services are asked."""

    timeout: int = 10
    """Seconds for one answer."""
    servers: dict[str, Login] = field(default_factory=dict)
    """What is shown to which server, by its name or address, with the port if that is not 443."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Which history a device may have (RFC 8995 section 5.8.3)."""

    domains: tuple[str, ...] = ()
    """The domainIDs, in base64 as in the log, that count as our own besides that of this domain."""
    foreign: str = "accept"
    """Whether devices may have been in domains that are not ours: accept or refuse."""
    nonceless: str = "own"
    """Whose vouchers without a nonce, which are good for another takeover: accept, own or refuse."""
    truncated: str = "refuse"
    """Whether entries may have been left out arbitrarily: accept or refuse."""
    unknown: str = "refuse"
    """Whether to go on without a log, or with one that cannot be read: accept or refuse."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a registrar."""

    server: Server = field(default_factory=Server)
    pledges: Pledges = field(default_factory=Pledges)
    masa: Masa = field(default_factory=Masa)
    audit: Audit = field(default_factory=Audit)
    database: str = ""
    """The database's URL; without one, it is SQLite's file registrar.db in the registrar's directory."""
    log_level: str = "info"

    def database_url(self, directory: Path) -> str:
        """Return the URL of the database of the registrar in ``directory``."""
        return self.database or f"sqlite:///{(directory / DATABASE_FILE).absolute()}"


_LOG_LEVELS = ("debug", "info", "warning", "error")


def parse(text: str, source: str) -> Config:
    """Return the configuration in ``text`` (TOML), which comes from ``source``.

    Raises :class:`~minerva.core.errors.UsageError` naming the setting that is wrong.
    """
    config = settings.parse(Config, text, source)
    _check(config, source)
    return config


def load(directory: Path) -> Config:
    """Return the configuration of the registrar in ``directory``.

    Raises :class:`~minerva.core.errors.UsageError`.
    """
    file = directory / CONFIG_FILE
    try:
        text = file.read_text()
    except FileNotFoundError:
        raise UsageError(
            f"there is no registrar in {directory}; make one with `minerva registrar init DOMAIN`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    return parse(text, str(file))


def _check(config: Config, source: str) -> None:
    _choice(config.log_level, _LOG_LEVELS, f"{source}: log_level")
    for name, value, choices in (
        ("foreign", config.audit.foreign, _FOREIGN),
        ("nonceless", config.audit.nonceless, _NONCELESS),
        ("truncated", config.audit.truncated, _FOREIGN),
        ("unknown", config.audit.unknown, _FOREIGN),
    ):
        _choice(value, choices, f"{source}: audit.{name}")
    _number(config.server.port, 0, 65_535, f"{source}: server.port")
    _number(config.server.crl_port, 0, 65_535, f"{source}: server.crl_port")
    _number(config.server.announce_period, ANNOUNCE_PERIOD, 86_400, f"{source}: server.announce_period")
    _number(config.pledges.retry_after, 1, 60, f"{source}: pledges.retry_after")
    _number(config.masa.timeout, 1, 300, f"{source}: masa.timeout")
    for name, login in config.masa.servers.items():
        where = f'{source}: masa.servers."{name}"'
        if bool(login.certificate) is not bool(login.key):
            raise UsageError(f"{where}: certificate and key need each other")
        if bool(login.user) is not bool(login.password_file):
            raise UsageError(f"{where}: user and password_file need each other")
    if config.server.address:
        try:
            IPv6Address(config.server.address)
        except ValueError:
            raise UsageError(f"{source}: server.address must be an IPv6 address") from None
    for domain in config.audit.domains:
        try:
            base64.b64decode(domain, validate=True)
        except (binascii.Error, ValueError):
            raise UsageError(
                f"{source}: audit.domains must be base64, as domainIDs in audit logs are"
            ) from None


def _choice(value: str, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UsageError(f"{where} must be one of {', '.join(choices)}")


def _number(value: int, least: int, most: int, where: str) -> None:
    if not least <= value <= most:
        raise UsageError(f"{where} must be {least} to {most}")
