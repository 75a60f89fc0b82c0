"""The kinds of lines: one module each, all with the same shape (``base.Backend``).

What a kind needs of other packages is imported only when there is a line of that kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from minerva.console.backends.base import Dialer
from minerva.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from minerva.console.backends.base import Backend
    from minerva.console.port_config import Port

NEEDS_EXTRA: Final = "consoles of type {} need packages that are not here: pip install 'minerva-acp[console]'"


def make_backend(port: Port, *, state: Path, name: str, dialer: Dialer | None = None) -> Backend:
    """Return the backend for the settings of the console ``name``; it is not open yet.

    ``state`` is a directory in which a backend may keep what it has to remember, such as the key of an SSH
    server. ``dialer`` makes the sockets that go out, in the process's own network without one. Raises
    UsageError if the extra ``console`` is not installed.
    """
    try:
        return _make(port, state, name, dialer)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "minerva":
            raise
        raise UsageError(NEEDS_EXTRA.format(port.type)) from error


def _make(port: Port, state: Path, name: str, dialer: Dialer | None) -> Backend:
    from minerva.console import port_config as kinds

    match port:
        case kinds.SerialPort():
            from minerva.console.backends.serial import SerialBackend

            return SerialBackend(port)
        case kinds.PtyPort():
            from minerva.console.backends.serial import PtyBackend

            return PtyBackend(port)
        case kinds.ProcessPort():
            from minerva.console.backends.process import ProcessBackend

            return ProcessBackend(port)
        case kinds.UnixPort():
            from minerva.console.backends.stream import UnixBackend

            return UnixBackend(port)
        case kinds.TcpPort():
            from minerva.console.backends.stream import TcpBackend

            return TcpBackend(port, dialer)
        case kinds.TelnetPort():
            from minerva.console.backends.telnet import TelnetBackend

            return TelnetBackend(port, dialer)
        case kinds.Rfc2217Port():
            from minerva.console.backends.telnet import Rfc2217Backend

            return Rfc2217Backend(port, dialer)
        case kinds.SshPort():
            from minerva.console.backends.ssh import SshBackend

            return SshBackend(port, known=state / "known_hosts" / name, dialer=dialer)
        case kinds.IpmiPort():
            from minerva.console.backends.sol import SolBackend

            return SolBackend(port, dialer)
        case kinds.LibvirtPort():
            from minerva.console.backends.libvirt import LibvirtBackend

            return LibvirtBackend(port)
    raise UsageError(f"there is no kind of console {port.type!r}")
