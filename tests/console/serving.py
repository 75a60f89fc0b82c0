"""A console server as a process of its own, on the loopback, for tests of the whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minerva.console import client

PASSWORD = "correct horse"
HASH = "$scrypt$ln=4,r=8,p=1$"  # completed by `password_hash`: a cheap one, for tests

_ECHO = (
    "import pathlib, sys, tty; tty.setraw(0); pathlib.Path(sys.argv[1]).touch()\n"
    "while True:\n sys.stdout.write(sys.stdin.read(1)); sys.stdout.flush()"
)


def echo(ready: Path) -> list[str]:
    """Return the command of a device that says what it is told, from when the file ``ready`` is there."""
    return [sys.executable, "-u", "-c", _ECHO, str(ready)]


def password_hash(password: str) -> str:
    """Return a hash of a password that does not take long."""
    import base64
    import hashlib

    digest = hashlib.scrypt(password.encode(), salt=b"s" * 16, n=1 << 4, r=8, p=1, dklen=32)
    encode = [base64.b64encode(part).rstrip(b"=").decode() for part in (b"s" * 16, digest)]
    return HASH + "$".join(encode)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def until(condition: Callable[[], Any], what: str, *, seconds: float = 60.0) -> Any:
    """Return what ``condition`` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds} seconds still not: {what}"
        time.sleep(0.02)
    return found


class Serving:
    """A server with a shell ``sh`` and an echo ``echo``; use with ``with``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.config = directory / "minerva.toml"
        self.log = directory / "server.log"
        self._echo_ready = directory / "echo-ready"
        self.ssh_port, self.web_port, self.raw_port = free_ports(3)
        self.ports: dict[str, dict[str, Any]] = {
            "sh": {"type": "process", "command": ["env", "PS1=$ ", "sh"], "description": "a shell"},
            "echo": {"type": "process", "command": echo(self._echo_ready)},
        }
        self.extra = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self) -> None:
        """Write the configuration."""
        lines = [
            "[console]",
            f"directory = {json.dumps(str(self.directory / 'state'))}",
            'listen = ["127.0.0.1"]',
            f"ssh = {{port = {self.ssh_port}}}",
            f"web = {{port = {self.web_port}}}",
            "[console.users.op]",
            f"password = {json.dumps(password_hash(PASSWORD))}",
            'power = ["*"]',
            "[console.users.looker]",
            f"password = {json.dumps(password_hash(PASSWORD))}",
            'view = ["sh"]',
        ]
        for name, settings in self.ports.items():
            lines.append(f"[console.ports.{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.config.write_text("\n".join([*lines, self.extra, ""]))

    def start(self) -> None:
        """Start the server and wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "minerva", "console", "run"),
                    *("--config", str(self.config), "--run-dir", str(self.run_dir)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._serves, "the server serves")

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            status = self.ask("status")
        except client.ConsoleClientError:
            return False
        return all(item["address"] for item in status["listening"]) and all(
            item["state"] == "Connected" for item in status["consoles"]
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask the server for something over its control socket."""
        return client.call(self.run_dir / "console.sock", command, **arguments)

    def consoles(self) -> dict[str, dict[str, Any]]:
        """Return the consoles by name, as in the status."""
        return {item["name"]: item for item in self.ask("status")["consoles"]}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def cli(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``minerva console``."""
        environment = dict(os.environ, MINERVA_RUN_DIR=str(self.run_dir), MINERVA_CONFIG=str(self.config))
        return subprocess.run(
            [sys.executable, "-m", "minerva", "console", *arguments],
            capture_output=True,
            text=True,
            input=text,
            timeout=60,
            check=False,
            env=environment,
        )

    def __enter__(self) -> Serving:
        self.write()
        try:
            self.start()
            # What is said to it before would be lost when it sets its terminal up.
            if "echo" in self.ports:
                until(self._echo_ready.exists, "the device listens")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
