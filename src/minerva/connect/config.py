"""The configuration of a node: every setting has a default that works, and the whole is checked at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minerva.core import settings
from minerva.core.errors import UsageError
from minerva.esp.packet import REKEY_BYTES
from minerva.ikev2.config import CHILD_LIFETIME, IKE_LIFETIME, UdpEncapsulation


@dataclass(frozen=True, slots=True)
class Ports:
    """Which interfaces of the host the ACP uses."""

    include: tuple[str, ...] = ()
    """Patterns (``eth*``) of names to use although they are virtual."""
    exclude: tuple[str, ...] = ()
    """Patterns of names to leave alone, whatever else is said."""
    bring_up: bool = True
    """Set a port up that is down when first seen: a machine that nobody configured has no other way."""


@dataclass(frozen=True, slots=True)
class Acp:
    """The host's interface into the ACP."""

    interface: str = "acp0"
    unguarded: bool = False
    """Have the interface even where nftables cannot protect it."""


@dataclass(frozen=True, slots=True)
class Rpl:
    """Routing inside the ACP."""

    root: bool = False
    """Be a configured root (RFC 8994 section 6.12.1.12)."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The join proxy, by which new devices on the links of this node reach a registrar."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Ike:
    """The secure channels. Lifetimes are in seconds; the keys are replaced without an interruption."""

    ike_lifetime: int = IKE_LIFETIME
    """How long an IKE SA, by which two neighbours negotiate keys, is used before it is rekeyed."""
    child_lifetime: int = CHILD_LIFETIME
    """How long the keys of the packets themselves are used before they are replaced."""
    child_bytes: int = REKEY_BYTES
    """Or for how many bytes, if that comes first."""
    udp_encapsulation: str = UdpEncapsulation.OFF.value
    """With whom ESP goes in UDP: ``off``, ``accept`` (who wants it), ``force`` (all that can)."""

    @property
    def may_encapsulate(self) -> bool:
        """Whether ESP in UDP may come up, so that UDP port 4500 is open."""
        return self.udp_encapsulation != UdpEncapsulation.OFF


@dataclass(frozen=True, slots=True)
class Debug:
    """For the workbench; none of it belongs into a network that carries anything."""

    key_log: str = ""
    """A directory for Wireshark's key tables: whoever reads them reads the ACP."""


@dataclass(frozen=True, slots=True)
class Config:
    """A node's configuration (``minerva.toml``)."""

    ports: Ports = field(default_factory=Ports)
    acp: Acp = field(default_factory=Acp)
    rpl: Rpl = field(default_factory=Rpl)
    proxy: Proxy = field(default_factory=Proxy)
    ike: Ike = field(default_factory=Ike)
    debug: Debug = field(default_factory=Debug)
    console: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the console server reads itself; the node has nothing to do with it."""
    data_plane: str = "auto"
    """What moves the packets of channels: ``kernel``, ``user`` (space), or whichever can be."""
    outer_addresses: str = "link-local"
    """Between which addresses channels are: ``link-local`` ones, or ``ula`` (unique local) where the
    neighbour has such ones too."""
    name: str = ""
    """What this machine is called in the inventory; without one, by its host name."""
    log_level: str = "info"


DATA_PLANES = ("auto", "kernel", "user")
OUTER_ADDRESSES = ("link-local", "ula")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_MAX_INTERFACE_NAME = 15
_CHILD_BYTES = range(1 << 20, REKEY_BYTES + 1)
_LIFETIMES = range(2, 86_400 + 1)  # of keys, in seconds: twice the overlap of old and new, and a day


def parse(text: str, source: str, separator: str = ".") -> Config:
    """Return the configuration in ``text`` (TOML), which comes from ``source``. Raises UsageError.

    ``separator`` stands between ``source`` and the name of a setting: a dot, if that is a table itself.
    """
    config = settings.parse(Config, text, source, separator)
    if config.log_level not in _LOG_LEVELS:
        raise UsageError(f"{source}: log_level must be one of {', '.join(_LOG_LEVELS)}")
    if config.data_plane not in DATA_PLANES:
        raise UsageError(f"{source}: data_plane must be one of {', '.join(DATA_PLANES)}")
    if config.outer_addresses not in OUTER_ADDRESSES:
        raise UsageError(f"{source}: outer_addresses must be one of {', '.join(OUTER_ADDRESSES)}")
    name = config.acp.interface
    if not 0 < len(name) <= _MAX_INTERFACE_NAME or "/" in name or name.split() != [name]:
        raise UsageError(f"{source}: acp.interface {name!r} cannot be the name of an interface")
    if config.ike.child_bytes not in _CHILD_BYTES:
        raise UsageError(
            f"{source}: ike.child_bytes must be {_CHILD_BYTES.start} to {_CHILD_BYTES.stop - 1} bytes"
        )
    modes = [mode.value for mode in UdpEncapsulation]
    if config.ike.udp_encapsulation not in modes:
        raise UsageError(f"{source}: ike.udp_encapsulation must be one of {', '.join(modes)}")
    for setting in ("ike_lifetime", "child_lifetime"):
        if getattr(config.ike, setting) not in _LIFETIMES:
            raise UsageError(
                f"{source}: ike.{setting} must be {_LIFETIMES.start} to {_LIFETIMES.stop - 1} seconds"
            )
    return config


def load(path: Path | None) -> Config:
    """Return the configuration in the file ``path``; without one, that of the default file if it is there."""
    file = path or settings.DEFAULT_FILE
    try:
        text = file.read_text()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise UsageError(f"there is no configuration file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration file {file}: {error}") from error
    return parse(text, str(file), ": ")
