"""Whole networks: seconds until all reach all, memory of a node, and how long its processes take to import.

Needs root. Prints JSON lines (see ``_report``).
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from _report import report
from minerva.lab.lab import base_directory, down, open_node
from minerva.lab.nodes import LabNode
from minerva.linux.icmp import EchoSocket

MINERVA = (sys.executable, "-m", "minerva")
LAB = "bench-channel"
ROUNDS = 5
PINGS, WINDOW = 5_000, 16
TOPOLOGIES = ("line:2", "line:5", "ring:6")
IMPORTS = {
    "supervisor": "minerva.connect.node, minerva.connect.supervisor",
    "zygote": "minerva.connect.zygote",
    "signer": "minerva.connect.signer",
    "abutment": "minerva.connect.abutment",
    "data_plane": "minerva.connect.data_plane",
    "plane": "minerva.connect.plane",
    "status_command": "minerva.cli.main, minerva.cli.node, minerva.cli.show, minerva.connect.control",
}


def lab(topology: str) -> dict[str, float]:
    """Run a lab and return what it found."""
    command = [*MINERVA, "lab", "run", topology, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{topology}: {result.stderr}")
    found: dict[str, float] = json.loads(result.stdout)
    print(f"{topology}: {found['seconds']} s", file=sys.stderr)
    return found


def import_seconds(modules: str) -> float:
    """Return the CPU time of a fresh interpreter that imports ``modules``, less that of one that does not."""

    def cpu(program: str) -> float:
        timed = "import time; {}; print(time.process_time())".format(program)  # noqa: UP032
        command = [sys.executable, "-c", timed]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return cpu(f"import {modules}") - cpu("pass")


def main() -> None:
    """Measure and report everything."""
    runs = {topology: [lab(topology) for _ in range(ROUNDS)] for topology in TOPOLOGIES}
    for topology, found in runs.items():
        name = topology.replace(":", "_")
        report("lab", f"seconds_{name}", [run["seconds"] for run in found], "s", "lower")
    memory = [run["mib_per_node"] for run in runs["line:5"]]
    report("lab", "mib_per_node", memory, "MiB", "lower")
    for process, modules in IMPORTS.items():
        times = [import_seconds(modules) for _ in range(ROUNDS)]
        report("import", process, times, "s", "lower")
    costs = [channel_cost() for _ in range(ROUNDS)]
    report("channel", "cpu_us_per_packet", [cost for cost, _ in costs], "us", "lower")
    report("channel", "packets_per_s", [rate for _, rate in costs], "1/s", "higher")


def channel_cost() -> tuple[float, float]:
    """Return the CPU time of both data planes per packet in microseconds, and packets per second.

    Pings of 1,200 bytes, ``WINDOW`` under way at a time; each is sealed by one end and opened by the other.
    """
    subprocess.run([*MINERVA, "lab", "up", "line:2", "--name", LAB], capture_output=True, check=True)
    try:
        nodes = [LabNode(node, base_directory() / LAB / "nodes" / node) for node in ("n1", "n2")]
        here, there = (status_of(node) for node in nodes)
        pids = [
            item["pid"]
            for state in (here, there)
            for item in state["processes"]
            if item["name"] == "data-plane"
        ]
        with open_node(LAB, "n1").entered():
            echo = EchoSocket(IPv6Address(here["acp0"]["address"]))
        cpu, packets, begun = cpu_of(pids), packets_of(nodes), time.monotonic()
        flood(echo, IPv6Address(there["acp0"]["address"]))
        seconds = time.monotonic() - begun
        echo.close()
        moved = (packets_of(nodes) - packets) / 2  # each was counted where it was sealed and where opened
        return (cpu_of(pids) - cpu) * 1e6 / moved, moved / seconds
    finally:
        down(LAB)


def flood(echo: EchoSocket, destination: IPv6Address) -> None:
    """Ping ``PINGS`` times as fast as answers come."""
    sent = answered = 0
    poll = select.poll()
    poll.register(echo.fileno(), select.POLLIN)
    while answered < PINGS:
        while sent < PINGS and sent - answered < WINDOW:
            sent += 1
            echo.send(destination, 1, sent, bytes(1152))
        if not poll.poll(1000):
            return  # the rest is lost
        answered += len(echo.receive())


def status_of(node: LabNode) -> dict[str, Any]:
    """Return the status of a node that runs."""
    state = node.ask("status")
    if state is None:
        sys.exit(f"node {node.name} does not answer")
    return state


def cpu_of(pids: list[int]) -> float:
    """Return the CPU time of processes so far, in seconds."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def packets_of(nodes: list[LabNode]) -> int:
    """Return how many packets the channels of ``nodes`` have sent and received."""
    channels = [item for node in nodes for item in status_of(node)["channels"]]
    return sum(item["packets_in"] + item["packets_out"] for item in channels)


if __name__ == "__main__":
    main()
