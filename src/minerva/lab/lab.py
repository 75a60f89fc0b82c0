"""A lab: its directory, its wires, its nodes, from nothing to reachable and back to nothing."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from minerva.connect import control
from minerva.core.errors import MinervaError, UsageError
from minerva.lab import nodes as lab_nodes
from minerva.lab.network import (
    Network,
    host_namespace,
    make_room_for_files,
    make_room_for_neighbours,
    namespace_prefix,
)
from minerva.lab.nodes import LabNode
from minerva.lab.ping import Pinger
from minerva.lab.topology import Segment, Topology
from minerva.lab.zero_touch import DIRECTORIES, ServiceError, ZeroTouch
from minerva.linux import namespace
from minerva.linux.namespace import Namespace
from minerva.linux.pcap import Capture, PcapngWriter
from minerva.pki.ca import CertificateAuthority, write_node_directory
from minerva.pki.files import File, write_files

DOMAIN = "lab.example"
PHASES = ("link_ready", "neighbour_heard", "ike_established", "routed", "reachable")
ZERO_TOUCH_PHASES = ("link_ready", "proxy_heard", "voucher", "enrolled", *PHASES[1:])
"""What happens to a node on its way, in order; the second one to a device that has to be enrolled first."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}", re.ASCII)
_PARTS = {"ca", "keys", "nodes", *DIRECTORIES, "masa.log", "registrar.log"}  # of a lab's directory
_MAX_SOCKET_PATH = 107  # bytes, of any Unix socket
_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 5.0


class LabError(MinervaError):
    """The lab cannot be built, or not all of it came up."""


def base_directory() -> Path:
    """Return where labs keep their files: ``MINERVA_LAB_DIR`` or ``/run/minerva-lab``."""
    return Path(os.environ.get("MINERVA_LAB_DIR", "/run/minerva-lab")).absolute()


def directory_of(lab: str) -> Path:
    """Return the directory of the lab called ``lab``. Raises UsageError for a name that none can have."""
    if not _NAME.fullmatch(lab):
        raise UsageError(f"a lab cannot be called {lab!r}: use up to 20 of a-z, 0-9 and -")
    return base_directory() / lab


def _is_lab(directory: Path) -> bool:
    """Whether it is the directory of a lab, complete or not: anything else is not ours to remove."""
    return directory.is_dir() and {path.name for path in directory.iterdir()} <= _PARTS


def standing() -> list[str]:
    """Return the names of all labs that have a directory."""
    base = base_directory()
    paths = base.iterdir() if base.is_dir() else ()
    return sorted(path.name for path in paths if _NAME.fullmatch(path.name) and _is_lab(path))


def nodes_of(lab: str) -> dict[str, LabNode]:
    """Return the nodes of the standing lab called ``lab``. Raises UsageError."""
    directory = directory_of(lab)
    if not _is_lab(directory):
        known = ", ".join(standing()) or "none"
        raise UsageError(f"there is no lab called {lab!r} (standing: {known})")
    paths = sorted((directory / "nodes").glob("*"), key=lambda path: (len(path.name), path.name))
    return {path.name: LabNode(path.name, path) for path in paths}


def channel_count(statuses: dict[str, dict[str, Any]]) -> int:
    """Return how many channels there are, each counted once, that both ends have."""
    ends: dict[frozenset[str], int] = {}
    for status in statuses.values():
        for channel in status.get("channels", []):
            key = frozenset((channel["local"], channel["peer"]))
            ends[key] = ends.get(key, 0) + 1
    return sum(1 for count in ends.values() if count == 2)


def _drain(captures: list[Capture], writer: PcapngWriter) -> None:
    """Write what is waiting on all sockets of a segment, in the order in which it passed."""
    for capture in captures:
        capture.drain(flush=False)
    writer.flush()


class Lab:
    """One lab. Use :meth:`build`, :meth:`start`, :meth:`reach_all`, and :meth:`close` in any case."""

    def __init__(
        self, topology: Topology, name: str, *, key_log: bool = False, zero_touch: bool = False
    ) -> None:
        """Prepare a lab called ``name``. Raises UsageError for a name that cannot be used or is taken.

        And for settings that no node has: whatever is wrong with what we were asked shows here. With
        ``zero_touch`` the first node is made by a registrar, which then lets in the others, that have
        nothing but what their maker gave them.
        """
        self.topology = topology
        self.name = name
        self.directory = directory_of(name)
        self.network = Network(name, topology)
        self.nodes: dict[str, LabNode] = {}
        self.addresses: dict[str, IPv6Address] = {}
        self.pinger = Pinger()
        self.milestones: dict[str, dict[str, float]] = {}  # by node: seconds since its start, by phase
        self.registrar_options: tuple[str, ...] = ()  # for its making, in a lab without touch
        self._captures: list[Capture] = []
        self._writers: list[PcapngWriter] = []
        self._key_log = self.directory / "keys" if key_log else None
        self._configs: dict[str, str] = {}
        for node in topology.nodes:
            where = f"topology {topology.name}: nodes.{node.name}"
            log_to = self._key_log / node.name if self._key_log else None
            self._configs[node.name] = lab_nodes.node_config(node, log_to, where)
            self.nodes[node.name] = LabNode(node.name, self.directory / "nodes" / node.name)
        self.zero_touch = ZeroTouch(name, self.directory, self.nodes) if zero_touch else None
        self.phases = ZERO_TOUCH_PHASES if zero_touch else PHASES
        self._make_directory()

    def _make_directory(self) -> None:
        if max(len(os.fsencode(node.control_socket)) for node in self.nodes.values()) > _MAX_SOCKET_PATH:
            raise UsageError(
                f"the path {self.directory} is too long for the sockets in it: "
                "name a shorter one with MINERVA_LAB_DIR"
            )
        try:
            if namespace.names(namespace_prefix(self.name)):
                raise FileExistsError
            self.directory.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise UsageError(
                f"there already is a lab called {self.name!r}, or what a crash left of one: "
                f"'minerva lab down {self.name}' removes it, or choose another name with --name"
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot make the directory {self.directory}: {error.strerror}; "
                "name another place for labs with MINERVA_LAB_DIR"
            ) from error

    # --- building --------------------------------------------------------------------------------------

    async def build(self) -> None:
        """Make the wires and issue the identities. Raises MinervaError, OSError."""
        make_room_for_files(self.topology)
        make_room_for_neighbours(len(self.topology.nodes))
        await self.network.build()
        for name, node in self.nodes.items():
            node.run_dir.mkdir(parents=True)
            node.config_file.write_text(self._configs[name])
            if self._key_log is not None:
                (self._key_log / name).mkdir(parents=True)
        if self.zero_touch is not None:
            await self.zero_touch.build(DOMAIN, self.network.hosts, self.registrar_options)
            return
        authority = CertificateAuthority.create(DOMAIN, self.directory / "ca")
        for name, node in self.nodes.items():
            issued = authority.issue()
            write_node_directory(node.state_dir, issued)
            assert issued.address is not None
            self.addresses[name] = issued.address.with_v(1).address
            await asyncio.sleep(0)

    def capture(self, directory: Path) -> None:
        """Write what passes on every segment to one file each in ``directory``. Raises UsageError."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for segment in self.topology.segments:
                self.network.leave_nothing_to_hardware(segment)
                writer = PcapngWriter((directory / f"{segment.name}.pcap").open("wb"))
                self._writers.append(writer)
                captures: list[Capture] = []
                for where, interface, incoming_only in self.network.capture_points(segment):
                    with where.entered():
                        capture = Capture(interface, writer, incoming_only=incoming_only)
                    captures.append(capture)
                for capture in captures:
                    asyncio.get_running_loop().add_reader(capture.fileno(), _drain, captures, writer)
                self._captures += captures
        except OSError as error:
            raise UsageError(f"cannot write captures to {directory}: {error.strerror}") from error

    # --- running ---------------------------------------------------------------------------------------

    def start(self, *, follow_us: bool) -> None:
        """Start all nodes; with ``follow_us`` they end when this process does."""
        for name, node in self.nodes.items():
            node.start(self.network.hosts[name], follow_us=follow_us)
        if self.zero_touch is not None:
            self.zero_touch.start(follow_us=follow_us)

    @property
    def first_start(self) -> float:
        """When the first node was started, in monotonic seconds."""
        return min(node.started for node in self.nodes.values())

    async def reach_all(self, timeout: float, progress: Callable[[Lab], None]) -> None:
        """Wait until every node reaches every other.

        Raises LabError when they do not within ``timeout`` seconds, or when a node ends.
        """
        deadline = time.monotonic() + timeout
        joining = asyncio.create_task(self._join_when_ready())
        try:
            reached = await self.pinger.run(
                set(self.nodes), deadline, lambda: self._check_alive(progress, joining)
            )
        finally:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
        if not reached:
            pairs = len(self.nodes) * (len(self.nodes) - 1)
            raise LabError(
                f"only {len(self.pinger.reached)} of {pairs} pairs of nodes reach each other "
                f"after {timeout:g} seconds"
            )

    def _check_alive(self, progress: Callable[[Lab], None], joining: asyncio.Task[None]) -> None:
        for name, node in self.nodes.items():
            if node.process is not None and node.process.poll() is not None:
                raise LabError(f"node {name} ended: {node.last_words()}")
        if self.zero_touch is not None:
            try:
                self.zero_touch.check_alive()
            except ServiceError as error:
                raise LabError(str(error)) from error
        if joining.done():
            joining.result()
        progress(self)

    async def _join_when_ready(self) -> None:
        while True:
            await self._poll()
            for name in set(self.nodes) - self.pinger.nodes:
                if self.milestones.get(name, {}).get("acp0") is not None and name in self.addresses:
                    with suppress(OSError):  # the kernel makes an address usable a moment after it is set
                        self.pinger.add(name, self.network.hosts[name], self.addresses[name])
            if self.pinger.nodes == set(self.nodes) and all(
                "routed" in self.milestones.get(name, {}) for name in self.nodes
            ):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _poll(self) -> None:
        """Ask the nodes for their milestones."""
        for name, answer in (await self._ask("milestones")).items():
            if answer:
                if answer["address"] is not None:
                    self.addresses[name] = IPv6Address(answer["address"])
                offset = answer["started"] - self.nodes[name].started
                # Only the first of each kind counts, so what is known stays (after a cut, "reachable").
                self.milestones[name] = {
                    phase: seconds + offset for phase, seconds in answer["milestones"].items()
                } | self.milestones.get(name, {})
        for (name, _), (when, _) in sorted(self.pinger.reached.items(), key=lambda item: item[1]):
            self.milestones.setdefault(name, {}).setdefault("reachable", when - self.nodes[name].started)

    async def _ask(self, command: str) -> dict[str, dict[str, Any]]:
        """Ask all nodes, in threads: one that hangs must not hold up the others, nor ^C."""
        answers = await asyncio.gather(
            *(asyncio.to_thread(node.ask, command) for node in self.nodes.values())
        )
        return {name: answer or {} for name, answer in zip(self.nodes, answers, strict=True)}

    async def settle(self) -> None:
        """Wait a moment for channels that nobody needed to be reached: what is there is to be counted."""
        pairs = sum(len(segment.ends) * (len(segment.ends) - 1) // 2 for segment in self.topology.segments)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while channel_count(await self.status()) < pairs and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)

    async def cut(self, segment: Segment, timeout: float, progress: Callable[[Lab], None]) -> float:
        """Cut a link; return the seconds until all pairs reach each other again.

        Raises LabError as :meth:`reach_all` does.
        """
        self.pinger.start_over()
        begun = time.monotonic()
        await self.network.cut(segment)
        await self.reach_all(timeout, progress)
        return max(when for when, _ in self.pinger.reached.values()) - begun

    async def status(self) -> dict[str, dict[str, Any]]:
        """Bring the milestones up to date; return every node's own status, empty if it does not answer."""
        await self._poll()
        return await self._ask("status")

    # --- the end ---------------------------------------------------------------------------------------

    def _save_keys(self, directory: Path) -> None:
        """Put a Wireshark profile with all session keys beside the captures."""
        profile = directory / "wireshark"
        profile.mkdir(parents=True, exist_ok=True)
        profile.chmod(0o700)
        for table in ("ikev2_decryption_table", "esp_sa"):
            lines: dict[str, None] = {}  # both ends tell; once is enough
            for file in sorted(self._key_log.glob(f"*/{table}")) if self._key_log else ():
                lines.update(dict.fromkeys(file.read_text().splitlines()))
            content = "".join(f"{line}\n" for line in lines)
            write_files(profile, File(table, content.encode(), secret=True))
        (profile / "preferences").write_text("esp.enable_encryption_decode: TRUE\n")

    def _end_captures(self) -> None:
        with ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)
            for capture in self._captures:
                asyncio.get_running_loop().remove_reader(capture.fileno())
                stack.callback(capture.close)
            while sum(capture.drain(flush=False) for capture in self._captures):
                pass

    def _keep_logs(self) -> Path | None:
        """Copy the logs of all nodes to where they stay; return where, if there are any."""
        logs = {node.name: node.log_file for node in self.nodes.values()}
        if self.zero_touch is not None:
            logs |= {service.name.lower(): service.log_file for service in self.zero_touch.services}
        logs = {name: path for name, path in logs.items() if path.is_file()}
        if not logs:
            return None
        directory = Path(tempfile.mkdtemp(prefix=f"minerva-lab-{self.name}-"))
        for name, path in logs.items():
            shutil.copyfile(path, directory / f"{name}.log")
        return directory

    async def leave(self) -> None:
        """Let go of everything, which goes on running (``minerva lab up``)."""
        self.pinger.close()
        if self.zero_touch is not None:
            self.zero_touch.close(delete=False)
        await self.network.close(delete=False)

    async def close(self, pcap: Path | None = None, *, keep_logs: bool = False) -> Path | None:
        """End the nodes and remove everything; captures go on until the last node is gone.

        With ``keep_logs`` return the directory where the nodes' logs are now. Raises OSError, UsageError.
        """
        self.pinger.close()
        try:
            await asyncio.to_thread(lab_nodes.stop_services, self.directory)
            await asyncio.to_thread(lab_nodes.stop, self.nodes.values())
            kept = self._keep_logs() if keep_logs else None
            self._end_captures()
            if pcap is not None and self._key_log is not None:
                self._save_keys(pcap)
        finally:
            for node in self.nodes.values():
                lab_nodes.remove_leftovers(node)
            if self.zero_touch is not None:
                self.zero_touch.close(delete=True)
            await self.network.close(delete=True)
            shutil.rmtree(self.directory)
        return kept


def down(name: str) -> None:
    """End and remove the standing lab called ``name``, or what a crash left of it.

    Raises UsageError, and LabError if its files cannot be removed.
    """
    directory = directory_of(name)
    spaces = namespace.names(namespace_prefix(name))
    nodes = nodes_of(name).values() if _is_lab(directory) or not spaces else ()
    lab_nodes.stop_services(directory)
    lab_nodes.stop(nodes)
    lab_nodes.stop_inside(spaces)
    for node in nodes:
        lab_nodes.remove_leftovers(node)
    for space in spaces:
        namespace.delete_name(space)
    try:
        if _is_lab(directory):
            shutil.rmtree(directory)
    except OSError as error:
        raise LabError(f"cannot remove {directory}: {error}") from error


def open_node(lab: str, target: str) -> Namespace:
    """Return the namespace that ``target`` (``NODE[:host|acp|link:PORT]``) names in a standing lab.

    Raises UsageError.
    """
    nodes = nodes_of(lab)
    node, _, where = target.partition(":")
    if node not in nodes:
        raise UsageError(f"lab {lab!r} has no node {node!r}; it has {', '.join(nodes)}")
    if where in ("", "host"):
        return Namespace(host_namespace(lab, node))
    status = nodes[node].ask("status")
    if status is None:
        raise UsageError(f"node {node} does not answer")
    return control.node_namespace(status, where, f"node {node}")
