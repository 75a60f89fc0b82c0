"""Talks to the console server of this machine over its control socket (``fronts/control.py``)."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from minerva.core.errors import MinervaError

SECONDS: Final = 90.0
"""How long an answer may take: what switches a machine may be slow."""
CHUNK: Final = 65_536
_MAX_ANSWER: Final = 64 << 20


class ConsoleClientError(MinervaError):
    """There is no console server to talk to, or it does not do what it is asked."""


class NoServer(ConsoleClientError):
    """There is no console server to talk to."""


def connect(path: Path) -> socket.socket:
    """Return a connection to the server that listens on ``path``. Raises ConsoleClientError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SECONDS)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        sock.close()
        raise NoServer(
            f"no console server runs with the run directory {path.parent}: "
            "start one with 'minerva console run', or name its directory with --run-dir"
        ) from None
    except PermissionError:
        sock.close()
        raise ConsoleClientError(f"only root and the group minerva may use the consoles ({path})") from None
    except OSError as error:
        sock.close()
        raise ConsoleClientError(f"cannot talk to the console server on {path}: {error.strerror}") from error
    return sock


def ask(sock: socket.socket, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Send a request; return the answer, and what came after it. Raises ConsoleClientError."""
    data = bytearray()
    try:
        sock.sendall(json.dumps(request).encode() + b"\n")
        while b"\n" not in data and len(data) < _MAX_ANSWER:
            chunk = sock.recv(CHUNK)
            if not chunk:
                break
            data += chunk
        line, _, rest = bytes(data).partition(b"\n")
        answer = json.loads(line)
    except TimeoutError:
        raise ConsoleClientError("the console server does not answer") from None
    except (OSError, ValueError) as error:
        raise ConsoleClientError("the console server gave no proper answer") from error
    if not isinstance(answer, dict):
        raise ConsoleClientError("the console server gave no proper answer")
    if "error" in answer:
        raise ConsoleClientError(str(answer["error"]))
    return answer, rest


def call(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Have the server that listens on ``path`` do one thing; return its answer."""
    with connect(path) as sock:
        return ask(sock, {"command": command, **arguments})[0]


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Let every key through as it is, for the length of a ``with``."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def carry(sock: socket.socket, source: int, sink: int) -> None:
    """Carry bytes from the descriptor ``source`` to the socket, and from it to ``sink``, until it ends.

    When ``source`` ends, the peer is told so and what it still says is shown.
    """
    sock.setblocking(False)
    waiting = bytearray()
    open_source = True
    while True:
        poll = select.poll()
        if open_source and not waiting:
            poll.register(source, select.POLLIN)
        poll.register(sock, select.POLLIN | (select.POLLOUT if waiting else 0))
        ready = dict(poll.poll())
        if source in ready:
            data = os.read(source, CHUNK)
            if data:
                waiting += data
            else:
                open_source = False
                sock.shutdown(socket.SHUT_WR)
        if waiting:
            try:
                del waiting[: sock.send(waiting)]
            except BlockingIOError:
                pass
            except OSError:
                return
        if sock.fileno() in ready and ready[sock.fileno()] & ~select.POLLOUT:
            try:
                data = sock.recv(CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            while data:
                data = data[os.write(sink, data) :]


def attach(
    path: Path, console: str, *, mode: str | None, replay: int | None, escape: str | None
) -> dict[str, Any]:
    """Attach standard input and output to a console, until one side ends. Return what the server answered."""
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    interactive = os.isatty(source) and os.isatty(sink)
    request = {
        "command": "attach",
        "console": console,
        "mode": mode if mode is not None or interactive else "read",
        "replay": replay,
        "interactive": interactive,
        "escape": escape,
    }
    with connect(path) as sock:
        answer, rest = ask(sock, request)
        sys.stdout.flush()
        while rest:
            rest = rest[os.write(sink, rest) :]
        if interactive:
            with raw_terminal(source):
                carry(sock, source, sink)
        else:
            carry(sock, source, sink)
        return answer
