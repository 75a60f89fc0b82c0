"""IKEv2 with strongSwan, on a wire between two namespaces: every test has real exchanges with a charon."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT, DhGroup, EncryptionId
from minerva.ikev2.endpoint import ChildGone, ChildUp, Established, Failed, IkeRekeyed
from minerva.linux.namespace import Namespace
from minerva.pki.ca import CertificateAuthority, Issued
from tests.ikev2.nodes import B as B_ADDRESS
from tests.strangers.strongswan import INNER_A, INNER_B, Charon, Node, require_strongswan, wire

pytestmark = pytest.mark.root

GROUPS = {
    "ecp256": DhGroup.ECP_256,
    "ecp384": DhGroup.ECP_384,
    "curve25519": DhGroup.CURVE25519,
    "ecp521": DhGroup.ECP_521,
    "modp2048": DhGroup.MODP_2048,
}
COMBINATIONS = [
    ("p256", "p256", "ecp256"),
    ("p384", "rsa2048", "ecp384"),
    ("rsa2048", "p384", "curve25519"),
    ("p521", "rsa3072", "ecp521"),
    ("rsa3072", "p521", "modp2048"),
]
"""Our key, charon's key, and the group that charon has."""


@dataclass
class Domain:
    """A CA, and one certificate of each kind of key for each end, with the address as iPAddress as well.

    charon knows only that as an ID_IPV6_ADDR: it ignores the acp-node-name.
    """

    authority: CertificateAuthority
    _issued: dict[tuple[str, str], Issued] = field(default_factory=dict)

    def certificate(self, end: str, kind: str = "p256") -> Issued:
        if (end, kind) not in self._issued:
            self._issued[end, kind] = self.authority.issue(key_type=kind, with_ip_san=True)
        return self._issued[end, kind]


@dataclass
class Bench:
    """What the tests of this file share: a wire, a charon, and two domains."""

    ours: Namespace
    theirs: Namespace
    charon: Charon
    domain: Domain
    other: Domain
    rsa: Domain
    nodes: list[Node] = field(default_factory=list)

    def node(self, issued: Issued | None = None, *, anchors: tuple = (), **settings) -> Node:
        config = Config(**{"udp_encapsulation": UdpEncapsulation.FORCE} | settings)
        node = Node(self.ours, issued or self.domain.certificate("a"), config, anchors=anchors)
        self.nodes.append(node)
        return node

    def load(self, issued: Issued | None = None, group: str = "ecp256", **options) -> None:
        self.charon.load(issued or self.domain.certificate("b"), group, **options)

    def drop_all(self) -> None:
        for node in self.nodes:
            node.finish()
        self.nodes.clear()
        if "ESTABLISHED" in self.charon.sas():
            self.charon.swanctl("--terminate", "--ike", "acp", "--force", "--timeout", "1")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    require_strongswan()
    folder = tmp_path_factory.mktemp("strongswan")
    root = CertificateAuthority.create("acp.example.com", folder / "root", "p384")
    domain = Domain(root.issue_ca(folder / "issuing"))
    other = Domain(CertificateAuthority.create("other.example.com", folder / "other"))
    rsa_root = CertificateAuthority.create("acp.example.com", folder / "rsa-root", "rsa3072")
    rsa = Domain(rsa_root.issue_ca(folder / "rsa-1", "rsa3072").issue_ca(folder / "rsa-2", "rsa3072"))
    with wire(mtu=1280) as (ours, theirs):
        charon = Charon(theirs, folder)
        try:
            yield Bench(ours, theirs, charon, domain, other, rsa)
        finally:
            charon.stop()


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    try:
        yield shared
    finally:
        shared.drop_all()


def up(bench: Bench, side: str, **settings) -> Node:
    """A channel that ``side`` began, ``we`` or ``it``."""
    node = bench.node(**settings)
    assert (node.initiate() if side == "we" else node.answer(bench.charon)).initiator is (side == "we")
    return node


# --- the handshake -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("our_key", "its_key", "group"), COMBINATIONS)
@pytest.mark.parametrize("side", ["we", "it"])
def test_a_channel_comes_up(bench: Bench, side: str, our_key: str, its_key: str, group: str) -> None:
    """Whoever begins, with every kind of key at both ends, and with each group of ours.

    covers: 6.8.3.1.2-1
    covers: 6.8.3.1.2-6
    covers: 6.8.3.1.2-7
    """
    its = bench.domain.certificate("b", its_key)
    bench.load(its, group)
    node = bench.node(bench.domain.certificate("a", our_key))
    established = node.initiate() if side == "we" else node.answer(bench.charon)
    assert established.initiator is (side == "we")
    assert established.encapsulated
    assert established.member.node_name == its.node_name
    sas = bench.charon.sas()
    assert f"{established.child.spi_in:08x}" in sas
    assert f"{established.child.spi_out:08x}" in sas
    assert str(node.identity.address.address) in sas, "charon does not know us by our ACP address"


def test_chacha20_poly1305_for_the_ike_sa(bench: Bench) -> None:
    bench.load(cipher="chacha20poly1305")
    node = bench.node(keylog=True)
    node.initiate()
    assert "CHACHA20_POLY1305" in bench.charon.sas()
    assert EncryptionId.ENCR_CHACHA20_POLY1305 in {getattr(e, "algorithm", None) for e in node.events}


def test_the_group_that_charon_has_is_found_at_the_second_try(bench: Bench) -> None:
    """It answers INVALID_KE_PAYLOAD to ours."""
    bench.load(group="ecp384")
    node = bench.node(groups=(DhGroup.ECP_256, DhGroup.ECP_384))
    node.initiate()
    assert "ECP_384" in bench.charon.sas()


def test_charon_finds_the_group_that_we_have_at_the_second_try(bench: Bench) -> None:
    bench.load(group="ecp384-ecp256")
    node = bench.node(groups=(DhGroup.ECP_256,))
    node.answer(bench.charon)
    assert node.endpoint.counters["IKE_SA_INIT refused: INVALID_KE_PAYLOAD"] == 1
    assert "ECP_256" in bench.charon.sas()


def test_charon_returns_our_cookie(bench: Bench) -> None:
    """We are under load as soon as there is anybody."""
    bench.load()
    node = bench.node(cookie_threshold=0)
    node.answer(bench.charon)
    assert node.endpoint.counters["cookie demanded"] == 1


def test_we_return_the_cookie_of_charon(bench: Bench) -> None:
    """It wants one while there is an SA that somebody has begun and not gone on with."""
    bench.load()
    before = len(bench.charon.log())
    bench.node().begin_only()
    bench.drop_all()
    node = bench.node()
    node.initiate()
    assert "N(COOKIE)" in bench.charon.log()[before:]
    assert node.ports[:3] == [IKE_PORT, IKE_PORT, ENCAPSULATION_PORT]


def test_no_group_in_common(bench: Bench) -> None:
    bench.load(group="ecp384")
    node = bench.node(groups=(DhGroup.ECP_256,), error_grace=0.2)
    node.endpoint.initiate(B_ADDRESS, IKE_PORT, time.monotonic())
    node.run(lambda: node.of(Failed))
    assert "NO_PROPOSAL_CHOSEN" in node.of(Failed)[0].reason


@pytest.mark.parametrize("side", ["we", "it"])
def test_a_long_chain_passes_a_narrow_link(bench: Bench, side: str) -> None:
    """RSA with two intermediates, on a link of 1,280 bytes: both ends send fragments (RFC 7383)."""
    bench.load(bench.rsa.certificate("b", "rsa3072"))
    before = len(bench.charon.log())
    node = bench.node(bench.rsa.certificate("a", "rsa3072"))
    node.initiate() if side == "we" else node.answer(bench.charon)
    log = bench.charon.log()[before:]
    assert "received fragment #" in log
    assert "splitting IKE message" in log
    assert sum(size > 1000 for size in node.sizes) >= 3
    assert max(node.sizes) <= 1280 - 40 - 8


def test_everything_after_the_first_exchange_is_on_port_4500(bench: Bench) -> None:
    bench.load()
    node = up(bench, "we")
    assert set(node.ports) == {IKE_PORT, ENCAPSULATION_PORT}
    assert node.ports == sorted(node.ports)


@pytest.mark.parametrize("side", ["we", "it"])
def test_charon_wants_what_we_only_accept(bench: Bench, side: str) -> None:
    """Its ``encap = yes`` makes its address look translated."""
    bench.load()
    node = up(bench, side, udp_encapsulation=UdpEncapsulation.ACCEPT)
    assert all(established.encapsulated for established in node.of(Established))
    assert set(node.ports) == {IKE_PORT, ENCAPSULATION_PORT}
    assert "faking NAT situation" in bench.charon.log()


# --- refusals ------------------------------------------------------------------------------------------


def test_charon_refuses_a_stranger(bench: Bench) -> None:
    """Our certificate is of another CA: our operator is told so, and so is that of charon."""
    bench.load()
    before = len(bench.charon.log())
    node = bench.node(bench.other.certificate("a"), anchors=bench.domain.authority.anchors)
    node.endpoint.initiate(B_ADDRESS, IKE_PORT, time.monotonic())
    node.run(lambda: node.of(Failed))
    assert "AUTHENTICATION_FAILED" in node.of(Failed)[0].reason
    log = bench.charon.log()[before:]
    assert "no issuer certificate found" in log or "no trusted" in log


@pytest.mark.parametrize("side", ["we", "it"])
def test_we_refuse_a_stranger(bench: Bench, side: str) -> None:
    """charon's certificate is of a CA that we do not trust. It trusts ours."""
    bench.load(bench.other.certificate("b"), trusts=bench.domain.authority.anchors[0])
    check_refused(bench, bench.node(), side, rule=2)


@pytest.mark.parametrize("side", ["we", "it"])
def test_we_refuse_another_domain(bench: Bench, side: str) -> None:
    """charon's certificate is of a CA that we trust, but for another ACP domain."""
    bench.load(bench.other.certificate("b"), trusts=bench.domain.authority.anchors[0])
    node = bench.node(anchors=bench.other.authority.anchors)
    check_refused(bench, node, side, rule=4)


def check_refused(bench: Bench, node: Node, side: str, rule: int) -> None:
    before = len(bench.charon.log())
    if side == "we":
        node.endpoint.initiate(B_ADDRESS, IKE_PORT, time.monotonic())
    else:
        command = bench.charon.begin("--initiate", "--child", "acp", "--timeout", "5")
        assert "AUTHENTICATION_FAILED" in node.complete(command)
    node.run(lambda: node.of(Failed))
    (failed,) = node.of(Failed)
    assert failed.rule == rule, failed
    assert failed.peer is not None
    node.run(lambda: "[ N(AUTH_FAILED)" in bench.charon.log()[before:], 3)
    node.run(lambda: "ESTABLISHED" not in bench.charon.sas(), 3)


# --- data ----------------------------------------------------------------------------------------------


def udp_packet(payload: bytes, source_port: int, port: int) -> bytes:
    """An IPv6 packet from our inner address to charon's."""
    head = struct.pack("!HHHH", source_port, port, 8 + len(payload), 0)
    pseudo = INNER_A.packed + INNER_B.packed + struct.pack("!II", 8 + len(payload), 17)
    data = pseudo + head + payload + bytes(len(payload) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) % 0xFFFF
    head = head[:6] + struct.pack("!H", 0xFFFF - total or 0xFFFF)
    return struct.pack("!IHBB", 6 << 28, 8 + len(payload), 17, 64) + pseudo[:32] + head + payload


class Echo:
    """A UDP socket behind charon, which answers what comes through the channel."""

    def __init__(self, bench: Bench) -> None:
        with bench.theirs.entered():
            self.sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.sock.bind((str(INNER_B), 7))
        self.sock.setblocking(False)
        self.sent = 0

    def exchange(self, node: Node, text: bytes) -> int:
        """Send ``text`` through the channel and back; return the SPI that it was sent with."""
        seen = len(node.inner)
        # Repeated, as for a moment after a handshake libipsec may not have what it needs yet.
        for _ in range(10):
            self.sent += 1
            spi = node.send_inner(udp_packet(text, 4000, 7))
            if self._come_back(node, text, seen):
                return spi
        raise AssertionError(f"{text!r} did not come back; events: {node.events[-5:]}")

    def _come_back(self, node: Node, text: bytes, seen: int) -> bool:
        end = time.monotonic() + 0.5

        def done() -> bool:
            try:
                data, source = self.sock.recvfrom(2000)
                self.sock.sendto(data, source)
            except BlockingIOError:
                pass
            return any(packet.endswith(text) for packet in node.inner[seen:]) or time.monotonic() > end

        node.run(done)
        return any(packet.endswith(text) for packet in node.inner[seen:])


@pytest.fixture
def echo(bench: Bench) -> Iterator[Echo]:
    it = Echo(bench)
    try:
        yield it
    finally:
        it.sock.close()


@pytest.mark.parametrize("side", ["we", "it"])
def test_data_both_ways(bench: Bench, echo: Echo, side: str) -> None:
    """Through our ESP and that of libipsec, in UDP.

    covers: 6.8.3.1.1-2
    """
    bench.load()
    node = up(bench, side)
    for size in (1, 100, 1000):
        echo.exchange(node, os.urandom(size))
    assert not node.channel.counters().drops


# --- rekeying ------------------------------------------------------------------------------------------


def rekey(bench: Bench, node: Node, what: str) -> None:
    """Have one end replace a child or the IKE SA, ``our child`` for example."""
    end, kind = what.split()
    if end == "its":
        output = node.complete(bench.charon.begin("--rekey", f"--{kind}", "acp"))
        assert "rekey completed successfully" in output, output
    elif kind == "child":
        node.endpoint.rekey_child(1, time.monotonic())
    else:
        node.endpoint.rekey_ike(1, time.monotonic())


@pytest.mark.parametrize(("side", "group"), [("we", "ecp256"), ("it", "curve25519"), ("it", "ecp384")])
def test_rekeying(bench: Bench, echo: Echo, side: str, group: str) -> None:
    """Child and IKE SA, each from either end, one after the other on one channel; data goes on.

    covers: 6.8-rekey
    covers: 6.8.2-3
    """
    bench.load(group=group)
    node = up(bench, side)
    last = echo.exchange(node, b"before")
    for name in ("our child", "its ike", "its child", "our ike", "our child", "its child"):
        kind, before = (ChildUp, IkeRekeyed)["ike" in name], len(node.events)
        rekey(bench, node, name)
        node.run(lambda: [e for e in node.events[before:] if isinstance(e, kind)])  # noqa: B023
        if kind is ChildUp:
            node.run(lambda: [e for e in node.events[before:] if isinstance(e, ChildGone)])  # noqa: B023
        spi = echo.exchange(node, name.encode())
        assert (spi != last) is (kind is ChildUp), name
        last = spi
    assert not node.closed()
    sas = bench.charon.sas()
    assert sas.count("INSTALLED") == 1, sas
    assert sas.count("ESTABLISHED") == 1, sas
    assert f"{last:08x}" in sas


@pytest.mark.parametrize(
    ("ours", "its"), [("child", "child"), ("ike", "ike"), ("child", "ike"), ("ike", "child")]
)
@pytest.mark.parametrize("side", ["we", "it"])
def test_both_rekey_at_once(bench: Bench, echo: Echo, side: str, ours: str, its: str) -> None:
    """Each end has its request on its way when that of the other comes (RFC 7296 sections 2.8.1 and 2.25).

    covers: 6.8-rekey
    """
    bench.load()
    node = up(bench, side)
    before = len(bench.charon.log())
    command = bench.charon.begin("--rekey", f"--{its}", "acp")
    deadline = time.monotonic() + 5
    while "generating CREATE_CHILD_SA request" not in bench.charon.log()[before:]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    rekey(bench, node, f"our {ours}")  # before we have looked at what charon has sent
    node.complete(command)

    def settled() -> bool:
        sas = bench.charon.sas()
        return (
            sas.count("INSTALLED") == sas.count("ESTABLISHED") == len(node.channel.inbound_spis) == 1
            and (ours == "child") is bool(node.of(ChildUp))
            and (ours == "ike") is bool(node.of(IkeRekeyed))
        )

    node.run(settled, 8)
    assert not node.closed()
    # Of a child SA and its IKE SA neither is replaced now: we try again after a second, charon after many.
    assert ("N(TEMP_FAIL)" in bench.charon.log()[before:]) is (ours != its)
    spi = echo.exchange(node, b"still there")
    assert f"{spi:08x}" in bench.charon.sas()


def test_a_child_is_not_rekeyed_without_a_key_exchange(bench: Bench, echo: Echo) -> None:
    """A charon without a group for child SAs is refused that, and the channel stays as it is.

    covers: 6.8.2-3
    """
    bench.load(esp_group="")
    node = up(bench, "we")
    before = len(bench.charon.log())
    node.complete(bench.charon.begin("--rekey", "--child", "acp"))
    node.run(lambda: "N(NO_PROP)" in bench.charon.log()[before:])
    assert not node.of(ChildUp)
    assert not node.closed()
    echo.exchange(node, b"still there")


@pytest.mark.soak
def test_a_minute_with_short_lifetimes(bench: Bench, echo: Echo) -> None:
    """Both ends replace everything every few seconds, at times at once; no packet is lost.

    covers: 6.8-rekey
    """
    bench.load(lifetimes=(9, 4))
    node = up(bench, "we", ike_lifetime=9.0, child_lifetime=4.0)
    echo.exchange(node, b"the first")
    echo.sent, count, end = 0, 0, time.monotonic() + 60.0
    while time.monotonic() < end:
        echo.exchange(node, os.urandom(50))
        count += 1
        node.wait(0.02)
    assert not node.closed()
    assert len(node.of(ChildUp)) >= 12
    assert len(node.of(IkeRekeyed)) >= 5
    assert echo.sent == count, "lost packets"
    assert not node.channel.counters().drops
    assert len(node.channel.inbound_spis) <= 3
    assert bench.charon.sas().count("ESTABLISHED") <= 2


# --- the end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["we", "it"])
def test_we_delete(bench: Bench, side: str) -> None:
    bench.load()
    node = up(bench, side)
    node.endpoint.close(1, time.monotonic(), "test")
    node.run(lambda: not node.endpoint.status())
    assert bench.charon.sas() == ""


@pytest.mark.parametrize("what", ["--ike", "--child"])
def test_it_deletes(bench: Bench, what: str) -> None:
    """The IKE SA, or the one child SA, without which the other is of no use here."""
    bench.load()
    node = up(bench, "we")
    node.complete(bench.charon.begin("--terminate", what, "acp"))
    node.run(node.closed)
    (closed,) = node.closed()
    assert closed.by_peer
    node.run(lambda: bench.charon.sas() == "", 3)


def test_it_answers_when_we_ask_whether_it_lives(bench: Bench) -> None:
    """
    covers: 6.12-dpd
    """
    bench.load()
    node = up(bench, "we", liveness_interval=0.3)
    node.wait(1.0)
    assert node.endpoint.counters["liveness probe sent"] >= 2
    assert not node.endpoint.counters["request not answered"]
    assert not node.closed()


def test_we_answer_when_it_asks_whether_we_live(bench: Bench) -> None:
    """And if we do not, we are dead to it."""
    bench.load(dpd_delay=1)
    node = up(bench, "we")
    before = len(bench.charon.log())
    node.wait(1.5)
    log = bench.charon.log()[before:]
    assert log.count("sending DPD request") >= 1
    assert log.count("parsed INFORMATIONAL response") >= 1
    assert not node.closed()
    deadline = time.monotonic() + 8
    while bench.charon.sas():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_charon_restarts(bench: Bench) -> None:
    """It says that it has forgotten everything (INITIAL_CONTACT), so that what was is over at once.

    charon says so only to a peer that it expects by name.
    """
    bench.load()
    node = up(bench, "we")
    bench.charon.process.kill()
    bench.charon.process.wait()
    bench.charon.start()
    bench.load(expects=bench.domain.certificate("a"))
    node.answer(bench.charon)
    node.run(node.closed, 1.0)
    assert [(closed.sa, closed.reason) for closed in node.closed()] == [(1, "the peer restarted")]
    assert [status.sa for status in node.endpoint.status()] == [2]


def test_we_restart(bench: Bench) -> None:
    """charon, which has one SA for an identity, drops the one before at our INITIAL_CONTACT."""
    bench.load()
    up(bench, "we").crash()
    up(bench, "we")
    assert bench.charon.sas().count("ESTABLISHED") == 1


def test_the_end_of_charon_is_noticed(bench: Bench) -> None:
    """Within ten seconds, with our default settings.

    covers: 6.12-dpd
    """
    bench.load()
    node = up(bench, "we")
    bench.charon.process.kill()
    bench.charon.process.wait()
    killed = time.monotonic()
    try:
        node.run(node.closed, 10.0)
        assert time.monotonic() - killed > 3.0, "hardly because of its silence"
        assert "does not answer" in node.closed()[0].reason
    finally:
        bench.charon.start()
