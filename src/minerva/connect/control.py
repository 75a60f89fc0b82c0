"""The control socket: how ``minerva status`` and its like talk to a running node.

One request is one line of JSON (``{"command": "status"}``), one answer is one line of JSON, over a Unix
stream socket that only root may open.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from minerva.core.errors import UsageError
from minerva.linux.namespace import Namespace

log = logging.getLogger(__name__)

_MAX_REQUEST = 65_536
_MAX_ANSWER = 64 << 20
_TIMEOUT = 10.0

TO_HAVE_A_NODE = "start one with 'minerva connect', or name its directory with --run-dir"
"""What whoever finds no node can do."""

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class NodeError(UsageError):
    """There is no node to talk to, or it does not answer: nothing is wrong with what it was asked."""


class ControlServer:
    """Serves ``handlers`` by command name on the Unix socket ``path``."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen. Raises OSError."""
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_MAX_REQUEST)
        finally:
            os.umask(before)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT)
            answer = await self._answer(line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), _TIMEOUT)
        except (TimeoutError, ValueError, OSError) as error:
            log.debug("control connection: %s", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            return {"error": "a request is one line of JSON"}
        command = request.get("command") if isinstance(request, dict) else None
        handler = self._handlers.get(command) if isinstance(command, str) else None
        if handler is None:
            return {
                "error": f"there is no command {command!r}; there are: {', '.join(sorted(self._handlers))}"
            }
        return await handler(request)

    def close(self) -> None:
        """Stop to listen and remove the socket."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)


def call(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Send ``request`` to the node that listens on ``path`` and return its answer.

    Raises :class:`NodeError` where none answers, UsageError where it, or the kernel, refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT)
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline(_MAX_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NodeError(f"no node runs with the run directory {path.parent}; {TO_HAVE_A_NODE}") from None
    except PermissionError:
        raise UsageError(f"only root may talk to the node ({path})") from None
    except TimeoutError:
        raise NodeError(f"the node does not answer on {path}") from None
    except OSError as error:
        raise NodeError(f"cannot talk to the node on {path}: {error.strerror or error}") from error
    try:
        answer = json.loads(line)
    except ValueError:
        raise NodeError(f"the node on {path} gave no proper answer") from None
    if not isinstance(answer, dict):
        raise NodeError(f"the node on {path} gave no proper answer")
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    return answer


def node_namespace(status: dict[str, Any], where: str, whose: str) -> Namespace:
    """Return the namespace ``acp`` or ``link:PORT`` of the node with ``status``.

    ``whose`` names the node in a sentence. Raises UsageError, LinuxError.
    """
    spaces = {f"link:{port['name']}": port.get("namespace") for port in status["ports"]}
    spaces["acp"] = status.get("acp0", {}).get("namespace")  # not while it is a pledge
    name = spaces.get(where)
    if name is None:
        there = ", ".join(sorted(key for key, value in spaces.items() if value))
        raise UsageError(f"{whose} has no namespace {where!r}; besides that of its host it has {there}")
    return Namespace(name)
