"""A PostgreSQL of the tests: a cluster that is made for them and thrown away, on a Unix socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_DATABASES = count(1)


@dataclass
class Cluster:
    """A running PostgreSQL. ``sockets`` is the directory of its socket, ``user`` its owner."""

    programs: Path
    data: Path
    sockets: Path
    user: str
    options: dict[str, Any] = field(default_factory=dict)

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        name = f"minerva{next(_DATABASES)}"
        self.run("createdb", "-h", str(self.sockets), "-U", self.user, name)
        return f"postgresql://{self.user}@/{name}?host={self.sockets}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.sockets} -c max_connections=200"
        log = str(self.data.parent / "log")
        self.run("pg_ctl", "-D", str(self.data), "-l", log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """Stop it at once."""
        self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the owner of the cluster."""
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            cwd="/",
            check=False,
            **self.options,
        )
        assert done.returncode == 0, f"{program}: {(done.stderr or b'').decode()}"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A new cluster; skips if PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    # It refuses to run as root.
    owner = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    options = {"user": owner.pw_uid, "group": owner.pw_gid} if os.geteuid() == 0 else {}
    base = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        sockets = base / "s"
        sockets.mkdir()
        for path in (base, sockets):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        made = Cluster(found[-1].parent, base / "data", sockets, owner.pw_name, options)
        made.run("initdb", "-D", str(made.data), "-A", "trust", "-N", "-E", "UTF8", "--no-locale")
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(base, ignore_errors=True)
