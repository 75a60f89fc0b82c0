"""GRASP between real nodes: how many sessions a second, how long they take, what the process needs at rest.

Needs root. Used by ``bench_grasp``.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

from _report import report
from minerva.asa import Asa, AsaLocator, IPv6Locator, Objective, ObjectiveFlag, TransportProto
from minerva.asa.protocol import API_SOCKET
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.lab.lab import base_directory, down
from minerva.lab.nodes import LabNode

LAB = "bench-grasp"
ROUNDS, SECONDS = 5, 2.0
AT_ONCE = 16
F_NEG, F_SYNCH = ObjectiveFlag.F_NEG, ObjectiveFlag.F_SYNCH
SYNC = Objective("example.com:sync", F_SYNCH, value={"load": 0.5})
NEGOTIATION = Objective("example.com:negotiation", F_NEG, value=100)


@contextmanager
def standing(topology: str) -> Iterator[dict[str, LabNode]]:
    """A standing lab, and its nodes by name."""
    command = [sys.executable, "-m", "minerva", "lab", "up", topology, "--name", LAB]
    subprocess.run(command, capture_output=True, check=True)
    try:
        folder = base_directory() / LAB / "nodes"
        yield {path.name: LabNode(path.name, path) for path in sorted(folder.iterdir())}
    finally:
        down(LAB)


async def per_second(once: Callable[[], Awaitable[None]]) -> float:
    """Return how often ``once`` ends in a second, ``AT_ONCE`` of them being under way."""
    done, begun = 0, time.monotonic()

    async def again() -> None:
        nonlocal done
        while time.monotonic() - begun < SECONDS:
            await once()
            done += 1

    await asyncio.gather(*(again() for _ in range(AT_ONCE)))
    return done / (time.monotonic() - begun)


async def milliseconds(once: Callable[[], Awaitable[object]], times: int = 20) -> float:
    """Return the median time of ``once``, one after the other."""
    found = []
    for _ in range(times):
        begun = time.monotonic()
        await once()
        found.append((time.monotonic() - begun) * 1000)
    return statistics.median(found)


async def answer_all(asa: Asa) -> None:
    """Make one counter-offer to whoever negotiates, for ever."""

    async def one() -> None:
        while True:
            async with await asa.listen_negotiate(NEGOTIATION) as session:
                await session.offer(50)

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def measure(near: LabNode, far: LabNode) -> dict[str, list[float]]:
    """Measure between two nodes."""
    found: dict[str, list[float]] = {}
    status = far.ask("status")
    assert status is not None
    address = IPv6Address(status["node"]["address"])
    peer = AsaLocator(IPv6Locator(address, TransportProto.IPPROTO_TCP, GRASP_LISTEN_PORT))
    async with (
        Asa.connect("bench", near.run_dir / API_SOCKET) as asa,
        Asa.connect("bench", far.run_dir / API_SOCKET) as other,
    ):
        for objective in (SYNC, NEGOTIATION):
            await other.register_objective(objective)
        await asa.register_objective(NEGOTIATION)
        await other.listen_synchronize(SYNC)
        answering = asyncio.create_task(answer_all(other))

        async def synchronize() -> None:
            await asa.synchronize(SYNC, peer)

        async def negotiate() -> None:
            session = await asa.negotiate(NEGOTIATION, peer)
            await session.accept()

        async def find() -> None:
            await asa.discover(SYNC, 0, 0)  # forget what is known
            await asa.synchronize(SYNC)

        for _ in range(ROUNDS):
            known, unknown = await milliseconds(synchronize), await milliseconds(find)
            found.setdefault("sync_ms", []).append(known)
            found.setdefault("discovery_ms", []).append(max(unknown - known, 0.0))
            found.setdefault("syncs_per_s", []).append(await per_second(synchronize))
            found.setdefault("negotiations_per_s", []).append(await per_second(negotiate))
        answering.cancel()
    return found


def private_mib(node: LabNode) -> float:
    """Return the private memory of the process that has GRASP (and RPL)."""
    status = node.ask("status")
    assert status is not None
    pid = next(item["pid"] for item in status["processes"] if item["name"] == "plane")
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def live() -> None:
    """Measure and report."""
    with standing("line:2") as nodes:
        memory = [private_mib(node) for node in nodes.values()]
        found = asyncio.run(measure(nodes["n1"], nodes["n2"]))
    report("grasp", "plane_private_mib", memory, "MiB", "lower")
    for figure in ("syncs_per_s", "negotiations_per_s"):
        report("grasp", figure, found[figure], "1/s", "higher")
    report("grasp", "sync_ms", found["sync_ms"], "ms", "lower")
    report("grasp", "discovery_ms", found["discovery_ms"], "ms", "lower")
    with standing("line:5") as nodes:
        found = asyncio.run(measure(nodes["n1"], nodes["n5"]))
    report("grasp", "sync_4_hops_ms", found["sync_ms"], "ms", "lower")
    report("grasp", "discovery_4_hops_ms", found["discovery_ms"], "ms", "lower")
