"""A registrar and a MASA for a bench: the programs themselves, and databases with many devices in them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.brski.database import open_engine, reading, writing
from minerva.brski.masa.authority import Authority, create_authority
from minerva.brski.masa.database import Database
from minerva.brski.masa.database import metadata as masa_tables
from minerva.brski.masa.settings import Settings
from minerva.brski.pledge.device import Device
from minerva.brski.registrar import manufacturers
from minerva.brski.registrar.database import metadata as registrar_tables
from minerva.brski.registrar.init import initialise
from minerva.pki.certificates import dump_pem
from minerva.pki.keys import generate_key

HOST = "::1"
ROWS_AT_A_TIME = 2_000
START_SECONDS = 30.0

_TICKS = os.sysconf("SC_CLK_TCK")
_FIRST_COPY = 1_000_000
"""A prefix of invented serial numbers, and of what else must not be there twice."""


@dataclass
class Process:
    """One of the two servers."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def cpu(self) -> float:
        """Return the time that it has used in all its threads, user and system, in seconds."""
        return cpu(self.popen.pid)

    def rss(self) -> float:
        """Return what it has in memory, in MiB."""
        for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"the {self.name} is gone: {self.log.read_text()[-1000:]}")


def cpu(pid: int) -> float:
    """Return the time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_with_children(pid: int) -> float:
    """Return the time of a process and of those that it has started, also of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    total = sum(map(int, fields[11:15])) / _TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(cpu(int(child)) for child in children)


class World:
    """The directories and databases of one registrar and one MASA, and their processes."""

    def __init__(self, base: Path, registrar_database: str = "", masa_database: str = "") -> None:
        self.base = base
        self.masa_port, self.port = _free_port(), _free_port()
        now = datetime.now(UTC)
        where = base / "masa"
        where.mkdir()
        settings = Settings("Maker", f"[{HOST}]:{self.masa_port}", masa_database or "masa.db")
        self.masa_engine = open_engine(settings.database_at(where))
        self.masa = Database(self.masa_engine)
        self.masa.create()
        self.authority: Authority = create_authority(where, settings, now - timedelta(days=10))
        made = initialise(
            "acp.example.com", base / "registrar", base / "node", now=now, database=registrar_database
        )
        self.registrar_engine = open_engine(registrar_database or made.directory / "registrar.db")
        with writing(self.registrar_engine) as connection:
            manufacturers.add(connection, "Maker", dump_pem(self.authority.anchors), when=now)
        self._made = 0

    def devices(self, count: int) -> list[Device]:
        """Return new devices, of which the MASA knows."""
        now = datetime.now(UTC)
        made = []
        for number in range(self._made, self._made + count):
            key = generate_key("p256")
            certificate = self.authority.make_idevid(
                f"SN-{number}", key.public_key(), now - timedelta(days=5)
            )
            chain = (self.authority.devices.certificate,)
            made.append(Device(certificate, chain, self.authority.anchors, key, f"SN-{number}"))
        self._made += count
        rows = [(one.serial_number, one.certificate.public_bytes(Encoding.DER)) for one in made]
        self.masa.add_devices(rows, now)
        return made

    def multiply(self, count: int) -> None:
        """Fill both databases with so many copies of the device that was enrolled last."""
        copy_device(self.masa_engine, masa_tables, count)
        copy_device(self.registrar_engine, registrar_tables, count)
        if self.masa_engine.dialect.name == "postgresql":
            # It does so by itself, but later, and would be measured doing it.
            for engine in (self.masa_engine, self.registrar_engine):
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.execute(sa.text("VACUUM ANALYZE"))
                    connection.execute(sa.text("CHECKPOINT"))

    def numbers(self) -> tuple[int, int]:
        """Return how many devices the MASA and the registrar know."""
        found = []
        for engine, tables in ((self.masa_engine, masa_tables), (self.registrar_engine, registrar_tables)):
            with reading(engine) as connection:
                devices = tables.tables["devices"]
                found.append(connection.scalar(sa.select(sa.func.count()).select_from(devices)) or 0)
        return found[0], found[1]

    @contextmanager
    def running(self, core: int) -> Iterator[tuple[Process, Process]]:
        """Run the registrar and the MASA, both on one core."""
        registrar = ["registrar", "run", "--dir", str(self.base / "registrar"), "--address", HOST]
        registrar += ["--port", str(self.port), "--crl-port", "0", "--run-dir", str(self.base)]
        masa = ["masa", "run", "--dir", str(self.base / "masa"), "--listen", f"[{HOST}]:{self.masa_port}"]
        processes = []
        try:
            for name, arguments, port in (
                ("registrar", registrar, self.port),
                ("masa", masa, self.masa_port),
            ):
                processes.append(_start(name, arguments, self.base / f"{name}.log", core))
                _wait_for(processes[-1], port)
            yield processes[0], processes[1]
        finally:
            for process in processes:
                process.popen.terminate()
            for process in processes:
                process.popen.wait(20)

    def close(self) -> None:
        """Close the connections with the databases."""
        self.masa_engine.dispose()
        self.registrar_engine.dispose()


def copy_device(engine: sa.Engine, tables: sa.MetaData, count: int) -> None:
    """Copy the newest device of a database with all rows that belong to it, ``count`` times.

    What has to differ does; certificates and vouchers are the same bytes again.
    """
    devices = tables.tables["devices"]
    with writing(engine) as connection:
        template = connection.execute(sa.select(devices).order_by(devices.c.id.desc()).limit(1)).one()
        belongings: dict[sa.Table, list[dict[str, Any]]] = {
            table: [
                dict(row._mapping)
                for row in connection.execute(sa.select(table).where(table.c.device_id == template.id))
            ]
            for table in tables.sorted_tables
            if "device_id" in table.c
        }
        for start in range(0, count, ROWS_AT_A_TIME):
            numbers = range(_FIRST_COPY + start, _FIRST_COPY + min(start + ROWS_AT_A_TIME, count))
            connection.execute(
                sa.insert(devices), [_changed(dict(template._mapping), number) for number in numbers]
            )
            serials = devices.c.serial_number
            ids = connection.execute(
                sa.select(devices.c.id).where(serials.in_([f"COPY-{number}" for number in numbers]))
            ).scalars()
            pairs = list(zip(ids, numbers, strict=True))
            for table, rows in belongings.items():
                copies = [
                    _changed(row, number) | {"device_id": device_id}
                    for device_id, number in pairs
                    for row in rows
                ]
                if copies:
                    connection.execute(sa.insert(table), copies)


def _changed(row: dict[str, Any], number: int) -> dict[str, Any]:
    digest = sha256(f"{number}".encode()).digest()
    others = {
        "serial_number": f"COPY-{number}",
        "idevid_sha256": digest.hex(),
        "serial": digest.hex()[:40],
        "slug": digest.hex()[:32],
        "request_digest": digest,
        "address": str(IPv6Address((0xFD << 120) | number)),
        "registrar_id": number >> 15,
        "number": number & 0x7FFF,
    }
    return {
        name: others.get(name, value)
        for name, value in row.items()
        if name != "id"  # the database's affair
    }


def _start(name: str, arguments: list[str], log: Path, core: int) -> Process:
    with log.open("ab") as output:
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # a child has that of its parent
        try:
            popen = subprocess.Popen(
                [sys.executable, "-m", "minerva", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            os.sched_setaffinity(0, own)
    return Process(name, popen, log)


def _wait_for(process: Process, port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.popen.poll() is None:
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the {process.name} does not start: {process.log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.create_server((HOST, 0), family=socket.AF_INET6) as sock:
        return int(sock.getsockname()[1])
