"""How many devices a registrar and a MASA let in: ``minerva registrar`` and ``minerva masa`` on one core.

Everything is as in a network but for the distance: the programs with their default settings, TLS over the
loopback interface, databases on the disk, devices of one maker with P-256 keys that were never there before.
An enrolment is all that a device does, its report with the new certificate included. The devices are on
another core, with PostgreSQL if that is measured.

``cpu_ms`` is the time of both servers for one enrolment, and that of PostgreSQL apart: it does not depend on
what else the machine does. ``enrolments_per_s`` does. ``latency_ms`` is what a single device sees, one at a
time, its own work included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from _brski_world import HOST, Process, World, cpu_with_children
from _postgresql import Cluster, NotHereError, cluster
from _report import report
from minerva.brski.pledge.attempt import Step, bootstrap, report_enrolled
from minerva.brski.pledge.device import Device

DEVICES = (10, 100_000)
CLIENTS = 8
WARM_UP = 10

STEPS = {
    (Step.CONNECTING, Step.VOUCHER_REQUESTED): "tls",
    (Step.VOUCHER_REQUESTED, Step.VOUCHER_VERIFIED): "voucher",
    (Step.VOUCHER_VERIFIED, Step.CA_CERTIFICATES): "cacerts",
    (Step.CA_CERTIFICATES, Step.ATTRIBUTES): "csrattrs",
    (Step.ATTRIBUTES, Step.ENROLLED): "simpleenroll",
    (Step.ENROLLED, Step.REPORTED): "enrollstatus",
}
"""From when to when a step takes. "voucher" has the report on it at its end, "tls" the device's signature."""


@dataclass
class Figures:
    """What is measured with one database, a value a round."""

    rates: list[float] = field(default_factory=list)
    cpu: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    latency: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def clock() -> datetime:
    """Return what time it is."""
    return datetime.now(UTC)


async def enrol(device: Device, port: int) -> dict[Step, float]:
    """Let one device enrol and report; return when it reached each step."""
    times: dict[Step, float] = {}

    async def connect() -> socket.socket:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        return sock

    def on_step(step: Step, _: str) -> None:
        if step is Step.WAITING:
            raise RuntimeError("the registrar lets a device wait")
        times.setdefault(step, time.perf_counter())

    enrolled = await bootstrap(connect, device, now=clock, on_step=on_step)
    await report_enrolled(connect, enrolled, on_step=on_step)
    return times


async def one_by_one(devices: list[Device], port: int) -> dict[str, list[float]]:
    """Enrol devices, each when the one before is done; return how long each step took, in milliseconds."""
    found: dict[str, list[float]] = {name: [] for name in (*STEPS.values(), "all")}
    for device in devices:
        times = await enrol(device, port)
        for (begin, end), name in STEPS.items():
            found[name].append((times[end] - times[begin]) * 1000)
        found["all"].append((times[Step.REPORTED] - times[Step.CONNECTING]) * 1000)
    return found


async def at_a_time(devices: list[Device], port: int) -> float:
    """Enrol devices, several at a time; return how many a second."""
    waiting = iter(devices)

    async def client() -> None:
        for device in waiting:
            await enrol(device, port)

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return len(devices) / (time.perf_counter() - begin)


def measure(
    world: World, servers: tuple[Process, ...], database: Cluster | None, runs: int, count: int, singles: int
) -> Figures:
    """Measure so many rounds."""
    figures = Figures()
    for _ in range(runs):
        for name, values in asyncio.run(one_by_one(world.devices(singles), world.port)).items():
            figures.latency[name].append(statistics.median(values))
        devices = world.devices(count)
        before = [server.cpu() for server in servers]
        before_database = cpu_with_children(database.pid) if database else 0.0
        figures.rates.append(asyncio.run(at_a_time(devices, world.port)))
        used = [server.cpu() - since for server, since in zip(servers, before, strict=True)]
        figures.cpu["registrar and masa"].append(sum(used) / count * 1000)
        for server, seconds in zip(servers, used, strict=True):
            figures.cpu[server.name].append(seconds / count * 1000)
            figures.rss[server.name].append(server.rss())
        if database:
            figures.cpu["postgresql"].append(
                (cpu_with_children(database.pid) - before_database) / count * 1000
            )
    return figures


def tell(figures: Figures, database: str, devices: int) -> None:
    """Report what was measured."""
    fields: dict[str, str | int] = {"database": database, "devices": devices}
    report("brski", "enrolments_per_s", figures.rates, "1/s", "higher", fields=fields)
    for name, values in figures.cpu.items():
        report("brski", "cpu_ms", values, "ms/enrolment", "lower", fields=fields | {"process": name})
    for name, values in figures.latency.items():
        report("brski", "latency_ms", values, "ms", "lower", fields=fields | {"step": name})
    for name, values in figures.rss.items():
        report("brski", "rss_mib", values, "MiB", "lower", fields=fields | {"process": name})
    cpu = statistics.median(figures.cpu["registrar and masa"])
    rate = statistics.median(figures.rates)
    print(f"{database}, {devices} devices: {rate:.1f}/s, {cpu:.1f} ms of CPU", file=sys.stderr)


@contextmanager
def worlds(postgresql: Cluster | None) -> Iterator[World]:
    """A registrar and a MASA that are new."""
    with tempfile.TemporaryDirectory() as folder:
        urls = () if postgresql is None else tuple(map(postgresql.new_database, ("registrar", "masa")))
        world = World(Path(folder), *urls)
        try:
            yield world
        finally:
            world.close()


def bench(postgresql: Cluster | None, arguments: argparse.Namespace, core: int) -> None:
    """Measure with one kind of database, with few devices in it and with many."""
    name = "sqlite" if postgresql is None else "postgresql"
    with worlds(postgresql) as world:
        for number in arguments.devices:
            there = max(world.numbers())
            with world.running(core) as servers:
                asyncio.run(at_a_time(world.devices(WARM_UP), world.port))
                if number > there + WARM_UP:
                    begin = time.perf_counter()
                    world.multiply(number - there - WARM_UP)
                    print(f"{name}: filled in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
                figures = measure(
                    world, servers, postgresql, arguments.runs, arguments.count, arguments.singles
                )
            tell(figures, name, number)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--count", type=int, default=100, help="enrolments in a run, several at a time")
    parser.add_argument("--singles", type=int, default=15, help="enrolments in a run, one at a time")
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES, help="how many there are before")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="only this one")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    # PostgreSQL comes to be on the core of the devices: in earnest it has a machine of its own.
    os.sched_setaffinity(0, {cores[-1]})
    if len(cores) == 1:
        print("one core only: the devices take from it what the servers then lack", file=sys.stderr)
    if arguments.database != "postgresql":
        bench(None, arguments, cores[0])
    if arguments.database != "sqlite":
        try:
            with cluster() as postgresql:
                bench(postgresql, arguments, cores[0])
        except NotHereError as error:
            print(f"no figures with PostgreSQL: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
