"""Peers that do not belong here, made of the cores that a node is made of, and how a node treats them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from minerva.adjacency.responder import ANSWERS_PER_MINUTE
from minerva.pki.address import AcpAddress
from minerva.pki.ca import CertificateAuthority, Issued
from minerva.pki.errors import Rule
from minerva.pki.identity import Identity
from minerva.pki.keys import generate_key
from minerva.pki.node_name import AddressField
from tests.lab.attacker import Peer, StandingLab, soon, standing_lab
from tests.lab.conftest import minerva

pytestmark = pytest.mark.root

ATTEMPTS = 15

LATE = timedelta(seconds=1.5)
"""How long after the end of a certificate its owner may still be connected."""


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab stands for the whole module, and looks itself whether something of it stays."""


@dataclass
class Scene:
    """A LAN of two nodes, with room for more on it, and what is needed to make identities."""

    lab: StandingLab
    authority: CertificateAuthority
    stranger: CertificateAuthority
    nodes: dict[str, IPv6Address]  # link-local addresses
    attached: int = 0

    def peer(self, issued: Issued, key: PrivateKeyTypes | None = None) -> Peer:
        """Return a peer with its own wire into the LAN, to be started; ``key`` is another than its own."""
        self.attached += 1
        wire = self.lab.attacker(f"peer{self.attached}", "lan1", f"x{self.attached}", bridge=True)
        # An identity without an address is none to a node; this one tells another's.
        address = issued.address or AcpAddress(IPv6Address(self.lab.status("n1")["node"]["address"]))
        identity = Identity(issued.certificate, issued.chain, issued.anchors, issued.node_name, address)
        private = key or issued.private_key
        assert private is not None
        return Peer(wire, identity, private)

    def neighbour(self, node: str, peer: Peer) -> dict[str, Any]:
        """Return what a node says of a peer; nothing if it has not heard it."""
        found = self.lab.status(node)["neighbours"]
        return next((item for item in found if item["address"] == str(peer.wire.address)), {})

    def lets_in(self, node: str, peer: Peer) -> bool:
        """Return whether a node has a channel to a peer."""
        return any(item["peer"] == str(peer.wire.address) for item in self.lab.status(node)["channels"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene."""
    with standing_lab("lan:2", "intruders", tmp_path_factory.mktemp("labs")) as lab:
        authority = CertificateAuthority.open(lab.directory / "ca")
        stranger = CertificateAuthority.create(authority.domain, tmp_path_factory.mktemp("stranger") / "ca")
        nodes = {node: IPv6Address(lab.port(node)["link_local"]) for node in ("n1", "n2")}
        yield Scene(lab, authority, stranger, nodes)


def other_domain(authority: CertificateAuthority) -> Issued:
    """Return an identity of another domain, from a CA that signs for both."""
    elsewhere = CertificateAuthority.open(authority.directory)
    elsewhere.domain = "other.example"
    return elsewhere.issue()


INTRUDERS: dict[str, tuple[Callable[[Scene], Peer], Rule, str]] = {
    "another CA": (
        lambda scene: scene.peer(scene.stranger.issue()),
        Rule.PATH,
        "",
    ),
    "another domain": (
        lambda scene: scene.peer(other_domain(scene.authority)),
        Rule.DOMAIN,
        "other.example",
    ),
    "expired": (
        lambda scene: scene.peer(
            scene.authority.issue(lifetime=timedelta(hours=1), now=datetime.now(UTC) - timedelta(hours=2))
        ),
        Rule.PATH,
        "expired",
    ),
    "no address": (
        lambda scene: scene.peer(scene.authority.issue(address=AddressField.OMITTED)),
        Rule.ADDRESS,
        "address",
    ),
    "a certificate of somebody else's": (
        lambda scene: scene.peer(scene.authority.issue(), generate_key("p256")),
        Rule.PROOF_OF_POSSESSION,
        "does not own the key",
    ),
}
"""By what is wrong with them: how to make one, the rule that it breaks, and a word of what status says."""


def test_nobody_gets_in_who_does_not_belong(scene: Scene) -> None:
    """All five at once, each announcing itself, answering and initiating; and one more who does belong.

    covers: 6.2.3-1, 6.7-1, 6.8.2-1
    """

    async def work() -> None:
        intruders = {name: make(scene) for name, (make, _, _) in INTRUDERS.items()}
        member = scene.peer(scene.authority.issue())
        with ExitStack() as stack:
            for peer in (*intruders.values(), member):
                peer.start()
                stack.callback(peer.close)
                for address in scene.nodes.values():
                    peer.initiate(address)
            # The control: what keeps the others out is not that such a peer cannot get in.
            for node in scene.nodes:
                await soon(lambda node=node: scene.lets_in(node, member), f"{node} lets the member in")
            for name, (_, rule, word) in INTRUDERS.items():
                for node in scene.nodes:
                    await soon(
                        lambda node=node, name=name: (
                            scene.neighbour(node, intruders[name]).get("failure_rule") is not None
                        ),
                        f"{node} says which rule {name} breaks",
                    )
                    said = scene.neighbour(node, intruders[name])
                    assert said["failure_rule"] == rule, f"{name}: {said}"
                    assert word in said["failure"], f"{name}: {said}"
                    assert said["state"] != "connected"
                    assert not scene.lets_in(node, intruders[name])
            result = minerva("status", "--json", "--run-dir", scene.lab.run_dir("n1"))
            shown = {item["address"]: item for item in json.loads(result.stdout)["neighbours"]}
            text = minerva("status", "--run-dir", scene.lab.run_dir("n1")).stdout
            log = (scene.lab.run_dir("n1").parent / "log").read_text()
            for name, (_, rule, word) in INTRUDERS.items():
                address = str(intruders[name].wire.address)
                assert shown[address]["failure_rule"] == rule
                assert word in text
                assert f"no channel with {address}" in log

    asyncio.run(work())


@pytest.mark.parametrize("at_once", [False, True], ids=["one after the other", "all at once"])
def test_who_keeps_trying_is_answered_only_so_often(scene: Scene, at_once: bool) -> None:
    """``ANSWERS_PER_MINUTE`` it is, whether a peer waits for a refusal before it tries again or not."""

    async def work() -> None:
        intruder, target = scene.peer(scene.stranger.issue()), scene.nodes["n1"]
        # Without a word about itself, so that all that is answered was begun here.
        intruder.start(announce=False)
        try:
            for _ in range(ATTEMPTS):
                intruder.initiate(target)
                if not at_once:
                    await soon(lambda: intruder.failed, "the first attempt is refused")
                    await asyncio.sleep(0.1)
            await soon(lambda: intruder.failed, "an attempt is refused")
            # Long enough for what is sent again when there is no answer.
            await asyncio.sleep(2.0)
            assert 1 <= len(intruder.answers[target]) <= ANSWERS_PER_MINUTE
            assert scene.lab.status("n1")["counters"]["abutment"]["attempts_not_answered"] > 0
        finally:
            intruder.close()

    asyncio.run(work())


def test_a_peer_whose_certificate_expires_is_cut_at_that_moment(scene: Scene) -> None:
    """
    covers: 6.8.2-7
    """

    async def work() -> None:
        issued = scene.authority.issue(lifetime=timedelta(seconds=8))
        peer, expires = scene.peer(issued), issued.certificate.not_valid_after_utc
        peer.start()
        try:
            peer.initiate(scene.nodes["n1"])
            await soon(lambda: scene.lets_in("n1", peer), "the peer is in")
            assert peer.closed == []
            await soon(lambda: peer.closed or datetime.now(UTC) > expires + LATE, "the peer is cut off")
            assert timedelta(0) <= datetime.now(UTC) - expires < LATE
            await soon(lambda: not scene.lets_in("n1", peer), "the channel is gone")
            assert "expired" in scene.neighbour("n1", peer)["failure"]
            # A path is checked by the whole second, notAfter included.
            await asyncio.sleep(
                max(0.0, (expires + timedelta(seconds=1.1) - datetime.now(UTC)).total_seconds())
            )
            peer.initiate(scene.nodes["n1"])
            await soon(
                lambda: scene.neighbour("n1", peer).get("failure_rule") == Rule.PATH, "it is not let in again"
            )
            assert not scene.lets_in("n1", peer)
        finally:
            peer.close()

    asyncio.run(work())
