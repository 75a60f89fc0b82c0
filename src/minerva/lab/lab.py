"""A lab: its directory, its wires, its nodes, from nothing to reachable and back to nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from minerva.core.errors import MinervaError, UsageError
from minerva.lab import nodes as lab_nodes
from minerva.lab.network import Network, make_room_for_neighbours, namespace_prefix
from minerva.lab.nodes import LabNode
from minerva.lab.ping import Pinger
from minerva.lab.topology import Segment, Topology
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from minerva.linux.pcap import Capture, PcapngWriter
from minerva.pki.ca import CertificateAuthority, write_node_directory

DOMAIN = "lab.example"
PHASES = ("link_ready", "neighbour_heard", "ike_established", "routed", "reachable")

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
_POLL_SECONDS = 0.2


class LabError(MinervaError):
    """The lab cannot be built, or not all of it came up."""


def base_directory() -> Path:
    """Return where labs keep their files: ``MINERVA_LAB_DIR`` or ``/run/minerva-lab``."""
    return Path(os.environ.get("MINERVA_LAB_DIR", "/run/minerva-lab"))


@dataclass(frozen=True)
class Record:
    """What a later command needs to know of a standing lab (``lab.json``)."""

    name: str
    topology: str
    nodes: dict[str, int]  # process ids

    @classmethod
    def load(cls, name: str) -> Record:
        """Return the record of the lab called ``name``. Raises UsageError."""
        try:
            return cls(**json.loads((base_directory() / name / "lab.json").read_text()))
        except FileNotFoundError:
            known = ", ".join(standing()) or "none"
            raise UsageError(f"there is no lab called {name!r} (standing: {known})") from None
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"the record of lab {name!r} is damaged ({error}): 'minerva lab down {name}'"
            ) from error


def standing() -> list[str]:
    """Return the names of all labs that have a directory."""
    base = base_directory()
    return sorted(path.name for path in base.iterdir()) if base.is_dir() else []


class Lab:
    """One lab. Use :meth:`build`, :meth:`start`, :meth:`reach_all`, and :meth:`close` in any case."""

    def __init__(self, topology: Topology, name: str) -> None:
        """Prepare a lab called ``name``. Raises UsageError for a name that cannot be used or is taken."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"a lab cannot be called {name!r}: use up to 20 of a-z, 0-9 and -")
        self.topology = topology
        self.name = name
        self.directory = base_directory() / name
        self.network = Network(name, topology)
        self.nodes: dict[str, LabNode] = {}
        self.addresses: dict[str, IPv6Address] = {}
        self.pinger = Pinger()
        self.milestones: dict[str, dict[str, float]] = {}  # by node: seconds since its start, by phase
        self._captures: list[Capture] = []
        self._writers: list[PcapngWriter] = []
        self._key_log: Path | None = None
        try:
            self.directory.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise UsageError(
                f"there already is a lab called {name!r}: 'minerva lab down {name}' removes it, "
                "or choose another name with --name"
            ) from None

    # --- building --------------------------------------------------------------------------------------

    async def build(self, *, key_log: bool = False) -> None:
        """Make the wires and issue the identities. Raises LinuxError, UsageError, PkiError."""
        make_room_for_neighbours(len(self.topology.nodes))
        await self.network.build()
        authority = CertificateAuthority.create(DOMAIN, self.directory / "ca")
        self._key_log = self.directory / "keys" if key_log else None
        for node in self.topology.nodes:
            directory = self.directory / "nodes" / node.name
            log_to = self._key_log / node.name if self._key_log else None
            self.nodes[node.name] = LabNode.create(node, directory, log_to)
            issued = authority.issue()
            write_node_directory(directory / "state", issued)
            assert issued.address is not None
            self.addresses[node.name] = issued.address.with_v(1).address
            await asyncio.sleep(0)

    def capture(self, directory: Path) -> None:
        """Write what passes on every segment to one file each in ``directory``. Raises UsageError."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for segment in self.topology.segments:
                writer = PcapngWriter((directory / f"{segment.name}.pcap").open("wb"))
                self._writers.append(writer)
                for where, interface, incoming_only in self.network.capture_points(segment):
                    with where.entered():
                        capture = Capture(interface, writer, incoming_only=incoming_only)
                    self._captures.append(capture)
                    asyncio.get_running_loop().add_reader(capture.fileno(), capture.drain)
        except OSError as error:
            raise UsageError(f"cannot write captures to {directory}: {error.strerror}") from error

    # --- running ---------------------------------------------------------------------------------------

    def start(self, *, follow_us: bool) -> None:
        """Start all nodes; with ``follow_us`` they end when this process does."""
        for name, node in self.nodes.items():
            node.start(self.network.hosts[name], follow_us=follow_us)
        pids = {name: node.process.pid for name, node in self.nodes.items() if node.process is not None}
        record = Record(self.name, self.topology.name, pids)
        (self.directory / "lab.json").write_text(json.dumps(asdict(record)))

    @property
    def first_start(self) -> float:
        """When the first node was started, in monotonic seconds."""
        return min(node.started for node in self.nodes.values())

    async def reach_all(self, timeout: float, progress: Callable[[Lab], None]) -> bool:
        """Wait until every node reaches every other, at most ``timeout`` seconds; return whether they do.

        Raises LabError when a node ends.
        """
        deadline = time.monotonic() + timeout
        joining = asyncio.create_task(self._join_when_ready())
        try:
            return await self.pinger.run(
                set(self.nodes), deadline, lambda: self._check_alive(progress, joining)
            )
        finally:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            await self._poll()

    def _check_alive(self, progress: Callable[[Lab], None], joining: asyncio.Task[None]) -> None:
        for name, node in self.nodes.items():
            if node.process is not None and node.process.poll() is not None:
                raise LabError(f"node {name} ended: {node.last_words()}")
        if joining.done():
            joining.result()
        progress(self)

    async def _join_when_ready(self) -> None:
        while True:
            await self._poll()
            for name in set(self.nodes) - self.pinger.nodes:
                if self.milestones.get(name, {}).get("acp0") is not None:
                    self.pinger.add(name, self.network.hosts[name], self.addresses[name])
            if self.pinger.nodes == set(self.nodes) and all(
                "routed" in self.milestones.get(name, {}) for name in self.nodes
            ):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _poll(self) -> None:
        """Ask the nodes for their milestones."""
        for name, node in self.nodes.items():
            answer = node.ask("milestones")
            if answer is not None:
                offset = answer["started"] - node.started
                self.milestones[name] = {
                    phase: seconds + offset for phase, seconds in answer["milestones"].items()
                }
            await asyncio.sleep(0)
        for (name, _), (when, _) in sorted(self.pinger.reached.items(), key=lambda item: item[1]):
            self.milestones.setdefault(name, {}).setdefault("reachable", when - self.nodes[name].started)

    async def cut(self, segment: Segment, timeout: float, progress: Callable[[Lab], None]) -> float | None:
        """Cut a link; return the seconds until all pairs reach each other again, ``None`` if they do not."""
        self.pinger.start_over()
        begun = time.monotonic()
        await self.network.cut(segment)
        if not await self.reach_all(timeout, progress):
            return None
        return max(when for when, _ in self.pinger.reached.values()) - begun

    def status(self) -> dict[str, dict[str, Any]]:
        """Return every node's own status; a node that does not answer has none."""
        return {name: node.ask("status") or {} for name, node in self.nodes.items()}

    # --- the end ---------------------------------------------------------------------------------------

    def _save_keys(self, directory: Path) -> None:
        """Put a Wireshark profile with all session keys beside the captures."""
        profile = directory / "wireshark"
        profile.mkdir(parents=True, exist_ok=True)
        for table in ("ikev2_decryption_table", "esp_sa"):
            lines: dict[str, None] = {}  # both ends tell; once is enough
            for file in sorted(self._key_log.glob(f"*/{table}")) if self._key_log else ():
                lines.update(dict.fromkeys(file.read_text().splitlines()))
            (profile / table).write_text("".join(f"{line}\n" for line in lines))
        (profile / "preferences").write_text("esp.enable_encryption_decode: TRUE\n")

    def release(self) -> None:
        """Let go of the nodes, which go on running (``minerva lab up``)."""
        self.pinger.close()

    async def close(self, pcap: Path | None = None) -> None:
        """End the nodes and remove everything; captures go on until the last node is gone."""
        self.pinger.close()
        await asyncio.to_thread(lab_nodes.stop, self.nodes.values(), [])
        with ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)
            for capture in self._captures:
                asyncio.get_running_loop().remove_reader(capture.fileno())
                stack.callback(capture.close)
                while capture.drain():
                    pass
        if pcap is not None and self._key_log is not None:
            self._save_keys(pcap)
        for node in self.nodes.values():
            lab_nodes.remove_leftovers(node.directory)
        await self.network.close(delete=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def down(name: str) -> None:
    """End and remove the standing lab called ``name``, or what a crash left of it. Raises UsageError."""
    directory = base_directory() / name
    prefix = namespace_prefix(name)
    if not directory.is_dir() and not namespace.names(prefix):
        Record.load(name)
    if (directory / "lab.json").is_file():
        lab_nodes.stop((), Record.load(name).nodes.values())
    for node in sorted((directory / "nodes").iterdir()) if (directory / "nodes").is_dir() else ():
        lab_nodes.remove_leftovers(node)
    for left in namespace.names(prefix):
        namespace.delete_name(left)
    shutil.rmtree(directory, ignore_errors=True)


def open_node(lab: str, target: str) -> Namespace:
    """Return the namespace that ``target`` (``NODE[:host|acp|link:PORT]``) names in a standing lab.

    Raises UsageError.
    """
    record = Record.load(lab)
    node, _, where = target.partition(":")
    if node not in record.nodes:
        raise UsageError(f"lab {lab!r} has no node {node!r}; it has {', '.join(record.nodes)}")
    if where in ("", "host"):
        return Namespace(f"{namespace_prefix(lab)}{node}")
    running = LabNode(node, base_directory() / lab / "nodes" / node)
    return node_namespace(running.ask("status"), where, f"node {node}")


def node_namespace(status: dict[str, Any] | None, where: str, whose: str) -> Namespace:
    """Return the namespace ``acp`` or ``link:PORT`` of the node with ``status``. Raises UsageError."""
    if status is None:
        raise UsageError(f"{whose} does not answer")
    spaces = {f"link:{port['name']}": port.get("namespace") for port in status["ports"]}
    spaces["acp"] = status["acp0"]["namespace"]
    name = spaces.get(where)
    if name is None:
        there = ", ".join(sorted(key for key, value in spaces.items() if value))
        raise UsageError(f"{whose} has no namespace {where!r}; it has host, {there}")
    return Namespace(name)
