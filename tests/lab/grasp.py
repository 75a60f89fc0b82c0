"""What tests of GRASP in a lab have in common: ASAs on its nodes, and waiting for what must come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from minerva.asa import Asa, ObjectiveFlag
from minerva.asa.protocol import API_SOCKET
from tests.lab.attacker import StandingLab, until

NODES = ("n1", "n2", "n3", "n4", "n5")
F_NEG, F_SYNCH = ObjectiveFlag.F_NEG, ObjectiveFlag.F_SYNCH


def links_ready(lab: StandingLab, node: str) -> bool:
    """Return whether all channels of a node have their GRASP connection."""
    status = lab.status(node)
    links = (status["grasp"] or {}).get("links", [])
    return bool(links) and len(links) == len(status["channels"]) and all(link["ready"] for link in links)


def api(lab: StandingLab, node: str) -> Path:
    """Return the API socket of a node."""
    return lab.run_dir(node) / API_SOCKET


@asynccontextmanager
async def asas(lab: StandingLab, *nodes: str) -> AsyncIterator[list[Asa]]:
    """An ASA on each of the nodes."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Asa.connect(f"test-{time.monotonic_ns()}", api(lab, node)))
            for node in nodes
        ]


async def eventually(what: Callable[[], Awaitable[Any]], seconds: float = 10.0) -> tuple[Any, float]:
    """Return what ``what`` returns as soon as that is true, and how long it took."""
    began = time.monotonic()
    while True:
        if found := await what():
            return found, time.monotonic() - began
        assert time.monotonic() - began < seconds, "it did not come"
        await asyncio.sleep(0.01)


def address(lab: StandingLab, node: str) -> IPv6Address:
    """Return the ACP address of a node."""
    return IPv6Address(lab.status(node)["node"]["address"])


def until_ready(lab: StandingLab, *, seconds: float = 40.0) -> None:
    """Wait until all channels of all nodes have their GRASP connections."""
    until(lambda: all(links_ready(lab, node) for node in NODES), "all links are ready", seconds=seconds)
