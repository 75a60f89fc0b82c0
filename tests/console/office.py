"""A console server without lines, for the tests of what is in front of it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minerva.console.access import Access, Guard
from minerva.console.audit import AuditLog, AuditWriter
from minerva.console.break_glass import Tokens
from minerva.console.config import Config, from_table
from minerva.console.fronts.desk import Desk
from minerva.console.fronts.ssh import SshFront
from minerva.console.hub import Hub
from minerva.console.listeners import Connections
from minerva.console.power import PowerAction, PowerState
from minerva.console.throttle import Throttle


class FakePower:
    """A machine that notes what is done to it."""

    def __init__(self) -> None:
        self.acts: list[PowerAction] = []

    def describe(self) -> str:
        """Return a name."""
        return "a fake"

    async def status(self) -> PowerState:
        """It is on."""
        return PowerState.ON

    async def act(self, action: PowerAction) -> None:
        """Note it."""
        self.acts.append(action)


class Line:
    """A console whose device takes everything at once, and echoes it if wanted."""

    def __init__(self, name: str, *, echo: bool = False, ring_size: int = 262_144) -> None:
        self.name = name
        self.description = f"the console {name}"
        self.break_seconds = 0.25
        self.power = FakePower()
        self.typed = bytearray()
        self.breaks: list[float] = []
        self.takes = True
        self._echo = echo
        self._inside = False
        self.hub = Hub(name, ring_size=ring_size, on_event=self._event)
        self.hub.upstream_up(time.time())

    def say(self, data: bytes) -> None:
        """Have the device say something."""
        self.hub.output(data, time.time())

    def _event(self) -> None:
        while self.hub.next_event() is not None:
            pass
        if self._inside or not self.takes:
            return
        self._inside = True
        while self.hub.input_waiting:
            self.breaks += [wanted.seconds for wanted in self.hub.break_wanted()]
            data = self.hub.to_upstream()
            self.typed += data
            self.hub.written(len(data))
            if self._echo:
                self.say(data)
        self._inside = False


class Lines:
    """Consoles by name."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = {line.name: line for line in lines}

    def names(self) -> list[str]:
        """Return their names."""
        return sorted(self.lines)

    def get(self, name: str) -> Line | None:
        """Return one."""
        return self.lines.get(name)


class Office:
    """Everything around the consoles, in a directory."""

    def __init__(self, directory: Path, table: dict[str, Any], lines: Iterable[Line]) -> None:
        self.directory = directory
        self.config: Config = from_table({"directory": str(directory), **table}, "test")
        self.lines = Lines(lines)
        self.audit = AuditWriter(AuditLog(self.config.audit_file))
        self.access = Access(self.config)
        self.guard = Guard(self.access, self.audit, time.time)
        self.desk = Desk(self.guard, self.lines, self.audit)
        self.tokens = Tokens(directory / "break-glass")

    async def entries(self) -> list[dict[str, Any]]:
        """Return what is in the audit log."""
        await self.audit.settled()
        path = self.config.audit_file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    async def refusals(self) -> list[tuple[str, str]]:
        """Return what was refused: who and what."""
        return [
            (each.get("user", ""), each["action"]) for each in await self.entries() if not each["allowed"]
        ]

    def close(self) -> None:
        """End."""
        self.audit.close()


class SshOffice(Office):
    """With an SSH server on the loopback: ``async with``."""

    def __init__(self, directory: Path, table: dict[str, Any], lines: Iterable[Line]) -> None:
        super().__init__(directory, table, lines)
        self.throttle = Throttle(self.config.access.failures)
        self.front = SshFront(
            self.desk,
            self.tokens,
            directory,
            escape=lambda: self.config.ssh.escape_bytes,
            throttle=self.throttle,
        )
        self.port = 0
        self.connections = Connections()
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []

    def listen(self, address: str = "127.0.0.1", console: str | None = None) -> int:
        """Listen there, on a port of the kernel's choice."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, 0))
        sock.listen(64)
        self._sockets.append(sock)
        serving = self.front.serve(sock, self.connections, console)
        self._tasks.append(asyncio.get_running_loop().create_task(serving))
        return int(sock.getsockname()[1])

    async def __aenter__(self) -> SshOffice:
        self.port = self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.front.close()
        await asyncio.sleep(0.05)
        for sock in self._sockets:
            sock.close()
        self.close()


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
