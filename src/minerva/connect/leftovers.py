"""What a node that was killed left behind, found by its mark and removed."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import closing, suppress
from pathlib import Path

from minerva.asa.protocol import API_SOCKET
from minerva.asa.sockets import SOCKETS_SOCKET
from minerva.connect.acp import PREFERENCE, TABLE
from minerva.connect.state import NodeState
from minerva.linux import namespace
from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace
from minerva.linux.netlink import Netlink
from minerva.pki.files import File, write_files

log = logging.getLogger(__name__)

GUARD_FILE = "guard.pid"
CONTROL_SOCKET = "control.sock"


def record_guard(run_dir: Path, pid: int) -> None:
    """Note which process holds the guard table, for a start after a ``kill -9``."""
    write_files(run_dir, File(GUARD_FILE, f"{pid} {_start_time(pid)}\n".encode(), secret=True))


def end_guard(run_dir: Path) -> bool:
    """End the guard that is on record, if it still runs; return whether it did."""
    path = run_dir / GUARD_FILE
    try:
        pid, started = (int(word) for word in path.read_text().split())
    except (FileNotFoundError, ValueError):
        return False
    # The number may belong to another process by now; its start time cannot be the same.
    alive = pid > 1 and started >= 0 and _start_time(pid) == started
    if alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    path.unlink(missing_ok=True)
    return alive


def _start_time(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])


async def remove(state: NodeState, run_dir: Path, host: Netlink) -> None:
    """Remove all that carries the node's mark: namespaces, acp0, its rule, the guard, sockets."""
    found = []
    for name in namespace.names(state.namespace_prefix):
        await _delete_macvlans(name)
        namespace.delete_name(name)
        found.append(f"namespace {name}")
    for link in await host.links():
        if link.alias == f"minerva:{state.tag}":
            await host.delete_link(link.index)
            found.append(f"interface {link.name}")
    if found and await host.has_rule(PREFERENCE, TABLE):
        await host.delete_rule(PREFERENCE, TABLE)
        found.append(f"routing rule {PREFERENCE}")
    if end_guard(run_dir):  # last: it guards the rest
        found.append("the guard")
    for name in (CONTROL_SOCKET, API_SOCKET, SOCKETS_SOCKET):
        (run_dir / name).unlink(missing_ok=True)
    if found:
        log.warning("removed what an earlier run left behind: %s", ", ".join(found))


async def _delete_macvlans(name: str) -> None:
    """Delete the interfaces on our ports in a namespace.

    With the namespace they would go some time after its name: so long, their MAC addresses, which will be
    ours again, are in use.
    """
    try:
        with closing(Namespace(name)) as where:
            inside = Netlink(where)
            try:
                for link in await inside.links():
                    if link.kind == "macvlan":
                        await inside.delete_link(link.index)
            finally:
                await inside.close()
    except (LinuxError, OSError) as error:
        log.debug("%s: %s", name, error)  # half of a namespace: there is nothing in it
