"""The settings of one console: what kind of line it is, and how its machine is switched on and off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, TypeVar

from minerva.console.hub import MAX_BREAK_SECONDS, RING_SIZE
from minerva.core import settings
from minerva.core.errors import UsageError

FLOWS: Final = ("none", "rtscts", "xonxoff", "dsrdtr")
PRIVILEGES: Final = ("user", "operator", "administrator")
SMALLEST_RING: Final = 4096
LARGEST_RING: Final = 1 << 28

_FRAMING = re.compile(r"[5-8][NEOMS](1|1\.5|2)")
_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How the machine behind a console is switched on and off; the kinds are below."""

    type: ClassVar[str]

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpmiPower(Power):
    """By the BMC, over IPMI."""

    type: ClassVar[str] = "ipmi"
    host: str = ""
    port: int = 623
    user: str = ""
    password_file: str = ""
    """The file whose first line is the password."""
    privilege: str = "administrator"

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        _needed(where, host=self.host)
        number(self.port, 1, 65_535, f"{where}.port")
        choice(self.privilege, PRIVILEGES, f"{where}.privilege")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishPower(Power):
    """By the BMC, over Redfish."""

    type: ClassVar[str] = "redfish"
    url: str = ""
    """https://HOST[:PORT]"""
    system: str = ""
    """Which of the BMC's systems, by its Id; without one, it must have only one."""
    user: str = ""
    password_file: str = ""
    """The file whose first line is the password."""
    ca_file: str = ""
    """A PEM file with the certificates to trust; without one, those of this machine."""
    fingerprint: str = ""
    """The SHA-256 of the BMC's own certificate, in hex: then nothing else is asked of it."""

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        _needed(where, url=self.url)
        _check_redfish(self.url, self.fingerprint, where, "url")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPower(Power):
    """By commands of this machine, such as those of a PDU. What has no command cannot be done."""

    type: ClassVar[str] = "command"
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    cycle: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    """Prints a line with "on" or "off"."""

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        if not any((self.on, self.off, self.cycle, self.reset, self.status)):
            raise UsageError(f"{where} has no command: say at least one of on, off, cycle, reset, status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What every console has; the kinds are below."""

    type: ClassVar[str]
    description: str = ""
    ring: int = RING_SIZE
    """How many bytes are kept in memory for those who attach later."""
    break_ms: int = 250
    """How long a break lasts that says nothing else, in milliseconds."""
    input_rate: int = 0
    """Bytes a second that the device is sent at most, if it loses what comes faster; 0 for no limit."""
    line_delay_ms: int = 0
    """How long the device is left in peace after each line that it is sent, in milliseconds."""
    ssh_port: int = 0
    """A port of its own for SSH, on which no name of a console is needed; 0 for none."""
    raw_port: int = 0
    """A TCP port for tools that want the bytes alone; 0 for none. There is no login: see tools_user."""
    telnet_port: int = 0
    """A TCP port for telnet with RFC 2217; 0 for none. There is no login: see tools_user."""
    tools_user: str = ""
    """Whose rights those have who come by raw_port or telnet_port."""
    power: Power | None = None
    """How the machine is switched; a console over IPMI has its own BMC's by default."""

    @property
    def listening(self) -> dict[str, int]:
        """The settings that name a port of TCP, without those that are off."""
        found = {"ssh_port": self.ssh_port, "raw_port": self.raw_port, "telnet_port": self.telnet_port}
        return {name: port for name, port in found.items() if port}

    @property
    def line(self) -> str:
        """What only one console can have: the device, the socket, the BMC. Empty if there is none."""
        return ""

    def same_line(self, other: Port) -> bool:
        """Return whether the device is reached in the same way with other settings.

        What every console has can be changed while there is a connection; what its kind has cannot.
        """
        common = {each.name: getattr(self, each.name) for each in fields(Port)}
        return type(self) is type(other) and replace(other, **common) == self

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        number(self.ring, SMALLEST_RING, LARGEST_RING, f"{where}.ring")
        number(self.break_ms, 1, int(MAX_BREAK_SECONDS * 1000), f"{where}.break_ms")
        number(self.input_rate, 0, 10_000_000, f"{where}.input_rate")
        number(self.line_delay_ms, 0, 60_000, f"{where}.line_delay_ms")
        for name in ("ssh_port", "raw_port", "telnet_port"):
            number(getattr(self, name), 0, 65_535, f"{where}.{name}")
        if (self.raw_port or self.telnet_port) and not self.tools_user:
            raise UsageError(
                f"{where}.tools_user must say whose rights there are on raw_port and telnet_port"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePort(Port):
    """A line with a speed and a framing."""

    speed: int = 115_200
    framing: str = "8N1"
    """Data bits, parity (None, Even, Odd, Mark, Space), stop bits."""
    flow: str = "none"
    dtr: bool = True
    """Whether DTR is asserted while the line is open."""
    rts: bool = True

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(LinePort, self).check(where)
        number(self.speed, 50, 16_000_000, f"{where}.speed")
        choice(self.flow, FLOWS, f"{where}.flow")
        if not _FRAMING.fullmatch(self.framing):
            raise UsageError(f"{where}.framing must be like 8N1 (data bits, one of NEOMS, stop bits)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialPort(LinePort):
    """A serial line of this machine."""

    type: ClassVar[str] = "serial"
    device: str = ""
    """Best one that stays the same when adapters are plugged: /dev/serial/by-path/... or by-id."""

    @property
    def line(self) -> str:
        """The device."""
        return self.device

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(SerialPort, self).check(where)
        _needed(where, device=self.device)
        if self.framing.endswith("1.5") and self.framing[0] != "5":
            raise UsageError(f"{where}.framing can have 1.5 stop bits only with 5 data bits")
        if self.flow == "dsrdtr":
            raise UsageError(f"{where}.flow cannot be dsrdtr: Linux does not do that on its own lines")


@dataclass(frozen=True, slots=True, kw_only=True)
class PtyPort(Port):
    """A pseudoterminal that another program made."""

    type: ClassVar[str] = "pty"
    path: str = ""

    @property
    def line(self) -> str:
        """The pseudoterminal."""
        return self.path

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(PtyPort, self).check(where)
        _needed(where, path=self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPort(Port):
    """A program that is run on a pseudoterminal, and again when it ends."""

    type: ClassVar[str] = "process"
    command: tuple[str, ...] = ()

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(ProcessPort, self).check(where)
        _needed(where, command=self.command)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixPort(Port):
    """A Unix stream socket, such as that of obmc-console; a name that begins with @ is an abstract one."""

    type: ClassVar[str] = "unix"
    path: str = ""

    @property
    def line(self) -> str:
        """The socket."""
        return self.path

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(UnixPort, self).check(where)
        _needed(where, path=self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpPort(Port):
    """A TCP port that carries the bytes alone."""

    type: ClassVar[str] = "tcp"
    host: str = ""
    port: int = 0

    @property
    def line(self) -> str:
        """The address."""
        return f"{self.host} port {self.port}"

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(TcpPort, self).check(where)
        _check_address(self.host, self.port, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class TelnetPort(Port):
    """A terminal server's port with telnet."""

    type: ClassVar[str] = "telnet"
    host: str = ""
    port: int = 23

    @property
    def line(self) -> str:
        """The address."""
        return f"{self.host} port {self.port}"

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(TelnetPort, self).check(where)
        _check_address(self.host, self.port, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rfc2217Port(LinePort):
    """A terminal server's port with telnet and RFC 2217, by which the line is set up, too."""

    type: ClassVar[str] = "rfc2217"
    host: str = ""
    port: int = 0

    @property
    def line(self) -> str:
        """The address."""
        return f"{self.host} port {self.port}"

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(Rfc2217Port, self).check(where)
        _check_address(self.host, self.port, where)


@dataclass(frozen=True, slots=True, kw_only=True)
class SshPort(Port):
    """A console behind SSH, such as port 2200 of a BMC."""

    type: ClassVar[str] = "ssh"
    host: str = ""
    port: int = 2200
    user: str = ""
    key_file: str = ""
    password_file: str = ""
    """The file whose first line is the password."""
    host_key: str = ""
    """The server's public key; without one, the first that it shows is kept and then the only one."""
    command: str = ""
    """What to run there; without, a shell is asked for, which on a BMC's console port is the console."""
    redfish: str = ""
    """The BMC's https://HOST[:PORT], to be asked for the port of its console."""
    ca_file: str = ""
    fingerprint: str = ""
    """As for Redfish power."""

    @property
    def line(self) -> str:
        """The address."""
        return f"{self.host} port {self.port}" if not self.redfish and not self.command else ""

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(SshPort, self).check(where)
        _needed(where, user=self.user)
        _check_address(self.host, self.port, where)
        if not self.key_file and not self.password_file:
            raise UsageError(f"{where} needs a key_file or a password_file")
        if self.redfish:
            _check_redfish(self.redfish, self.fingerprint, where, "redfish")
            if not self.password_file:
                raise UsageError(f"{where}.redfish needs a password_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class IpmiPort(Port):
    """A console over IPMI's Serial over LAN."""

    type: ClassVar[str] = "ipmi"
    host: str = ""
    port: int = 623
    user: str = ""
    password_file: str = ""
    """The file whose first line is the password."""
    privilege: str = "administrator"
    take_over: bool = True
    """End another one's session if the BMC says that it has one already."""

    @property
    def line(self) -> str:
        """The address."""
        return f"{self.host} port {self.port}"

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(IpmiPort, self).check(where)
        _check_address(self.host, self.port, where)
        choice(self.privilege, PRIVILEGES, f"{where}.privilege")


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtPort(Port):
    """The console of a virtual machine of libvirt."""

    type: ClassVar[str] = "libvirt"
    domain: str = ""
    uri: str = "qemu:///system"
    device: str = ""
    """The alias of the character device, such as serial1; without one, the first."""

    @property
    def line(self) -> str:
        """The domain's device."""
        return f"{self.uri} {self.domain} {self.device}"

    def check(self, where: str) -> None:
        """Raise UsageError if the settings do not go together."""
        super(LibvirtPort, self).check(where)
        _needed(where, domain=self.domain, uri=self.uri)


PORT_TYPES: Final[Mapping[str, type[Port]]] = {
    kind.type: kind
    for kind in (
        SerialPort,
        PtyPort,
        ProcessPort,
        UnixPort,
        TcpPort,
        TelnetPort,
        Rfc2217Port,
        SshPort,
        IpmiPort,
        LibvirtPort,
    )
}
POWER_TYPES: Final[Mapping[str, type[Power]]] = {
    kind.type: kind for kind in (IpmiPower, RedfishPower, CommandPower)
}


def port(table: object, where: str) -> Port:
    """Return the settings of a console from its table in TOML, which is at ``where``. Raises UsageError."""
    power = None
    if isinstance(table, dict) and "power" in table:
        power = _variant(POWER_TYPES, table["power"], f"{where}.power")
        power.check(f"{where}.power")
        table = {name: value for name, value in table.items() if name != "power"}
    found = _variant(PORT_TYPES, table, where)
    found.check(where)
    if power is None and isinstance(found, IpmiPort):
        power = IpmiPower(
            host=found.host,
            port=found.port,
            user=found.user,
            password_file=found.password_file,
            privilege=found.privilege,
        )
    return replace(found, power=power)


def choice(value: str, choices: tuple[str, ...], where: str) -> None:
    """Raise UsageError if the value is none of the choices."""
    if value not in choices:
        raise UsageError(f"{where} must be one of {', '.join(choices)}")


def number(value: int, least: int, most: int, where: str) -> None:
    """Raise UsageError if the value is not in the range."""
    if not least <= value <= most:
        raise UsageError(f"{where} must be {least} to {most}")


def _variant(kinds: Mapping[str, type[_V]], table: object, where: str) -> _V:
    if not isinstance(table, dict):
        raise UsageError(f"{where} must be a table")
    kind = table.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise UsageError(f"{where}.type must be one of {', '.join(kinds)}")
    rest: dict[str, Any] = {name: value for name, value in table.items() if name != "type"}
    return settings.build(kinds[kind], rest, where)


def _needed(where: str, **values: object) -> None:
    for name, value in values.items():
        if not value:
            raise UsageError(f"{where}.{name} is needed")


def _check_address(host: str, port: int, where: str) -> None:
    _needed(where, host=host, port=port)
    number(port, 1, 65_535, f"{where}.port")


def _check_redfish(url: str, fingerprint: str, where: str, name: str) -> None:
    if not url.startswith("https://") or len(url.split()) != 1:
        raise UsageError(f"{where}.{name} must be https://HOST or https://HOST:PORT")
    if fingerprint and not _FINGERPRINT.fullmatch(fingerprint):
        raise UsageError(f"{where}.fingerprint must be the 64 hex digits of a SHA-256")
