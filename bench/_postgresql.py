"""A PostgreSQL for a bench: a cluster of its own on a Unix socket, thrown away afterwards.

With the settings that it comes with: what was committed is on the disk.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROGRAMS = "/usr/lib/postgresql/*/bin/initdb"


class NotHereError(Exception):
    """There is no PostgreSQL on this machine."""


@dataclass
class Cluster:
    """A running PostgreSQL."""

    programs: Path
    data: Path
    user: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The process that all others of it are children of."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def new_database(self, name: str) -> str:
        """Make an empty database; return its URL."""
        self.run("createdb", "-h", str(self.data.parent), "-U", self.user, name)
        return f"postgresql://{self.user}@/{name}?host={self.data.parent}"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the owner of the cluster."""
        command = [str(self.programs / program), *arguments]
        # A server that stays must not hold a pipe of ours, so what it says goes into a file.
        with (self.data.parent / "said").open("a+") as said:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
                check=False,
                **self.options,
            )
            said.seek(0)
            if done.returncode:
                raise RuntimeError(f"{program} failed: {said.read()[-1000:]}")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Make a cluster, and start it. Raises :class:`NotHereError`."""
    found = sorted(Path("/").glob(_PROGRAMS.lstrip("/")))
    if not found:
        raise NotHereError("PostgreSQL is not installed (package postgresql)")
    # It refuses to run as root.
    root = os.geteuid() == 0
    owner = pwd.getpwnam("postgres") if root else pwd.getpwuid(os.geteuid())
    base = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        os.chown(base, owner.pw_uid, owner.pw_gid)
        options = {"user": owner.pw_uid, "group": owner.pw_gid} if root else {}
        made = Cluster(found[-1].parent, base / "data", owner.pw_name, options)
        made.run("initdb", "-D", str(made.data), "-A", "trust", "-E", "UTF8", "--no-locale")
        settings = f"-c listen_addresses= -c unix_socket_directories={base}"
        made.run("pg_ctl", "-D", str(made.data), "-o", settings, "-w", "start")
        try:
            yield made
        finally:
            made.run("pg_ctl", "-D", str(made.data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(base, ignore_errors=True)
