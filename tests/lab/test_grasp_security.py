"""GRASP and those who have no business with it: strangers, members that pretend, neighbours that flood."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from minerva.asa import Objective
from minerva.asa.inventory import INVENTORY, question
from minerva.grasp.constants import GRASP_LISTEN_PORT
from minerva.grasp.flooding import INITIATOR_BURST, INITIATOR_RATE, LINK_BURST, LINK_RATE
from minerva.grasp.messages import (
    Flood,
    FloodEntry,
    Invalid,
    RequestNegotiation,
    RequestSynchronization,
    Synch,
    decode_first,
)
from minerva.pki.ca import CertificateAuthority, write_node_directory
from tests.lab.attacker import StandingLab, standing_lab, until
from tests.lab.grasp import F_NEG, F_SYNCH, address, asas, eventually, links_ready, until_ready

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    """Five nodes in a line, whose neighbours are all connected."""
    with standing_lab("line:5", "grasp-security", tmp_path_factory.mktemp("labs")) as lab:
        until_ready(lab)
        yield lab


# --- who may take part -------------------------------------------------------------------------------------


def tls_client(
    lab: StandingLab,
    node: str,
    target: IPv6Address,
    identity: Path | None,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLSocket:
    """Return Python's own TLS client, in the ACP namespace of ``node``, connected to another node."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    with lab.inside(node).entered():
        source = (str(address(lab, node)), 0)
        plain = socket.create_connection((str(target), GRASP_LISTEN_PORT), 5, source)
    return context.wrap_socket(plain)


def converse(connection: socket.socket, *messages: bytes) -> list[Any]:
    """Send messages and return all that comes back until the end."""
    for message in messages:
        connection.sendall(message)
    connection.settimeout(5)
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := connection.recv(4096):
            data += piece
    answers = []
    while data:
        answer, end = decode_first(data)
        answers.append(answer)
        data = data[end:]
    return answers


ASK_INVENTORY = RequestSynchronization(0x5EED, question()).encode()


def failures(lab: StandingLab, node: str) -> int:
    """Return how many have failed to authenticate themselves at a node."""
    return int(lab.status(node)["grasp"]["wire_counters"].get("tls-failures", 0))


def log_of(lab: StandingLab, node: str) -> str:
    """Return the log of a node."""
    return (lab.directory / "nodes" / node / "log").read_text()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_stranger_that_is_a_member_is_answered(lab: StandingLab, version: ssl.TLSVersion) -> None:
    """Python's own TLS and bytes that are not from our engine: M_REQ_SYN is answered with M_SYNCH.

    covers: 6.9.2-4, 6.9.2-7, 6.1-2, 6.2.1-9, G2.5.6.1-1
    """
    with tls_client(lab, "n2", address(lab, "n4"), lab.state_dir("n2"), version) as connection:
        assert connection.version() == version.name.replace("_", ".")
        (answer,) = converse(connection, ASK_INVENTORY)
    assert isinstance(answer, Synch)
    assert answer.session_id == 0x5EED
    assert answer.objective.name == INVENTORY
    assert answer.objective.value["name"] == "n4"


def test_nonsense_is_answered_with_m_invalid_and_hurts_nobody(lab: StandingLab) -> None:
    """
    covers: G2.8.2-2, G2.8.12-1, G2.8.6-2
    """
    unknown_type = bytes.fromhex("83185815f6")  # [88, 21, null]
    with tls_client(lab, "n2", address(lab, "n4"), lab.state_dir("n2")) as connection:
        (first, answer) = converse(connection, unknown_type, ASK_INVENTORY)
    assert isinstance(first, Invalid)
    assert first.session_id == 21
    assert isinstance(answer, Synch)
    nobody_listens = RequestNegotiation(7, Objective("EX0", F_NEG, 6, 1)).encode()
    with tls_client(lab, "n2", address(lab, "n4"), lab.state_dir("n2")) as connection:
        began = time.monotonic()
        assert converse(connection, nobody_listens) == []
        assert time.monotonic() - began < 2, "it is closed at once"


def make_identity(directory: Path, kind: str) -> Path:
    """Make an identity that is not to be believed."""
    authority = CertificateAuthority.create(
        "acp.example.com" if kind != "domain" else "other.example", directory / "ca"
    )
    issued = authority.issue(lifetime=timedelta(days=1))
    write_node_directory(directory / "node", issued)
    return directory / "node"


def identity_of(authority: CertificateAuthority, directory: Path, **options: Any) -> Path:
    """Make an identity and return its directory."""
    write_node_directory(directory, authority.issue(**options))
    return directory


def test_whoever_is_not_a_member_is_refused(lab: StandingLab, tmp_path: Path) -> None:
    """
    covers: 6.9.2-4, G2.5.1-1
    """
    ours = CertificateAuthority.open(lab.directory / "ca")
    foreign = CertificateAuthority.create(ours.domain, tmp_path / "foreign")
    day = timedelta(days=1)
    identities = {
        "no certificate": None,
        "a CA that is not ours": identity_of(foreign, tmp_path / "a"),
        "expired": identity_of(ours, tmp_path / "b", lifetime=day, now=datetime.now(UTC) - 2 * day),
    }
    target = address(lab, "n4")
    for number, (what, identity) in enumerate(identities.items(), failures(lab, "n4") + 1):
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            tls_client(lab, "n2", target, identity) as connection,
        ):
            assert converse(connection, ASK_INVENTORY) == [], what
        until(lambda number=number: failures(lab, "n4") == number, f"{what} is counted")
    log = log_of(lab, "n4")
    assert "peer did not return a certificate" in log
    assert log.count("rule 2") >= 2 or log.count("membership") >= 2, log[-2000:]


def test_a_member_cannot_speak_for_another(lab: StandingLab) -> None:
    """The certificate must be for the address that the connection comes from."""
    before = failures(lab, "n4")
    with tls_client(lab, "n2", address(lab, "n4"), lab.state_dir("n3")) as connection:
        assert converse(connection, ASK_INVENTORY) == []
    until(lambda: failures(lab, "n4") == before + 1, "the failure is counted")
    assert f"{address(lab, 'n2')} was wanted" in log_of(lab, "n4")


def test_plain_text_to_the_acp_address_is_refused(lab: StandingLab) -> None:
    before = failures(lab, "n4")
    with lab.inside("n2").entered():
        connection = socket.create_connection((str(address(lab, "n4")), GRASP_LISTEN_PORT), 5)
    with connection:
        connection.sendall(ASK_INVENTORY)
        connection.settimeout(5)
        assert decode_nothing(connection)
    until(lambda: failures(lab, "n4") == before + 1, "the failure is counted")


def decode_nothing(connection: socket.socket) -> bool:
    """Return whether nothing that is GRASP comes before the end."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(4096):
            data += piece
    return b"inventory" not in data


def test_the_host_is_no_channel(lab: StandingLab) -> None:
    """Plain GRASP from the host's side of acp0 is refused, although its address is link-local there."""
    flood = Flood(9, IPv6Address("fd00::1"), 60_000, (FloodEntry(Objective("evil", F_SYNCH, 6, 1)),))
    with lab.host("n2").entered():
        index = socket.if_nametoindex("acp0")
        plain = socket.socket(socket.AF_INET6)
    plain.settimeout(3)
    with plain, contextlib.suppress(TimeoutError, ConnectionError):
        plain.connect(("fe80::1", GRASP_LISTEN_PORT, 0, index))
        plain.sendall(flood.encode())
        assert plain.recv(100) == b""

    async def main() -> None:
        async with asas(lab, "n2") as (asa,):
            assert await asa.get_flood(Objective("evil", F_SYNCH)) == []

    asyncio.run(main())


# --- abuse -------------------------------------------------------------------------------------------------


def link_connection(lab: StandingLab, node: str, peer: str) -> socket.socket:
    """Return a plain connection to a neighbour as the process of ``node`` would open it."""
    channel = lab.channel(node, peer)
    theirs = lab.channel(peer, node)
    with lab.inside(node).entered():
        index = socket.if_nametoindex(channel["interface"])
        connection = socket.socket(socket.AF_INET6)
        connection.connect((theirs["inner_link_local"], GRASP_LISTEN_PORT, 0, index))
    return connection


def private_kib(pid: int) -> int:
    """Return the private memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def flood_at(connection: socket.socket, seconds: float, initiators: Callable[[int], IPv6Address]) -> int:
    """Send 1,000 floods a second for some time; return how many they were."""
    sent = 0
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        while sent < passed * 1000:
            objective = Objective(f"attack:{sent % 5000}", F_SYNCH, 10, "x" * 100)
            flood = Flood(sent, initiators(sent), 3_600_000, (FloodEntry(objective),))
            connection.sendall(flood.encode())
            sent += 1
        time.sleep(0.005)
    return sent


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.soak)])
@pytest.mark.parametrize("who", ["one initiator", "many initiators"])
def test_a_thousand_floods_a_second(lab: StandingLab, who: str, seconds: int) -> None:
    """A neighbour that has been taken over floods n3, which relays no more than its limits allow.

    covers: G2.5.6.2-5
    """
    pid = lab.processes("n3")["plane"]["pid"]
    base = int(IPv6Address("fdaa::"))
    spread = 1 if who == "one initiator" else 100_000
    before = lab.status("n3")["grasp"]["counters"]
    memory = private_kib(pid)

    async def others_are_served(stop: asyncio.Event) -> list[float]:
        """Meanwhile, floods from the other side of n3 arrive at once."""
        seconds = []
        async with asas(lab, "n5", "n3") as (far, middle):
            objective = Objective(f"honest:{time.monotonic_ns()}", F_SYNCH, 6, 0)
            await far.register_objective(objective)
            while not stop.is_set():
                value = time.monotonic_ns()
                await far.flood(60_000, Objective(objective.name, F_SYNCH, 6, value))

                async def arrived(value: int = value) -> bool:
                    found = await middle.get_flood(objective)
                    return bool(found) and found[0].objective.value == value

                seconds.append((await eventually(arrived))[1])
                await asyncio.sleep(1)
        return seconds

    async def main() -> tuple[int, list[float]]:
        stop = asyncio.Event()
        serving = asyncio.create_task(others_are_served(stop))
        with link_connection(lab, "n2", "n3") as connection:
            attack = asyncio.to_thread(
                flood_at, connection, seconds, lambda number: IPv6Address(base + number % spread)
            )
            sent = await attack
        stop.set()
        return sent, await serving

    sent, served = asyncio.run(main())
    assert sent >= seconds * 900
    after = lab.status("n3")["grasp"]["counters"]
    taken = after["floods-received"] - before.get("floods-received", 0)
    limited = after["floods-limited"] - before.get("floods-limited", 0)
    burst, rate = (LINK_BURST, LINK_RATE) if spread > 1 else (INITIATOR_BURST, INITIATOR_RATE)
    # The machine may be slow to begin and to end; an attack that is not limited is far above.
    assert taken < (burst + rate * seconds) * 1.3 + 50
    assert limited > sent / 2
    assert lab.processes("n3")["plane"]["pid"] == pid
    assert max(served) < 1.0, served
    # What the cache may hold is bounded, and so is what a process that was fed with it has grown by.
    assert private_kib(pid) - memory < 40 << 10
    time.sleep(1)
    assert links_ready(lab, "n3")


@pytest.mark.parametrize("what", [b"\x00", RequestSynchronization(1, Objective("x", F_SYNCH)).encode()])
def test_neither_routing_nor_status_waits_for_who_has_much_to_say(lab: StandingLab, what: bytes) -> None:
    """Items that cost the sender a byte each, or refused requests, on several connections without an end."""
    stop = time.monotonic() + 5
    slowest = 0.0

    def shout() -> None:
        while time.monotonic() < stop:
            try:
                with link_connection(lab, "n2", "n3") as connection:
                    connection.settimeout(1)
                    while time.monotonic() < stop:
                        connection.sendall(what * 10_000)
            except OSError:  # reset, or not read for a while: once more
                continue

    threads = [threading.Thread(target=shout) for _ in range(3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        began = time.monotonic()
        assert lab.status("n3")["rpl"] is not None
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert slowest < 1.0
    until(lambda: links_ready(lab, "n3"), "the honest connection is there")


def test_garbage_on_a_link_ends_that_connection_only(lab: StandingLab) -> None:
    def broken() -> bool:
        with contextlib.suppress(OSError), link_connection(lab, "n2", "n3") as connection:
            connection.settimeout(5)
            connection.sendall(b"\xff" * 100)
            assert connection.recv(100) == b""
        return "broken-streams" in lab.status("n3")["grasp"]["counters"]

    # Connections that others have left there may take all places for a moment.
    until(broken, "the stream is given up")
    assert links_ready(lab, "n3")
