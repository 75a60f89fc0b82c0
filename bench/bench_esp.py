"""ESP: what sealing and opening one packet costs, and what the data plane does beside those of others.

``python bench/bench_esp.py``. First on one core and without any socket; the peer is the bare AES-GCM call of
the library on the same bytes, which is what no ESP on top of it can beat. Then, as root, tunnels between
namespaces (see ``_esp_live``), all in turn in every round. The rows with a peer are taken with the socket
buffers that the kernel gives everybody; what we do with large ones, with ESP as it is and in UDP, are rows
without a peer.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Final, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from _esp_live import Round, Tunnel, Unavailable, libipsec, measure, minerva, need, tunnel, veth, wireguard_go
from _report import report
from minerva.core.secret import Secret
from minerva.esp.packet import TRAILERS
from minerva.esp.sa import KEY_SIZE, KEYMAT_SIZE, InboundSA, OutboundSA

RUNS: Final = 9
PACKETS: Final = 5_000
INNER_SIZES: Final = (64, 1400)
PEER: Final = "bare AES-256-GCM"

ROUNDS: Final = 5
OURS, LARGE, IN_UDP = "minerva", "minerva, large buffers", "minerva, in UDP"
CONTENDERS: Final[dict[str, Callable[[Tunnel], None]]] = {
    OURS: partial(minerva, large_buffers=False),
    "libipsec": libipsec,
    "wireguard-go": wireguard_go,
    "veth": veth,
    LARGE: partial(minerva, large_buffers=True),
    IN_UDP: partial(minerva, large_buffers=True, in_udp=True),
}
ALONE: Final = {LARGE: "_large_buffers", IN_UDP: "_large_buffers_in_udp"}
"""What of ours is reported without a peer, and what its figures are called."""

FIGURES: Final[tuple[tuple[str, str, Literal["lower", "higher"]], ...]] = (
    ("tcp_mbit_s", "Mbit/s", "higher"),
    ("cpu_us_per_packet", "us", "lower"),
    ("rtt_ms", "ms", "lower"),
)


def main() -> None:
    """Measure and report everything that this machine and this user can."""
    packets()
    if os.geteuid() == 0:
        tunnels()
    else:
        print("tunnels are not measured: they need root", file=sys.stderr)


def tunnels() -> None:
    """Set all contenders up, measure them in turn, and report ours beside each of the others."""
    # The namespaces go when the run is stopped from outside, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        need("iperf3", "iperf3")
    except Unavailable as error:
        sys.exit(f"tunnels are not measured: {error}")
    with ExitStack() as stack:
        standing = {}
        for name, make in CONTENDERS.items():
            try:
                standing[name] = tunnel(name, make, stack)
            except Unavailable as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
        rounds: dict[str, list[Round]] = {name: [] for name in standing}
        for number in range(ROUNDS):
            for name, made in list(standing.items()):
                try:
                    rounds[name].append(measure(made))
                except Unavailable as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    del standing[name], rounds[name]
                else:
                    print(f"round {number + 1}, {name}: {rounds[name][-1]}", file=sys.stderr)
    if not {OURS, *ALONE} <= set(rounds):
        sys.exit("there is nothing to compare the others with")
    ours, alone = rounds.pop(OURS), {name: rounds.pop(name) for name in ALONE}
    for peer, theirs in rounds.items():
        _report_rounds(ours, peer, theirs)
    for name, found in alone.items():
        _report_rounds(found, suffix=ALONE[name])


def _report_rounds(
    ours: list[Round], peer: str | None = None, theirs: list[Round] | None = None, *, suffix: str = ""
) -> None:
    """Print the figures of ``ours``, their names with ``suffix``, beside a peer's if there is one."""
    for figure, unit, better in FIGURES:
        values = [getattr(each, figure) for each in ours]
        their_values = [getattr(each, figure) for each in theirs or ()]
        # A bare veth has no process whose time could be counted.
        if peer is None or any(their_values):
            report("esp", figure + suffix, values, unit, better, peer, their_values or None)


def packets() -> None:
    """Measure and print, taking turns, so that a busy moment of the machine hits everybody alike."""
    for size in INNER_SIZES:
        runs = [_run(size) for _ in range(RUNS)]
        for position, action in enumerate(("seal", "open")):
            cpu, wall, bare_cpu, bare_wall = zip(*(run[position] for run in runs), strict=True)
            figure = f"{action} {size} B"
            report("esp", f"{figure} CPU", cpu, "us/packet", "lower", PEER, bare_cpu)
            report(
                "esp",
                f"{figure} rate",
                [1e6 / each for each in wall],
                "packets/s",
                "higher",
                PEER,
                [1e6 / each for each in bare_wall],
            )
        print(f"{size} B inner: {RUNS} runs of {PACKETS} packets each", file=sys.stderr)


def _run(size: int) -> tuple[tuple[float, float, float, float], tuple[float, float, float, float]]:
    """Return, for seal and for open, microseconds a packet: CPU and wall, ours and the bare cipher's."""
    material = os.urandom(KEYMAT_SIZE)
    outbound, inbound = OutboundSA(0x101, Secret(material)), InboundSA(0x101, Secret(material))
    inner = b"\x60\0\0\0" + (size - 40).to_bytes(2) + b"\x3b\x40" + os.urandom(size - 8)
    sealed: list[bytes] = []
    keep, seal, open_ = sealed.append, outbound.seal, inbound.open
    seal_cost = _cost(lambda: keep(seal(inner)), range(PACKETS))
    packets = iter(sealed)
    open_cost = _cost(lambda: open_(next(packets)), range(PACKETS))
    if inbound.packets != PACKETS:
        raise RuntimeError(f"only {inbound.packets} of {PACKETS} packets opened: {inbound.drops}")

    cipher, head = AESGCM(os.urandom(KEY_SIZE)), bytes(8)
    plain = inner + TRAILERS[size & 3]
    nonces = (number.to_bytes(12) for number in itertools.count())
    results: list[bytes] = []
    keep_bare, encrypt, decrypt = results.append, cipher.encrypt, cipher.decrypt
    bare_seal = _cost(lambda: keep_bare(encrypt(next(nonces), plain, head)), range(PACKETS))
    numbered = enumerate(results)

    def bare_open() -> None:
        number, packet = next(numbered)
        decrypt(number.to_bytes(12), packet, head)

    return (*seal_cost, *bare_seal), (*open_cost, *_cost(bare_open, range(PACKETS)))


def _cost(action: Callable[[], object], turns: Iterable[int]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in turns:
        action()
    return (time.process_time() - cpu) * 1e6 / PACKETS, (time.perf_counter() - wall) * 1e6 / PACKETS


if __name__ == "__main__":
    main()
