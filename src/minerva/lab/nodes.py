"""The nodes of a lab: each is the real ``minerva connect`` in a namespace of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minerva.connect import config, control
from minerva.connect.leftovers import CONTROL_SOCKET
from minerva.connect.state import NodeState
from minerva.core.errors import UsageError
from minerva.lab.topology import Node
from minerva.linux import namespace, process
from minerva.linux.namespace import Namespace

_STOP_SECONDS = 10.0
_KILL_SECONDS = 5.0
_ROLES = {b"connect", b"registrar", b"masa"}  # words of their command lines
_CHILDREN = ("minerva-zygote", "mnv-")  # their names in ps; they end with their supervisor


def node_config(node: Node, key_log: Path | None, where: str) -> str:
    """Return the minerva.toml of ``node``, which with ``key_log`` writes its keys there.

    ``where`` says where its settings are from. Raises UsageError for settings that no node has.
    """
    settings: dict[str, Any] = {"name": node.name, "ports": {"include": ["eth*"]}}
    for name, value in node.settings.items():
        settings[name] = settings.get(name, {}) | value if isinstance(value, Mapping) else value
    if key_log is not None:
        settings["debug"] = {"key_log": str(key_log)}
    text = "".join(f"{json.dumps(name)} = {_toml(value)}\n" for name, value in settings.items())
    config.parse(text, where)
    return text


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)


@dataclass
class LabNode:
    """One node: its directory below the lab's, and its process while it runs."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @property
    def state_dir(self) -> Path:
        """Where its identity is."""
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        """Where its control socket is."""
        return self.directory / "run"

    @property
    def control_socket(self) -> Path:
        """Where it takes commands."""
        return self.run_dir / CONTROL_SOCKET

    @property
    def config_file(self) -> Path:
        """Its minerva.toml."""
        return self.directory / "minerva.toml"

    @property
    def log_file(self) -> Path:
        """Its log."""
        return self.directory / "log"

    @property
    def command(self) -> list[str]:
        """What it is started with."""
        command = [sys.executable, "-m", "minerva", "connect"]
        command += ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        return [*command, "--config", str(self.config_file)]

    def start(self, host: Namespace, *, follow_us: bool) -> None:
        """Start the node in the namespace ``host``; with ``follow_us`` it ends when this process does."""
        us = os.getpid()
        with self.log_file.open("ab") as log, host.entered():
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: process.end_with_parent(us)) if follow_us else None,
            )

    def ask(self, command: str) -> dict[str, Any] | None:
        """Return what the node answers to ``command``, or ``None`` if it does not (yet, any more)."""
        try:
            return control.call(self.control_socket, {"command": command})
        except UsageError:
            return None

    def last_words(self) -> str:
        """Return the last line of its log that tells of trouble, or its last line."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        trouble = [line for line in lines if " error: " in line or line.startswith("minerva: ")]
        return (trouble or lines or ["it left no log"])[-1].removeprefix("minerva: ")


def stop(nodes: Collection[LabNode]) -> None:
    """End the processes of ``nodes``, whichever command started them; kill what does not end."""
    _end([pid for pid in _processes(nodes) if not _is_child(pid)], signal.SIGTERM, _STOP_SECONDS)
    # A guard outlives its killed supervisor on purpose; here, what it guards goes next.
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := _processes(nodes)) and time.monotonic() < deadline:
        _end(left, signal.SIGKILL, _KILL_SECONDS)
    for node in nodes:
        if node.process is not None:
            with suppress(subprocess.TimeoutExpired):
                node.process.wait(_KILL_SECONDS)


def services(directory: Path) -> dict[str, list[int]]:
    """Return the processes of the registrar and the MASA of the lab in ``directory``, if it has them."""
    places = {name: directory / name for name in ("registrar", "masa")}
    found: dict[str, list[int]] = {name: [] for name, place in places.items() if place.is_dir()}
    for path in Path("/proc").glob("[0-9]*"):
        if b"--dir" in (words := _command_line(int(path.name))):
            for name, pids in found.items():
                if os.fsencode(places[name]) in words:
                    pids.append(int(path.name))
    return found


def stop_services(directory: Path) -> None:
    """End the registrar and the MASA of the lab in ``directory``; kill what does not end."""
    found = [pid for pids in services(directory).values() for pid in pids]
    _end(found, signal.SIGTERM, _STOP_SECONDS)
    _end([pid for pid in found if _runs(pid)], signal.SIGKILL, _KILL_SECONDS)


def stop_inside(names: Collection[str]) -> None:
    """End all of Minerva's processes in the namespaces ``names``, of a lab whose directory is lost."""
    there = set()
    for name in names:
        with suppress(OSError):
            there.add((namespace.RUN_NETNS / name).stat().st_ino)
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = _command_line(int(path.name))
            if (
                (path / "ns/net").stat().st_ino in there
                and b"minerva" in words
                and _ROLES.intersection(words)
            ):
                found.append(int(path.name))
    # Their guard ends when they have ended in order.
    _end([pid for pid in found if not _is_child(pid)], signal.SIGTERM, _STOP_SECONDS)
    _end([pid for pid in found if _runs(pid)], signal.SIGKILL, _KILL_SECONDS)


def _processes(nodes: Collection[LabNode]) -> list[int]:
    """Return all processes of ``nodes``: a node's children have the command line that it was started with."""
    wanted = {os.fsencode(node.state_dir) for node in nodes}
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [
        pid for pid in pids if b"--state-dir" in (words := _command_line(pid)) and wanted.intersection(words)
    ]


def _command_line(pid: int) -> list[bytes]:
    """Return the words of a process's command line; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _is_child(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(_CHILDREN)
    except OSError:
        return True


def _end(pids: Collection[int], number: signal.Signals, timeout: float) -> None:
    """Send a signal to processes and wait until they have ended, at most ``timeout`` seconds."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + timeout
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    # A process that ends loses its command line first, and its files, with the lock, after that.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def remove_leftovers(node: LabNode) -> None:
    """Remove what ``node``, which has ended, left in the kernel if it was killed. Raises UsageError."""
    if (node.state_dir / "node-secret").is_file():
        state = NodeState(node.state_dir)
        state.close()
        for name in namespace.names(state.namespace_prefix):
            namespace.delete_name(name)
