"""strongSwan as a neighbour: a charon in a namespace of its own, and an endpoint of ours on the other end.

charon has no ESP of its own kernel here but ``kernel-libipsec``, which does ESP in UDP in user space. So the
endpoint has ``udp_encapsulation``, and ESP goes through ``minerva.esp``, driven by the test. Where the kernel
has ESP (tests/kernel), charon can have that instead, and a whole node as its neighbour.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from minerva.esp.sa import ChannelSAs, InboundSA, OutboundSA
from minerva.grasp.announcement import AN_ACP_IKEV2
from minerva.grasp.constants import ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT
from minerva.grasp.dull import DullInstance
from minerva.ikev2.config import Config
from minerva.ikev2.constants import ENCAPSULATION_PORT, IKE_PORT
from minerva.ikev2.encapsulation import NON_ESP_MARKER
from minerva.ikev2.endpoint import (
    ChildGone,
    ChildUp,
    Closed,
    Endpoint,
    Established,
    Failed,
    SignatureNeeded,
    State,
)
from minerva.linux.namespace import Namespace, delete_name
from minerva.linux.sockets import multicast_socket, udp_socket
from minerva.pki.ca import Issued
from minerva.pki.identity import Identity
from minerva.pki.membership import Member, check_membership
from tests.ikev2.nodes import A, B, sign

PACKAGES = ("charon-systemd", "strongswan-swanctl", "libcharon-extra-plugins")
IF_ID = 42
"""By which charon's kernel knows the interface that SAs and policies are of."""

PLUGINS = (
    "random nonce openssl pem pkcs1 pkcs8 x509 pubkey curve25519 constraints revocation aes sha1 sha2 hmac "
    "kdf gcm chapoly kernel-libipsec kernel-netlink socket-default vici updown"
)
INNER_A, INNER_B = IPv6Address("fd00::a"), IPv6Address("fd00::b")

T = TypeVar("T")


def require_strongswan() -> None:
    """Skip where there is no strongSwan, or no right to make namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    if (reason := missing()) is not None:
        pytest.skip(reason)


def missing() -> str | None:
    """Return what of strongSwan is not installed and how to get it, or ``None`` if all is there."""
    programs = [shutil.which(program, path=_PATH) for program in ("charon-systemd", "swanctl")]
    if None not in programs and _LIBIPSEC.exists():
        return None
    return f"strongSwan is not installed: apt-get install {' '.join(PACKAGES)}"


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
_LIBIPSEC = Path("/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so")


@contextmanager
def wire(mtu: int = 1500) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with a wire between them: ours with ``a0``, charon's with ``b0``."""
    names = [f"minerva-test-{os.getpid()}-ike-{end}" for end in "ab"]
    try:
        ends = [Namespace.create(name) for name in names]
        a, b = names
        _ip(a, "link add a0 type veth peer b0 netns", b)
        for namespace, device, address in ((a, "a0", A), (b, "b0", B)):
            # No second link-local address: messages would come from that one.
            _ip(namespace, "link set", device, "addrgenmode none mtu", str(mtu))
            _ip(namespace, "addr add", f"{address}/64", "dev", device, "nodad")
            _ip(namespace, "link set", device, "up")
            _ip(namespace, "link set lo up")
        _ip(b, "addr add", f"{INNER_B}/128", "dev lo nodad")
        yield ends[0], ends[1]
        for end in ends:
            end.close()
    finally:
        for name in names:
            delete_name(name)


def announce(theirs: Namespace) -> None:
    """Say on the wire, as every neighbour does, that there is IKEv2 at charon's address."""
    dull = DullInstance(B, random=random.SystemRandom())
    dull.announce([AN_ACP_IKEV2], 0.0)
    with theirs.entered():
        index = socket.if_nametoindex("b0")
        sock = multicast_socket("b0", index, ALL_GRASP_NEIGHBORS, GRASP_LISTEN_PORT)
    with sock:
        for datagram in dull.datagrams_to_send(0.0):
            sock.sendto(datagram.data, (str(datagram.address), datagram.port, 0, index))


def _ip(namespace: str, *words: str) -> None:
    command = ["ip", "-n", namespace, *" ".join(words).split()]
    subprocess.run(command, check=True, capture_output=True)


class Charon:
    """One charon in ``namespace``, with its files in ``folder``. Without ``logs`` it writes none.

    With ``kernel_esp`` its ESP is that of the kernel, as it is, by the interface with the if_id ``IF_ID``.
    """

    def __init__(
        self, namespace: Namespace, folder: Path, *, logs: bool = True, kernel_esp: bool = False
    ) -> None:
        self.folder = folder
        self.log_file = folder / "charon.log"
        self._uri = f"unix://{folder}/vici.sock"
        # Debian's AppArmor profiles are for the programs where they are, and keep them from files in here.
        self._programs = {}
        for name in ("charon-systemd", "swanctl"):
            program = shutil.which(name, path=_PATH)
            assert program is not None
            (folder / "bin").mkdir(parents=True, exist_ok=True)
            self._programs[name] = shutil.copy(program, folder / "bin")
        self._environment = {
            **os.environ,
            "PATH": _PATH,
            "STRONGSWAN_CONF": f"{folder}/strongswan.conf",
            "SWANCTL_DIR": f"{folder}/swanctl",
        }
        for name in ("x509", "x509ca", "private"):
            (folder / "swanctl" / name).mkdir(parents=True, exist_ok=True)
        self._kernel_esp = kernel_esp
        esp, plugins = (_KERNEL_ESP, _KERNEL_PLUGINS) if kernel_esp else (_LIBIPSEC_ESP, PLUGINS)
        settings = _STRONGSWAN_CONF.replace("PLUGINS", plugins).replace("ESP", esp)
        settings = settings.replace("FOLDER", str(folder))
        for level in ("default = 1", "ike = 2") if not logs else ():
            settings = settings.replace(level, "default = -1")
        (folder / "strongswan.conf").write_text(settings)
        self._namespace = namespace
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Start the process, in the beginning or once it has ended. Nothing is loaded then."""
        with self._namespace.entered():
            # What it has to say is in its log file.
            self.process = subprocess.Popen(
                [self._programs["charon-systemd"]],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 10
        while subprocess.run(self._command("--stats"), env=self._environment, capture_output=True).returncode:
            assert self.process.poll() is None, f"charon does not run; see {self.log_file}"
            assert time.monotonic() < deadline, "charon does not answer"
            time.sleep(0.05)

    def _command(self, *words: str) -> list[str]:
        return [self._programs["swanctl"], *words, "--uri", self._uri]

    def swanctl(self, *words: str) -> str:
        """Run ``swanctl`` to its end and return what it prints; it may fail."""
        done = subprocess.run(
            self._command(*words), env=self._environment, capture_output=True, text=True, timeout=20
        )
        return done.stdout + done.stderr

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start ``swanctl``, which may wait for what our end has to do."""
        return subprocess.Popen(
            self._command(*words),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def load(
        self,
        issued: Issued,
        group: str = "ecp256",
        *,
        trusts: x509.Certificate | None = None,
        dpd_delay: int = 0,
        cipher: str = "aes256gcm16",
        esp_group: str | None = None,
        expects: Issued | None = None,
        lifetimes: tuple[int, int] = (14_400, 3_600),
        address: IPv6Address = A,
        encap: bool | None = None,
    ) -> None:
        """Make ``issued`` charon's certificate, and the connection ``acp`` one with ``group``.

        It trusts our end's certificate if that is under ``trusts``, its own trust anchor if not given. For
        child SAs it has the same group, or ``esp_group`` as strongSwan writes it, which may be none. It takes
        everybody, or only whom it ``expects``. ``lifetimes`` are of the IKE SA and of the child, in seconds.
        Our end is at ``address``. ``encap`` is whether it wants ESP in UDP, which it does by default only
        where it has no other.
        """
        base = self.folder / "swanctl"
        for old in base.glob("*/*"):
            old.unlink()
        assert issued.private_key is not None
        (base / "x509" / "node.pem").write_bytes(issued.certificate.public_bytes(Encoding.PEM))
        (base / "private" / "node.pem").write_bytes(
            issued.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        (anchor,) = issued.anchors
        for number, certificate in enumerate((trusts or anchor, *issued.chain)):
            (base / "x509ca" / f"{number}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        text = _SWANCTL_CONF.format(
            group=group,
            esp_group=f"-{group}" if esp_group is None else esp_group,
            id=issued.node_name.address,
            ike_lifetime=lifetimes[0],
            child_lifetime=lifetimes[1],
            peer_id="%any" if expects is None else expects.node_name.address,
            dpd_delay=dpd_delay,
            cipher=cipher,
            encap="yes" if (not self._kernel_esp if encap is None else encap) else "no",
            interface=f"if_id_in = {IF_ID}\n        if_id_out = {IF_ID}" if self._kernel_esp else "",
            a=address,
            b=B,
        )
        (base / "swanctl.conf").write_text(text)
        loaded = self.swanctl("--load-all", "--clear", "--noprompt")
        assert "loaded connection 'acp'" in loaded, loaded

    def log(self) -> str:
        """Return what charon has logged so far."""
        return self.log_file.read_text(errors="replace")

    def sas(self) -> str:
        """Return what charon holds."""
        return self.swanctl("--list-sas")

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


class Node:
    """An endpoint of ours on real sockets, driven by the test's thread. ``events`` is what it reports."""

    def __init__(
        self,
        namespace: Namespace,
        issued: Issued,
        config: Config,
        *,
        anchors: tuple[x509.Certificate, ...] = (),
    ) -> None:
        self.identity = Identity.from_certificates(
            issued.certificate, issued.chain, (*issued.anchors, *anchors)
        )
        self.key: Any = issued.private_key
        self.endpoint = Endpoint(A, self.identity, self._authenticate, os.urandom, config)
        self.events: list[Any] = []
        self.channel = ChannelSAs()
        self._waiting: dict[int, OutboundSA] = {}
        self.inner: list[bytes] = []
        self.ports: list[int] = []
        self.sizes: list[int] = []
        with namespace.entered():
            self._sockets = {port: udp_socket("a0", port) for port in (IKE_PORT, ENCAPSULATION_PORT)}

    def _authenticate(self, chain: Any) -> Member:
        return check_membership(chain, self.identity, when=datetime.now(UTC), channel=True)

    def of(self, kind: type[T]) -> list[T]:
        """Return the events of that kind."""
        return [event for event in self.events if isinstance(event, kind)]

    # --- driving -------------------------------------------------------------------------------------------

    def run(self, until: Callable[[], object], limit: float = 5.0) -> None:
        """Drive the endpoint until ``until()`` is true; fail if it is not after ``limit`` seconds."""
        deadline = time.monotonic() + limit
        while True:
            self._pump()
            if until():
                return
            now = time.monotonic()
            assert now < deadline, f"not within {limit} s; events: {self.events[-8:]}"
            timer = self.endpoint.next_timer()
            wait = 0.02 if timer is None else max(0.0, min(0.02, timer - now))
            readable, _, _ = select.select(list(self._sockets.values()), [], [], wait)
            for port, sock in self._sockets.items():
                if sock in readable:
                    self._receive(port, sock)
            timer, now = self.endpoint.next_timer(), time.monotonic()
            if timer is not None and timer <= now:
                self.endpoint.on_timer(now)

    def wait(self, seconds: float) -> None:
        """Drive the endpoint for so long."""
        end = time.monotonic() + seconds
        self.run(lambda: time.monotonic() >= end, seconds + 5)

    def complete(self, command: subprocess.Popen[str], limit: float = 10.0) -> str:
        """Drive the endpoint until ``command`` has ended; return what it printed."""
        try:
            self.run(lambda: command.poll() is not None, limit)
        finally:
            command.kill()
            output, _ = command.communicate()
        return output

    def _receive(self, port: int, sock: socket.socket) -> None:
        with suppress(BlockingIOError):
            data, (_, source, _, _) = sock.recvfrom(65_535)
            if port == IKE_PORT or data.startswith(NON_ESP_MARKER):
                self.endpoint.receive(data, B, source, time.monotonic())
            elif len(data) > 1:  # not a keepalive
                self._receive_esp(data)

    def _receive_esp(self, packet: bytes) -> None:
        inner = self.channel.open(packet)
        if inner is None:
            return
        self.inner.append(inner)
        self.endpoint.traffic_seen(self.of(Established)[-1].sa, time.monotonic())
        sa = self._waiting.pop(int.from_bytes(packet[:4]), None)
        if sa is not None:
            self.channel.set_outbound(sa)

    def _pump(self) -> None:
        while True:
            now = time.monotonic()
            while (event := self.endpoint.next_event()) is not None:
                self.events.append(event)
                if isinstance(event, SignatureNeeded):
                    self.endpoint.signed(event.sa, sign(self.key, event), now)
                else:
                    self._install(event)
            datagrams = self.endpoint.datagrams_to_send(now)
            if not datagrams:
                return
            for datagram in datagrams:
                port = IKE_PORT if datagram.port == IKE_PORT else ENCAPSULATION_PORT
                self.ports.append(port)
                self.sizes.append(len(datagram.data))
                self._sockets[port].sendto(datagram.data, (str(B), datagram.port))

    # --- ESP -----------------------------------------------------------------------------------------------

    def _install(self, event: Any) -> None:
        if isinstance(event, Established | ChildUp):
            child = event.child
            self.channel.add_inbound(InboundSA(child.spi_in, child.key_in))
            outbound = OutboundSA(child.spi_out, child.key_out)
            if isinstance(event, Established) or event.send:
                self.channel.set_outbound(outbound)
            else:
                self._waiting[child.spi_in] = outbound
        elif isinstance(event, ChildGone):
            self.channel.remove_inbound(event.spi_in)
            if self._waiting:
                self.channel.set_outbound(self._waiting.popitem()[1])

    def send_inner(self, packet: bytes) -> int:
        """Send ``packet`` through the channel, ESP in UDP; return its SPI."""
        sealed = self.channel.seal(packet)
        assert sealed is not None
        self._sockets[ENCAPSULATION_PORT].sendto(sealed, (str(B), ENCAPSULATION_PORT))
        return int.from_bytes(sealed[:4])

    # --- what tests do -------------------------------------------------------------------------------------

    def initiate(self) -> Established:
        """Begin an SA with charon and return what comes of it."""
        self.endpoint.initiate(B, IKE_PORT, time.monotonic())
        self.run(lambda: self.of(Established) or self.of(Failed))
        assert not self.of(Failed), self.of(Failed)
        return self.of(Established)[-1]

    def answer(self, charon: Charon) -> Established:
        """Have charon begin an SA with us and return what comes of it."""
        output = self.complete(charon.begin("--initiate", "--child", "acp", "--timeout", "5"))
        assert "initiate completed successfully" in output, output
        return self.of(Established)[-1]

    def begin_only(self) -> None:
        """Send an IKE_SA_INIT request and never look for the answer."""
        self.endpoint.initiate(B, IKE_PORT, time.monotonic())
        self._pump()

    def crash(self) -> None:
        """Be gone without a word."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def finish(self) -> None:
        """Delete what is up, and close the sockets, unless it has crashed."""
        if not self._sockets:
            return
        self.endpoint.close_all(time.monotonic())
        gone = (State.CLOSED, State.DELETING)
        with suppress(AssertionError):
            self.run(lambda: not self.endpoint.status(), 0.5)
        assert all(sa.state in gone for sa in self.endpoint.status())
        for sock in self._sockets.values():
            sock.close()

    def closed(self) -> list[Closed]:
        """Return how SAs ended that were up."""
        return self.of(Closed)


_LIBIPSEC_ESP = """    kernel-libipsec {
      load = yes
      allow_peer_ts = yes
    }
    # Without the two marks its own route for ::/0 would take its IKE messages.
    socket-default {
      use_ipv4 = no
      fwmark = 0x42
    }
    kernel-netlink {
      fwmark = !0x42
    }
"""

_KERNEL_PLUGINS = PLUGINS.replace("kernel-libipsec ", "")
_KERNEL_ESP = """    socket-default {
      use_ipv4 = no
    }
    kernel-netlink {
      # The interface is in another namespace, and the routes are there.
      install_routes_xfrmi = no
    }
"""

_STRONGSWAN_CONF = """
charon-systemd {
  load = PLUGINS
  load_modular = no
  install_virtual_ip = no
  process_route = no
  # Who does not answer is dead after three seconds.
  retransmit_timeout = 0.5
  retransmit_tries = 2
  cookie_threshold = 1
  half_open_timeout = 2
  plugins {
    vici {
      socket = unix://FOLDER/vici.sock
    }
ESP    revocation {
      enable_ocsp = no
      enable_crl = no
    }
  }
  filelog {
    log {
      path = FOLDER/charon.log
      default = 1
      ike = 2
      flush_line = yes
    }
  }
  journal {
    default = -1
  }
}
"""

_SWANCTL_CONF = """
connections {{
  acp {{
    version = 2
    local_addrs = {b}%b0
    remote_addrs = {a}%b0
    proposals = {cipher}-prfsha256-{group}
    encap = {encap}
    mobike = no
    fragmentation = yes
    dpd_delay = {dpd_delay}s
    rekey_time = {ike_lifetime}s
    local {{
      auth = pubkey
      certs = node.pem
      id = {id}
    }}
    remote {{
      auth = pubkey
      id = {peer_id}
    }}
    children {{
      acp {{
        local_ts = ::/0
        remote_ts = ::/0
        # With a group: rekeying a child without one would have no forward secrecy, and is refused.
        esp_proposals = aes256gcm16{esp_group}
        mode = tunnel
        {interface}
        rekey_time = {child_lifetime}s
      }}
    }}
  }}
}}
"""
