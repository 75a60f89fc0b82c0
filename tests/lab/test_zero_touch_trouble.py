"""Networks without touch in which everything goes wrong that can; all devices are let in, each once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Sequence

import pytest

from minerva.lab import nodes
from minerva.lab.lab import Lab
from minerva.linux.netlink import Netlink
from minerva.linux.nftables import Nftables
from minerva.pki.identity import _NEW_DIRECTORY as NEW_DIRECTORY
from tests.lab.attacker import Pings, until
from tests.lab.conftest import minerva
from tests.lab.stepped_log import stepped_log
from tests.lab.zero_touch import (
    MASA,
    REGISTRAR,
    all_are_in,
    has_what_the_registrar_knows,
    kill_node,
    kill_service,
    logged,
    service,
    soon,
    zero_touch_lab,
)

pytestmark = pytest.mark.root


# --- services that fail ------------------------------------------------------------------------------------


def test_the_registrar_is_killed_again_and_again() -> None:
    """Each time when it has just let a device have its voucher, and for a second."""

    async def work() -> None:
        async with zero_touch_lab("tree:2x1") as lab:
            registrar = service(lab, REGISTRAR)
            for number in (1, 2):
                await logged(registrar, "gets a voucher", times=number)
                kill_service(registrar)
                await asyncio.sleep(1.0)
                registrar.start(follow_us=True)
            await all_are_in(lab)

    asyncio.run(work())


def test_the_masa_is_away_for_a_while() -> None:
    """The devices hear why they have to wait, and come again."""

    async def work() -> None:
        async with zero_touch_lab("line:3") as lab:
            masa = service(lab, MASA)
            kill_service(masa)
            await logged(lab.nodes["n2"], "asking again in")
            masa.start(follow_us=True)
            await all_are_in(lab)

    asyncio.run(work())


# --- proxies that fail -------------------------------------------------------------------------------------


def test_a_proxy_loses_power_while_a_device_enrols() -> None:
    async def work() -> None:
        async with zero_touch_lab("line:3") as lab:
            proxy, pledge = lab.nodes["n2"], lab.nodes["n3"]
            await logged(pledge, "of whom nothing is known yet")
            kill_node(proxy)
            await asyncio.sleep(1.0)
            proxy.start(lab.network.hosts["n2"], follow_us=True)
            await all_are_in(lab)

    asyncio.run(work())


# --- links that lose packets -------------------------------------------------------------------------------


def lose(lab: Lab, percent: int) -> None:
    """Let all links lose so many packets, in each direction, before anything of the node sees them."""
    for segment in lab.topology.segments:
        for node, port in segment.ends:
            with lab.network.hosts[node].entered(), Nftables() as nftables:
                nftables.run(
                    f"table netdev loss_{port} {{ chain c {{\n"
                    f'type filter hook ingress device "{port}" priority 0;\n'
                    f"numgen random mod 100 < {percent} counter drop\n}}\n}}\n"
                )


def test_links_that_lose_packets() -> None:
    async def work() -> None:
        async with zero_touch_lab("line:4", start=False) as lab:
            lose(lab, 5)
            lab.start(follow_us=True)
            await all_are_in(lab)

    asyncio.run(work())


# --- the power is cut --------------------------------------------------------------------------------------

HOLD_SECONDS = 0.2
"""How long a device may do what it does between two lines of its log."""

STEPS: tuple[tuple[str, float | str], ...] = (
    ("looking for a join proxy", HOLD_SECONDS),
    ("heard the join proxy", HOLD_SECONDS),
    ("connecting to the registrar", HOLD_SECONDS),
    ("of whom nothing is known yet", HOLD_SECONDS),
    ("the maker says", HOLD_SECONDS),
    ("trust anchors:", HOLD_SECONDS),
    ("to be enrolled as", HOLD_SECONDS),
    ("asking for a certificate", HOLD_SECONDS),
    # What it has got is stored now, file by file.
    ("this device is fd", 0.0),
    ("this device is fd", NEW_DIRECTORY),
    ("this device is fd", f"{NEW_DIRECTORY}/cert.pem"),
    ("this device is fd", "key.pem"),
    ("this device is fd", HOLD_SECONDS),
    ("enrolled: this node is", HOLD_SECONDS),
    ("the registrar knows", HOLD_SECONDS),
)
"""What a device logs on its way, and for how long it then goes on, or until it has which file."""


async def plug(lab: Lab, name: str, state: str) -> None:
    """Set the one link of a device ``up`` or ``down``, as its power is."""
    netlink = Netlink(lab.network.hosts[name])
    try:
        await netlink.set_link(await netlink.index_of("eth0"), state=state)
    finally:
        await netlink.close()


async def cut_power(lab: Lab, name: str) -> None:
    """Cut the power of a device: it and its link are gone, for so long that the other end has seen it."""
    kill_node(lab.nodes[name])
    await plug(lab, name, "down")
    await asyncio.sleep(0.5)


async def run_until(lab: Lab, name: str, words: str, then: float | str) -> None:
    """Run a device until it logs ``words``, and on to its next line at most; then cut its power."""
    node = lab.nodes[name]
    with stepped_log() as log:
        await plug(lab, name, "up")
        with lab.network.hosts[name].entered():
            node.process = subprocess.Popen(
                node.command, stdin=subprocess.DEVNULL, stderr=log.writer, start_new_session=True
            )
        try:
            await soon(lambda: log.has_come_to(words), f"{name} says {words!r}")
            if isinstance(then, str):
                # A moment that may be missed: then all files are there, which is one more.
                deadline = time.monotonic() + HOLD_SECONDS
                while not (node.state_dir / then).exists() and time.monotonic() < deadline:
                    time.sleep(0)
            else:
                await asyncio.sleep(then)
        finally:
            await cut_power(lab, name)
            files = sorted(str(path.relative_to(node.state_dir)) for path in node.state_dir.rglob("*.pem*"))
            print(f"=== {name} was cut off after:", *log.taken, words, " ".join(files), sep="\n")


async def enrols(lab: Lab, name: str) -> None:
    """Run a device until it is a member, which the first node reaches."""
    node, first = lab.nodes[name], lab.nodes["n1"]
    await plug(lab, name, "up")
    node.start(lab.network.hosts[name], follow_us=True)

    def addresses() -> list[str]:
        found = [it.ask("milestones") or {"address": None} for it in (first, node)]
        return [item["address"] for item in found]

    here, there = await soon(lambda: all(found := addresses()) and found, f"{name} has an address")
    with Pings(lab.network.hosts["n1"], here, there) as pings:
        await asyncio.to_thread(until, pings.reaches, f"{name} is reached")


async def reset(lab: Lab, name: str) -> None:
    """End a device in order, and let it forget its domain."""
    node = lab.nodes[name]
    await asyncio.to_thread(nodes.stop, [node])
    node.process = None
    await plug(lab, name, "down")
    result = await asyncio.to_thread(minerva, "factory-reset", "--yes", "--state-dir", node.state_dir)
    assert result.returncode == 0, result.stderr


@pytest.mark.timeout(200)
def test_the_power_is_cut_at_every_step() -> None:
    """When all is done that comes after a step and before the next; several devices at a time."""

    async def work() -> None:
        async with zero_touch_lab("star:6", start=False) as lab:
            first, *devices = lab.nodes
            lab.nodes[first].start(lab.network.hosts[first], follow_us=True)
            assert lab.zero_touch is not None
            lab.zero_touch.start(follow_us=True)
            await logged(lab.nodes[first], "TCP port 4443")

            async def suffer(name: str, steps: Sequence[tuple[str, float | str]]) -> None:
                addresses: set[str] = set()
                for words, then in steps:
                    if addresses:
                        await reset(lab, name)
                    await run_until(lab, name, words, then)
                    await enrols(lab, name)
                    addresses.add(has_what_the_registrar_knows(lab, name))
                assert len(addresses) == 1

            tasks = [suffer(name, STEPS[number :: len(devices)]) for number, name in enumerate(devices)]
            await asyncio.gather(*tasks)
            await all_are_in(lab)

    asyncio.run(work())


# --- all of it at once -------------------------------------------------------------------------------------

CHAOS_SECONDS, CHAOS_PAUSE = 60.0, 4.0
"""How long things go wrong, and about how long between two of them."""


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(int(os.environ.get("MINERVA_SOAK_ROUNDS", "1"))))
@pytest.mark.parametrize("topology", ["tree:2x2", "lan:6", "ring:6"])
def test_everything_fails_now_and_then(topology: str, seed: int) -> None:
    """Services and nodes, at any moment, while one packet of twenty is lost everywhere."""
    source = random.Random(f"{topology} {seed}")

    async def fail(lab: Lab) -> None:
        if source.random() < 0.4:
            it = service(lab, source.choice((REGISTRAR, MASA)))
            kill_service(it)
            await asyncio.sleep(source.uniform(0.0, CHAOS_PAUSE))
            it.start(follow_us=True)
        else:
            name = source.choice(list(lab.nodes))
            kill_node(lab.nodes[name])
            await asyncio.sleep(source.uniform(0.0, CHAOS_PAUSE))
            lab.nodes[name].start(lab.network.hosts[name], follow_us=True)

    async def work() -> None:
        async with zero_touch_lab(topology, start=False) as lab:
            lose(lab, 5)
            lab.start(follow_us=True)
            deadline = time.monotonic() + CHAOS_SECONDS
            while time.monotonic() < deadline:
                await asyncio.sleep(source.uniform(0.0, CHAOS_PAUSE))
                await fail(lab)
            await all_are_in(lab, 300.0)

    asyncio.run(work())
