"""A network without touch that stands in this process, where tests can do harm to all its parts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

from minerva.lab import nodes
from minerva.lab.lab import Lab
from minerva.lab.nodes import LabNode
from minerva.lab.topology import parse_topology
from minerva.lab.zero_touch import Service
from minerva.pki.identity import load_identity
from tests.lab.conftest import minerva

REGISTRAR, MASA = "registrar", "MASA"

ENROLMENT_SECONDS = 60.0
"""How long all devices of a small network may take at most, with whatever happens to them on the way."""


@asynccontextmanager
async def zero_touch_lab(topology: str, *, start: bool = True) -> AsyncIterator[Lab]:
    """A lab, which has just been started, and of which nothing is left afterwards."""
    lab = Lab(parse_topology(topology), f"trouble-{os.getpid()}", zero_touch=True)
    try:
        await lab.build()
        if start:
            lab.start(follow_us=True)
        yield lab
    except BaseException:
        print(logs(lab))
        raise
    finally:
        await lab.close()


def logs(lab: Lab) -> str:
    """Return all logs, for whoever has to find out what went wrong."""
    files = [lab.directory / "masa.log", lab.directory / "registrar.log"]
    files += [node.log_file for node in lab.nodes.values()]
    return "\n".join(f"=== {file}\n{file.read_text()}" for file in files if file.is_file())


def service(lab: Lab, name: str) -> Service:
    """The registrar or the MASA."""
    assert lab.zero_touch is not None
    return next(item for item in lab.zero_touch.services if item.name == name)


def kill_service(it: Service) -> None:
    """End it without a chance to tidy up."""
    assert it.process is not None
    it.process.kill()
    it.reap()


def kill_node(node: LabNode) -> None:
    """Cut the power of a node: all its processes are gone at once."""
    for pid in nodes._processes([node]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if node.process is not None:
        node.process.wait()
        node.process = None


async def soon(
    condition: Callable[[], Any], what: str, *, seconds: float = 30.0, pause: float = 0.002
) -> Any:
    """Return what ``condition`` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds} seconds still not: {what}"
        await asyncio.sleep(pause)
    return found


async def logged(where: LabNode | Service, words: str, *, times: int = 1) -> None:
    """Wait until a node or a service has so often said what has ``words`` in it."""
    file = where.log_file

    def said() -> bool:
        return file.is_file() and file.read_text(errors="replace").count(words) >= times

    await soon(said, f"{where.name} says {words!r} {times} times")


async def all_are_in(lab: Lab, seconds: float = ENROLMENT_SECONDS) -> None:
    """Wait until all nodes reach each other; see that each was enrolled, and was given one address."""
    await lab.reach_all(seconds, lambda _: None)
    await asyncio.to_thread(each_is_enrolled_once, lab)


def each_is_enrolled_once(lab: Lab) -> None:
    """See that what the registrar has in its database is what the devices have."""
    first, *others = lab.nodes
    directory = _registrar_directory(lab)
    listed = minerva("registrar", "devices", "--dir", directory, "--json")
    assert listed.returncode == 0, listed.stderr
    devices = {item["serial_number"]: item for item in json.loads(listed.stdout)["devices"]}
    assert {item["state"] for item in devices.values()} == {"enrolled"}
    addresses = {f"LAB-{name}": has_what_the_registrar_knows(lab, name) for name in others}
    addresses["registrar"] = str(load_identity(lab.nodes[first].state_dir).address)
    assert {name: item["address"] for name, item in devices.items()} == addresses
    with closing(sqlite3.connect(directory / "registrar.db")) as database:
        allocated = database.execute("SELECT address FROM addresses").fetchall()
    assert sorted(address for (address,) in allocated) == sorted(addresses.values())


def has_what_the_registrar_knows(lab: Lab, name: str) -> str:
    """See that a device has the one certificate that the registrar thinks it has; return its address."""
    identity = load_identity(lab.nodes[name].state_dir)
    with closing(sqlite3.connect(_registrar_directory(lab) / "registrar.db")) as database:
        serials = database.execute(
            "SELECT serial FROM certificates JOIN devices ON devices.id = device_id"
            " WHERE serial_number = ? AND superseded_by IS NULL AND revoked_at IS NULL",
            [f"LAB-{name}"],
        ).fetchall()
        addresses = database.execute(
            "SELECT address FROM addresses JOIN devices ON devices.id = device_id WHERE serial_number = ?",
            [f"LAB-{name}"],
        ).fetchall()
    assert [int(serial, 16) for (serial,) in serials] == [identity.certificate.serial_number]
    assert addresses == [(str(identity.address),)]
    return str(identity.address)


def _registrar_directory(lab: Lab) -> Path:
    assert lab.zero_touch is not None
    return lab.zero_touch.registrar_directory
