"""The nodes of a lab: each is the real ``minerva connect`` in a namespace of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minerva.connect import control
from minerva.connect.leftovers import CONTROL_SOCKET, end_guard
from minerva.connect.state import NodeState
from minerva.core.errors import UsageError
from minerva.lab.topology import Node
from minerva.linux import namespace, process
from minerva.linux.namespace import Namespace

_STOP_SECONDS = 10.0


def toml(settings: Mapping[str, Any]) -> str:
    """Return ``settings``, tables of plain values, as TOML."""
    plain = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", toml(table).rstrip()]
    return "\n".join(lines) + "\n"


@dataclass
class LabNode:
    """One node: its directory below the lab's, and its process while it runs."""

    name: str
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    @classmethod
    def create(cls, node: Node, directory: Path, key_log: Path | None) -> LabNode:
        """Return the node with its configuration written; its identity is issued into ``state``."""
        settings: dict[str, Any] = {"ports": {"include": ["eth*"]}}
        for name, value in node.settings.items():
            if isinstance(value, Mapping):
                settings[name] = settings.get(name, {}) | dict(value)
            else:
                settings[name] = value
        lab_node = cls(node.name, directory, settings)
        lab_node.run_dir.mkdir(parents=True)
        if key_log is not None:
            key_log.mkdir(parents=True, exist_ok=True)
            settings["debug"] = {"key_log": str(key_log)}
        lab_node.config_file.write_text(toml(settings))
        return lab_node

    @property
    def state_dir(self) -> Path:
        """Where its identity is."""
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        """Where its control socket is."""
        return self.directory / "run"

    @property
    def config_file(self) -> Path:
        """Its minerva.toml."""
        return self.directory / "minerva.toml"

    @property
    def log_file(self) -> Path:
        """Its log."""
        return self.directory / "log"

    def start(self, host: Namespace, *, follow_us: bool) -> None:
        """Start the node in the namespace ``host``; with ``follow_us`` it ends when this process does."""
        command = [sys.executable, "-m", "minerva", "connect"]
        command += ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        command += ["--config", str(self.config_file)]
        us = os.getpid()
        with self.log_file.open("ab") as log, host.entered():
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: process.end_with_parent(us)) if follow_us else None,
            )

    def ask(self, command: str) -> dict[str, Any] | None:
        """Return what the node answers to ``command``, or ``None`` if it does not (yet, any more)."""
        try:
            return control.call(self.run_dir / CONTROL_SOCKET, {"command": command})
        except UsageError:
            return None

    def last_words(self) -> str:
        """Return the last lines of its log that tell of trouble, or its last line."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        trouble = [line for line in lines if " error: " in line or line.startswith("minerva: ")]
        return (trouble or lines or ["it left no log"])[-1]


def stop(nodes: Iterable[LabNode], pids: Iterable[int]) -> None:
    """End the processes of ``nodes`` and ``pids``, which an earlier command started; kill what stays."""
    started = [node.process for node in nodes if node.process is not None]
    others = set(pids)
    for pid in (*(running.pid for running in started if running.poll() is None), *others):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for running in started:
        try:
            running.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
    while others and time.monotonic() < deadline:
        time.sleep(0.02)
        others = {pid for pid in others if Path(f"/proc/{pid}").exists()}
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove_leftovers(directory: Path) -> None:
    """Remove what the node of ``directory`` left in the kernel if it was killed."""
    end_guard(directory / "run")
    if (directory / "state" / "node-secret").is_file():
        state = NodeState(directory / "state")
        for name in namespace.names(state.namespace_prefix):
            namespace.delete_name(name)
