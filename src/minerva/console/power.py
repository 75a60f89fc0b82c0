"""Switching the machines behind consoles: over IPMI, over Redfish, or by commands such as those of a PDU."""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Sequence
from typing import Final, Protocol

from minerva.console import port_config
from minerva.console.backends.base import BackendError, Dialer, read_password, why
from minerva.console.events import AttachmentInfo
from minerva.console.ipmi_client import IpmiClient
from minerva.console.redfish import RedfishClient
from minerva.core.errors import UsageError
from minerva.core.text import printable, shortened

COMMAND_SECONDS: Final = 60.0
"""How long a command may take."""
_MAX_OUTPUT: Final = 65_536


class PowerState(enum.Enum):
    """Whether a machine is on."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class PowerAction(enum.Enum):
    """What can be done with a machine; the values are what people type."""

    ON = "on"
    OFF = "off"
    CYCLE = "cycle"
    """Off, and after a while on."""
    RESET = "reset"


class Power(Protocol):
    """The switch of one machine. Everything raises BackendError at most."""

    def describe(self) -> str:
        """Return by what the machine is switched, for people."""

    async def status(self) -> PowerState:
        """Ask whether the machine is on."""

    async def act(self, action: PowerAction) -> None:
        """Do it; return when it has been accepted."""


def make_power(settings: port_config.Power, dialer: Dialer | None = None) -> Power:
    """Return the switch that the settings describe."""
    match settings:
        case port_config.IpmiPower():
            return IpmiPower(settings, dialer)
        case port_config.RedfishPower():
            return RedfishPower(settings, dialer)
        case port_config.CommandPower():
            return CommandPower(settings)
    raise UsageError(f"there is no kind of power {settings.type!r}")


def confirmation(name: str, action: PowerAction, attached: Sequence[AttachmentInfo]) -> str:
    """Return the question that is to be answered with yes before something is done to a machine."""
    verb = {
        PowerAction.ON: "switch {} on",
        PowerAction.OFF: "switch {} off",
        PowerAction.CYCLE: "switch {} off and on again",
        PowerAction.RESET: "reset {}",
    }[action].format(printable(name))
    if not attached:
        return f"{verb}? Nobody is attached to its console."
    people = [
        f"{shortened(who.user, 40)} ({'writes' if who.writing else 'reads'}"
        + (f", from {shortened(who.source, 60)})" if who.source else ")")
        for who in attached
    ]
    return f"{verb}? Attached to its console: {', '.join(people)}."


class IpmiPower:
    """By a BMC over IPMI, with a session for each question."""

    _CONTROLS: Final = {
        PowerAction.OFF: 0,
        PowerAction.ON: 1,
        PowerAction.CYCLE: 2,
        PowerAction.RESET: 3,
    }
    """IPMI 2.0 table 28-4."""

    def __init__(self, settings: port_config.IpmiPower, dialer: Dialer | None = None) -> None:
        self._settings = settings
        self._dialer = dialer

    def describe(self) -> str:
        """Return the BMC's address."""
        return f"IPMI of {IpmiClient(self._settings).where}"

    async def status(self) -> PowerState:
        """Ask the BMC."""
        client = IpmiClient(self._settings, self._dialer)
        await client.open()
        try:
            return PowerState.ON if await client.power_is_on() else PowerState.OFF
        finally:
            client.close()

    async def act(self, action: PowerAction) -> None:
        """Tell the BMC."""
        client = IpmiClient(self._settings, self._dialer)
        await client.open()
        try:
            await client.control_chassis(self._CONTROLS[action])
        finally:
            client.close()


class RedfishPower:
    """By a BMC over Redfish."""

    def __init__(self, settings: port_config.RedfishPower, dialer: Dialer | None = None) -> None:
        self._settings = settings
        self._dialer = dialer

    def describe(self) -> str:
        """Return the BMC's address."""
        return f"Redfish of {printable(self._settings.url.removeprefix('https://'))}"

    async def status(self) -> PowerState:
        """Ask the BMC."""
        client = self._client()
        try:
            state = await client.power_state()
        finally:
            await client.close()
        # What is going down is still on, and what is coming up already is.
        return {
            "On": PowerState.ON,
            "PoweringOn": PowerState.ON,
            "PoweringOff": PowerState.ON,
            "Paused": PowerState.ON,
            "Off": PowerState.OFF,
        }.get(state, PowerState.UNKNOWN)

    async def act(self, action: PowerAction) -> None:
        """Tell the BMC."""
        client = self._client()
        try:
            match action:
                case PowerAction.ON:
                    await client.reset("On", "ForceOn")
                case PowerAction.OFF:
                    await client.reset("ForceOff")
                case PowerAction.RESET:
                    await client.reset("ForceRestart")
                case PowerAction.CYCLE:
                    await client.cycle()
        finally:
            await client.close()

    def _client(self) -> RedfishClient:
        settings = self._settings
        return RedfishClient(
            settings.url,
            user=settings.user,
            password=read_password(settings.password_file),
            system=settings.system,
            ca_file=settings.ca_file,
            fingerprint=settings.fingerprint,
            dialer=self._dialer,
        )


class CommandPower:
    """By commands of this machine."""

    def __init__(self, settings: port_config.CommandPower) -> None:
        self._settings = settings

    def describe(self) -> str:
        """Say so."""
        return "commands of this machine"

    async def status(self) -> PowerState:
        """Run the command for it, and look for "on" or "off" in what it prints."""
        if not self._settings.status:
            return PowerState.UNKNOWN
        output = await self._run(self._settings.status)
        words = re.findall(r"\b(on|off)\b", output, re.IGNORECASE)
        return PowerState(words[-1].lower()) if words else PowerState.UNKNOWN

    async def act(self, action: PowerAction) -> None:
        """Run the command for it."""
        command: tuple[str, ...] = getattr(self._settings, action.value)
        if not command:
            raise BackendError(f"there is no command for power {action.value} in the configuration")
        await self._run(command)

    async def _run(self, command: tuple[str, ...]) -> str:
        name = f"the command {printable(command[0])}"
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except (OSError, ValueError) as error:
            reason = why(error) if isinstance(error, OSError) else str(error)
            raise BackendError(f"{name} cannot be run: {reason}") from error
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                output = await _beginning(process.stdout)
                await process.wait()
        except TimeoutError as error:
            raise BackendError(f"{name} did not end within {COMMAND_SECONDS:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode("utf-8", "replace")
        if process.returncode:
            said = shortened(text.strip(), 200)
            raise BackendError(f"{name} failed with status {process.returncode}" + (said and f": {said}"))
        return text


async def _beginning(stream: asyncio.StreamReader | None) -> bytes:
    """Return the beginning of what a command prints; the rest is read, and forgotten."""
    assert stream is not None
    kept = bytearray()
    while data := await stream.read(_MAX_OUTPUT):
        kept += data[: _MAX_OUTPUT - len(kept)]
    return bytes(kept)
