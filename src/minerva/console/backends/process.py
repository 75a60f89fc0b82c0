"""A program on a pseudoterminal as a line: what it prints is read, what is typed is its input."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import shlex
import shutil
import signal
import struct
import termios
from contextlib import suppress
from typing import Final

from minerva.console.backends.base import BackendError, Base, Capability, why
from minerva.console.backends.descriptor import DescriptorStream
from minerva.console.port_config import ProcessPort
from minerva.core.text import printable, shortened

GRACE_SECONDS: Final = 3.0
"""How long a program has to end by itself."""
_LOOK: Final = 0.02
_ON_TERMINAL: Final = ("/bin/sh", "-c", 'exec "$@" <>"$0" >&0 2>&0')
"""The leader of a session who opens a terminal has it as its own; this is the same in all systems, and needs
no code of ours between fork and exec, which could hang in a process with threads."""
_ROWS: Final = 24
_COLUMNS: Final = 80


class ProcessBackend(Base):
    """A program that is run anew each time the line is opened; it ends when the line is closed."""

    def __init__(self, port: ProcessPort) -> None:
        self._command = port.command
        self._process: asyncio.subprocess.Process | None = None
        self._stream: DescriptorStream | None = None

    @property
    def capabilities(self) -> Capability:
        """A break is what a terminal makes of it."""
        return Capability.BREAK

    def describe(self) -> str:
        """Return the command."""
        return f"program {shortened(shlex.join(self._command), 200)}"

    async def open(self) -> None:
        """Run the program, as the leader of a session of its own."""
        if shutil.which(self._command[0]) is None:
            raise BackendError(f"{printable(self._command[0])} is no program that can be run")
        ours, theirs = pty.openpty()
        try:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
            self._process = await asyncio.create_subprocess_exec(
                *_ON_TERMINAL,
                os.ttyname(theirs),
                *self._command,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                env={**os.environ, "TERM": "vt100"},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            os.close(ours)
            reason = why(error) if isinstance(error, OSError) else str(error)
            raise BackendError(f"{printable(self._command[0])} cannot be run: {reason}") from error
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._stream = DescriptorStream(ours)

    async def read(self) -> bytes:
        """Return what the program prints next. When it has ended, the error says how."""
        if self._stream is None or self._process is None:
            raise BackendError("the program does not run")
        if data := await self._stream.read():
            return data
        raise BackendError(await self._how_it_ended(self._process))

    async def write(self, data: bytes) -> None:
        """Type ``data``."""
        if self._stream is None:
            raise BackendError("the program does not run")
        await self._stream.write(data)

    async def send_break(self, seconds: float) -> None:  # noqa: ARG002  # a terminal knows no length
        """Interrupt the program, as a terminal does that has BRKINT set."""
        if self._stream is None:
            raise BackendError("the program does not run")
        raw = fcntl.ioctl(self._stream.descriptor, termios.TIOCGPGRP, struct.pack("i", 0))
        (group,) = struct.unpack("i", raw)
        if group > 0:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGINT)

    async def close(self) -> None:
        """Hang up, and end the program if it does not take the hint."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        process, self._process = self._process, None
        if process is None:
            return
        # The group, as the program may have started others, which may outlive it.
        for sign in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sign)
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    while _has_members(process.pid):
                        await asyncio.sleep(_LOOK)
                break
        await process.wait()

    async def _how_it_ended(self, process: asyncio.subprocess.Process) -> str:
        name = printable(self._command[0])
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                code = await process.wait()
        except TimeoutError:
            return f"{name} has closed its terminal"
        if code < 0:
            return f"{name} was ended by signal {-code}"
        return f"{name} has ended with status {code}"


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        # Nobody, or none of ours any more.
        return False
    return True
