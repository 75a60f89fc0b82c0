"""Handshakes on UDP sockets between two namespaces, with strongSwan's charon or our endpoint at an end.

Three rounds take turns: our initiator with our responder, our initiator with charon, charon with our
responder. So what is compared has the same process of ours at the other end, on the same wire. A handshake is
IKE_SA_INIT, IKE_AUTH with a child SA, and the Delete of it all, one after the other.

charon has no use for a child SA without a data plane, so its figures include what ``kernel-libipsec`` does to
have one, which has no packet to carry; ours stop at the keys. It writes no log.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from minerva.ikev2 import auth
from minerva.ikev2.config import Config, UdpEncapsulation
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT, DhGroup
from minerva.ikev2.encapsulation import NON_ESP_MARKER
from minerva.ikev2.endpoint import Closed, Endpoint, Established, Failed, SignatureNeeded
from minerva.linux.sockets import udp_socket
from minerva.pki.ca import CertificateAuthority, Issued
from minerva.pki.certificates import dump_pem, load_pem
from minerva.pki.identity import Identity
from minerva.pki.keys import dump_private_key, load_private_key
from minerva.pki.membership import Member, check_membership

CHARON_GROUPS = {
    DhGroup.ECP_256: "ecp256",
    DhGroup.CURVE25519: "curve25519",
    DhGroup.ECP_384: "ecp384",
}
_TICK = os.sysconf("SC_CLK_TCK")
_PATIENCE = 10.0

Figures = dict[tuple[str, DhGroup], tuple[list[float], list[float]]]


class NotHereError(Exception):
    """What is needed to measure is not there; the message says what."""


def measure(
    authority: CertificateAuthority, folder: Path, groups: Sequence[DhGroup], runs: int, count: int
) -> Figures:
    """Return by role and group the milliseconds of a handshake in each run, ours and charon's.

    charon's are empty where it is not installed. Raises :class:`NotHereError` where there are no namespaces.
    """
    if os.geteuid() != 0:
        raise NotHereError("they need root, to make network namespaces")
    # Beside this folder, and not installed: the configuration that charon needs is written once.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tests.strangers import strongswan

    issued = {end: authority.issue(with_ip_san=True) for end in ("a", "b")}
    reason = strongswan.missing()
    if reason is not None:
        print(f"no figures of charon: {reason}", file=sys.stderr)
    figures: Figures = {}
    for group in groups:
        ours: list[tuple[float, float]] = []
        responders, initiators = [], []
        with strongswan.wire() as (near, far), near.entered():
            for run in range(runs + 1):  # the first is to warm up
                with _Responder(far.path, issued["b"], group) as responder:
                    ours.append(_with_ours(issued["a"], group, responder, count))
                if reason is None:
                    charon = strongswan.Charon(far, folder / f"charon-{group.name}-{run}", logs=False)
                    try:
                        charon.load(issued["b"], CHARON_GROUPS[group])
                        responders.append(_with_charon(issued["a"], group, charon, count))
                        initiators.append(_from_charon(issued["a"], group, charon, count))
                    finally:
                        charon.stop()
        figures["responder", group] = [pair[1] for pair in ours[1:]], responders[1:]
        figures["initiator", group] = [pair[0] for pair in ours[1:]], initiators[1:]
        print(f"{group.name}: {ours[1:]}, charon {responders[1:]}, {initiators[1:]}", file=sys.stderr)
    return figures


# --- the rounds -------------------------------------------------------------------------------------------


def _with_ours(issued: Issued, group: DhGroup, responder: _Responder, count: int) -> tuple[float, float]:
    with _Node(issued, group, near=True) as node:
        node.handshake()
        used, theirs = time.process_time(), _cpu(responder.process.pid)
        for _ in range(count):
            node.handshake()
        mine = time.process_time() - used
        return mine * 1e3 / count, (_cpu(responder.process.pid) - theirs) * 1e3 / count


def _with_charon(issued: Issued, group: DhGroup, charon: Any, count: int) -> float:
    with _Node(issued, group, near=True) as node:
        node.handshake()
        used = _cpu(charon.process.pid)
        for _ in range(count):
            node.handshake()
        return (_cpu(charon.process.pid) - used) * 1e3 / count


def _from_charon(issued: Issued, group: DhGroup, charon: Any, count: int) -> float:
    with _Node(issued, group, near=True) as node, socket.socket(socket.AF_UNIX) as vici:
        vici.connect(str(charon.folder / "vici.sock"))
        node.answer(vici)
        used = _cpu(charon.process.pid)
        for _ in range(count):
            node.answer(vici)
        return (_cpu(charon.process.pid) - used) * 1e3 / count


def _cpu(pid: int) -> float:
    """Return the seconds that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


# --- our ends -----------------------------------------------------------------------------------------------


class _Node:
    """An endpoint with its signer on two sockets of the namespace that the thread is in."""

    def __init__(self, issued: Issued, group: DhGroup, *, near: bool) -> None:
        addresses = IPv6Address("fe80::a"), IPv6Address("fe80::b")
        own, self.peer = addresses if near else addresses[::-1]
        self.identity = Identity.from_certificates(issued.certificate, issued.chain, issued.anchors)
        self.key: Any = issued.private_key
        self.when = datetime.now(UTC)
        # Ended SAs linger for ten seconds by default: here that would be thousands.
        config = Config(groups=(group,), udp_encapsulation=UdpEncapsulation.FORCE, linger=0.1)
        self.endpoint = Endpoint(own, self.identity, self._authenticate, os.urandom, config)
        device = "a0" if near else "b0"
        self.sockets = {udp_socket(device, port): port for port in (IKE_PORT, ENCAPSULATION_PORT)}
        self.established: Established | None = None

    def __enter__(self) -> _Node:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()

    def _authenticate(self, chain: Any) -> Member:
        return check_membership(chain, self.identity, when=self.when, channel=True)

    def handshake(self) -> None:
        """Do one handshake as initiator, and delete the SA."""
        sa = self.endpoint.initiate(self.peer, IKE_PORT, time.monotonic())
        self._finish(sa)

    def answer(self, vici: socket.socket) -> None:
        """Have charon do one handshake with us, and delete the SA."""
        _vici(vici, b"initiate", {b"child": b"acp", b"timeout": b"-1", b"loglevel": b"-1"})
        self._finish(None)

    def _finish(self, sa: int | None) -> None:
        self.established = None
        deadline = time.monotonic() + _PATIENCE
        while self.established is None or (sa is not None and self.established.sa != sa):
            self.step()
            if time.monotonic() > deadline:
                raise RuntimeError("a handshake has come to nothing")
        self.endpoint.close(self.established.sa, time.monotonic(), "the next one")
        while any(status.sa == self.established.sa for status in self.endpoint.status()):
            self.step()

    def step(self) -> None:
        """Send, wait, and receive."""
        self._pump()
        timer = self.endpoint.next_timer()
        wait = None if timer is None else max(0.0, timer - time.monotonic())
        readable, _, _ = select.select(list(self.sockets), [], [], wait)
        now = time.monotonic()
        if timer is not None and timer <= now:
            self.endpoint.on_timer(now)
        for sock in readable:
            data, (_, source, _, _) = sock.recvfrom(65_535)
            if self.sockets[sock] == IKE_PORT or data.startswith(NON_ESP_MARKER):
                self.endpoint.receive(data, self.peer, source, now)
        self._pump()

    def _pump(self) -> None:
        now = time.monotonic()
        while (event := self.endpoint.next_event()) is not None:
            match event:
                case SignatureNeeded():
                    auth.check_own_init(event.message)
                    octets = auth.signed_octets(event.message, event.nonce, event.maced_id)
                    self.endpoint.signed(event.sa, auth.sign(self.key, octets, event.hash), now)
                case Established():
                    self.established = event
                case Failed() | Closed() if not event.reason.startswith(("the next", "the peer deleted")):
                    raise RuntimeError(f"a handshake has come to nothing: {event.reason}")
        by_port = {port: sock for sock, port in self.sockets.items()}
        for datagram in self.endpoint.datagrams_to_send(now):
            by_port[datagram.port].sendto(datagram.data, (str(datagram.address), datagram.port))


class _Responder:
    """Our endpoint as a process of its own, in the namespace at the other end."""

    def __init__(self, namespace: Path, issued: Issued, group: DhGroup) -> None:
        assert issued.private_key is not None
        pem = dump_pem((issued.certificate, *issued.chain, *issued.anchors))
        given = pickle.dumps((pem, dump_private_key(issued.private_key), int(group)))
        self.process = subprocess.Popen(
            ["nsenter", f"--net={namespace}", sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(given)
        self.process.stdin.close()
        if self.process.stdout.readline() != b"ready\n":
            raise RuntimeError("our responder does not start")

    def __enter__(self) -> _Responder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _serve() -> None:
    """Be the responder; what it needs comes from standard input."""
    pem, key, group = pickle.loads(sys.stdin.buffer.read())
    leaf, *chain, anchor = load_pem(pem)
    issued = Issued(leaf, tuple(chain), (anchor,), None, None, load_private_key(key))  # type: ignore[arg-type]
    with _Node(issued, DhGroup(group), near=False) as node:
        print("ready", flush=True)
        while True:
            node.step()


# --- charon's control socket --------------------------------------------------------------------------------


def _vici(sock: socket.socket, command: bytes, values: dict[bytes, bytes]) -> None:
    """Send a command with these values (strongSwan's VICI protocol) and wait for the response."""
    body = bytes((0, len(command))) + command
    for key, value in values.items():
        body += bytes((3, len(key))) + key + struct.pack("!H", len(value)) + value
    sock.sendall(struct.pack("!I", len(body)) + body)
    (length,) = struct.unpack("!I", sock.recv(4, socket.MSG_WAITALL))
    sock.recv(length, socket.MSG_WAITALL)


if __name__ == "__main__":
    _serve()
