"""Tunnels between two network namespaces, ours and others', and what they do: TCP, processor, round trips.

Needs root. Every contender has two namespaces of its own, joined by a veth pair, and the same MTU inside.
Used by ``bench_esp``.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from minerva.connect import messages as m
from minerva.connect.ipc import MAX_PACKET, decode, encode, socket_pair
from minerva.core.secret import Secret
from minerva.esp.packet import REKEY_BYTES
from minerva.esp.sa import KEYMAT_SIZE
from minerva.ikev2.constants import ENCAPSULATION_PORT
from minerva.linux import scheduling, sockets
from minerva.linux.icmp import EchoSocket
from minerva.linux.namespace import Namespace
from minerva.linux.tun import open_tun

SECONDS: Final = 3
PINGS: Final = 200
INNER_MTU: Final = 1400
"""What libipsec gives its interface, and so all get."""

_NEAR, _FAR = IPv6Address("fd00:b::1"), IPv6Address("fd00:b::2")
_DEVICE = "eth0"
_END = """
import socket, sys
from minerva.connect import child
from minerva.connect.data_plane import DataPlane
child.run(DataPlane, socket.socket(fileno=int(sys.argv[1])))
"""


class Unavailable(Exception):
    """A contender cannot be had on this machine; the text says why."""


@dataclass
class Tunnel:
    """Two namespaces with something between them; ``device`` is the tunnel's interface at the near end."""

    name: str
    stack: ExitStack
    ends: tuple[Namespace, Namespace]
    device: str = _DEVICE
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, end: int, *command: str) -> str:
        """Run a command at one end and return what it says. Raises Unavailable if it fails."""
        inside = ("ip", "netns", "exec", self.ends[end].name, *command)
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode != 0:
            raise Unavailable(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-200:]}")
        return done.stdout

    def start(self, command: list[str], end: int | None = None, **options: object) -> None:
        """Start a process of this contender, whose processor time counts; it ends with the tunnel."""
        inside = [] if end is None else ["ip", "netns", "exec", self.ends[end].name]
        process = subprocess.Popen(  # type: ignore[call-overload]
            inside + command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
        )
        self.processes.append(process)
        self.stack.callback(_end, process)

    def folder(self) -> Path:
        """Return a new directory that goes with the tunnel."""
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-esp-")))

    def cpu(self) -> float:
        """Return the processor time of all threads of its processes so far, in seconds."""
        total = 0
        for process in self.processes:
            for file in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
                with suppress(OSError):  # a thread that has just ended
                    total += int(file.read_text().split()[0])
        return total / 1e9

    def packets(self) -> int:
        """Return how many packets the near end has sent into the tunnel: data, not acknowledgements."""
        with self.ends[0].entered():
            found = subprocess.run(
                ("ip", "-s", "-j", "link", "show", self.device), capture_output=True, check=True
            ).stdout
        [link] = json.loads(found)
        return int(link["stats64"]["tx"]["packets"])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tunnel(name: str, make: Callable[[Tunnel], None], stack: ExitStack) -> Tunnel:
    """Return a tunnel that ``make`` has built and that carries packets; all of it goes with ``stack``.

    Raises :class:`Unavailable`; what had been made until then goes with ``stack`` too.
    """
    prefix = f"bench-esp-{os.getpid()}-{secrets.token_hex(2)}"
    ends = []
    for number in range(2):
        ends.append(Namespace.create(f"{prefix}-{number}"))
        stack.callback(ends[-1].delete)
    made = Tunnel(name, stack, (ends[0], ends[1]))
    made.run(0, "ip", "link", "add", _DEVICE, "type", "veth", "peer", _DEVICE, "netns", ends[1].name)
    for number in range(2):
        made.run(number, "ip", "link", "set", "lo", "up")
        made.run(number, "ip", "link", "set", _DEVICE, "addrgenmode", "none", "up")
        for address in (f"fe80::{number + 1}", f"fd00:a::{number + 1}"):
            made.run(number, "ip", "address", "add", f"{address}/64", "dev", _DEVICE, "nodad")
    make(made)
    for _ in range(50):
        if round_trip(made, 1):
            return made
        time.sleep(0.1)
    raise Unavailable("no packet comes through")


# --- the contenders ----------------------------------------------------------------------------------------


def _inner(made: Tunnel, end: int, device: str) -> None:
    """Give one end of the tunnel its address, its MTU and its route."""
    near, far = (_NEAR, _FAR)[:: -1 if end else 1]
    made.run(end, "ip", "link", "set", device, "mtu", str(INNER_MTU), "up")
    made.run(end, "ip", "address", "add", f"{near}/128", "dev", device, "nodad")
    made.run(end, "ip", "route", "add", f"{far}/128", "dev", device, "src", str(near))


def veth(made: Tunnel) -> None:
    """No tunnel at all."""
    for end in range(2):
        _inner(made, end, _DEVICE)


def minerva(made: Tunnel, *, large_buffers: bool, in_udp: bool = False) -> None:
    """Two of our data plane processes, with keys from here instead of IKE."""
    made.device = "acp0"
    keys = [Secret(secrets.token_bytes(KEYMAT_SIZE)) for _ in range(2)]
    buffer = sockets.DATA_BUFFER if large_buffers else None
    for end in range(2):
        supervisor, child = socket_pair()
        made.stack.callback(supervisor.close)
        with made.ends[end].entered():
            tun = open_tun(made.device)
            esp = sockets.esp_socket(
                _DEVICE,
                socket.if_nametoindex(_DEVICE),
                IPv6Address(f"fe80::{end + 1}"),
                IPv6Address(f"fe80::{2 - end}"),
                udp_port=ENCAPSULATION_PORT if in_udp else 0,
                buffer=buffer,
            )
        made.start([sys.executable, "-c", _END, str(child.fileno())], pass_fds=(child.fileno(),))
        child.close()
        threading.Thread(target=_supervise, args=(supervisor, made.processes[-1].pid), daemon=True).start()
        socket.send_fds(
            supervisor, [encode(m.ChannelAttach(1, made.device, INNER_MTU, REKEY_BYTES))], [tun, esp.fileno()]
        )
        supervisor.send(encode(m.ChannelKeys(1, 256 + end, 257 - end, keys[end], keys[1 - end], send=True)))
        os.close(tun)
        esp.close()
        _inner(made, end, made.device)


def _supervise(supervisor: socket.socket, pid: int) -> None:
    """Let a data plane process go first when it asks for that, as in a node."""
    with suppress(OSError):  # it has ended
        while packet := supervisor.recv(MAX_PACKET):
            if isinstance(decode(packet), m.Hurry):
                scheduling.go_first(pid)


def wireguard_go(made: Tunnel) -> None:
    """WireGuard in user space, in Go."""
    need("wireguard-go", "wireguard-go")
    need("wg", "wireguard-tools")
    folder, number = made.folder(), secrets.token_hex(3)
    devices = [f"wg{number}{end}" for end in range(2)]  # the names of their control sockets are machine-wide
    public = []
    for end in range(2):
        private = made.run(end, "wg", "genkey")
        (folder / str(end)).write_text(private)
        public.append(subprocess.run(("wg", "pubkey"), input=private, capture_output=True, text=True).stdout)
        made.start(["wireguard-go", "-f", devices[end]], end)
    for end in range(2):
        control = Path(f"/var/run/wireguard/{devices[end]}.sock")
        _wait_for(control, "wireguard-go did not start")
        configure = f"wg set {devices[end]} listen-port 51820 private-key {folder / str(end)}"
        configure += f" peer {public[1 - end].strip()} endpoint [fd00:a::{2 - end}]:51820 allowed-ips ::/0"
        made.run(end, *configure.split())
        _inner(made, end, devices[end])
    made.device = devices[0]


_PLUGINS = (
    "random nonce openssl aes sha1 sha2 hmac kdf gcm kernel-libipsec kernel-netlink socket-default vici"
)
_STRONGSWAN = """
charon-systemd {{
  load = {plugins}
  port = 500
  port_nat_t = 4500
  plugins {{
    vici {{
      socket = unix://{folder}/vici.sock
    }}
    kernel-libipsec {{
      load = yes
    }}
    socket-default {{
      use_ipv4 = no
    }}
  }}
  filelog {{
    log {{
      path = {folder}/charon.log
      default = 1
    }}
  }}
  journal {{
    default = -1
  }}
}}
"""
_SWANCTL = """
connections {{
  acp {{
    version = 2
    local_addrs = fd00:a::{near}
    remote_addrs = fd00:a::{far}
    proposals = aes256gcm16-prfsha384-ecp384
    encap = yes
    mobike = no
    local {{
      auth = psk
    }}
    remote {{
      auth = psk
    }}
    children {{
      acp {{
        local_ts = fd00:b::{near}/128
        remote_ts = fd00:b::{far}/128
        esp_proposals = aes256gcm16
        mode = tunnel
      }}
    }}
  }}
}}
secrets {{
  ike {{
    secret = "{secret}"
  }}
}}
"""


def libipsec(made: Tunnel) -> None:
    """strongSwan's ESP in user space, in C; encapsulated in UDP, which it insists on."""
    need("charon-systemd", "charon-systemd")
    need("swanctl", "strongswan-swanctl")
    if not Path("/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so").exists():
        raise Unavailable(
            "its plugin kernel-libipsec is not installed: apt-get install libcharon-extra-plugins"
        )
    secret, uris = secrets.token_hex(16), []
    for end in range(2):
        folder = made.folder()
        (folder / "strongswan.conf").write_text(_STRONGSWAN.format(folder=folder, plugins=_PLUGINS))
        (folder / "swanctl").mkdir()
        (folder / "swanctl" / "swanctl.conf").write_text(
            _SWANCTL.format(near=end + 1, far=2 - end, secret=secret)
        )
        made.run(end, "ip", "address", "add", f"{(_NEAR, _FAR)[end]}/128", "dev", "lo", "nodad")
        environment = os.environ | {
            "STRONGSWAN_CONF": str(folder / "strongswan.conf"),
            "SWANCTL_DIR": str(folder / "swanctl"),
        }
        made.start(["charon-systemd"], end, env=environment)
        _wait_for(folder / "vici.sock", "charon did not start")
        uris.append((folder, f"unix://{folder}/vici.sock"))
    for end, (folder, uri) in enumerate(uris):
        set_directory = (
            "env",
            f"SWANCTL_DIR={folder / 'swanctl'}",
            f"STRONGSWAN_CONF={folder}/strongswan.conf",
        )
        made.run(end, *set_directory, "swanctl", "--load-all", "--noprompt", "--uri", uri)
    made.run(0, "swanctl", "--initiate", "--child", "acp", "--uri", uris[0][1])
    made.device = "ipsec0"


def need(program: str, package: str) -> None:
    """Raise Unavailable if there is no ``program``, which is in Debian's ``package``."""
    if shutil.which(program) is None:
        raise Unavailable(f"{program} is not installed: apt-get install {package}")


def _wait_for(path: Path, failure: str) -> None:
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.05)
    raise Unavailable(failure)


# --- the measurements --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contender: TCP in Mbit/s, processor time in µs, median round trip in ms.

    The time is that of both ends for a data packet, what its share of acknowledgements costs included.
    """

    tcp_mbit_s: float
    cpu_us_per_packet: float
    rtt_ms: float


def measure(made: Tunnel) -> Round:
    """Take one round: TCP from the near end to the far one, then pings one at a time."""
    server = ["iperf3", "--server", "--one-off"]
    with made.ends[1].entered():
        listening = subprocess.Popen(server, stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.2)
        cpu, packets = made.cpu(), made.packets()
        said = made.run(0, "iperf3", "--client", str(_FAR), "--time", str(SECONDS), "--json")
        cpu, packets = made.cpu() - cpu, made.packets() - packets
        listening.wait(5)
    finally:
        listening.kill()
        listening.wait()
    rate = json.loads(said)["end"]["sum_received"]["bits_per_second"]
    return Round(rate / 1e6, cpu * 1e6 / packets, statistics.median(round_trip(made, PINGS)))


def round_trip(made: Tunnel, count: int) -> list[float]:
    """Ping the far end ``count`` times, one at a time; return how long the answers took, in ms."""
    with made.ends[0].entered():
        echo = EchoSocket(_NEAR)
    poll = select.poll()
    poll.register(echo.fileno(), select.POLLIN)
    times = []
    for number in range(count):
        begun = time.perf_counter()
        try:
            echo.send(_FAR, 1, number, bytes(56))
        except OSError:  # no route yet
            continue
        if poll.poll(300) and echo.receive():
            times.append((time.perf_counter() - begun) * 1e3)
        time.sleep(0.002)
    echo.close()
    return times
