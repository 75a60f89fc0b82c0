"""What sealing and opening one ESP packet costs, on one core and without any socket.

``python bench/bench_esp.py``; the peer is the bare AES-GCM call of the library on the same bytes, which is
what no ESP on top of it can beat.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from _report import report
from minerva.core.secret import Secret
from minerva.esp.packet import TRAILERS
from minerva.esp.sa import KEY_SIZE, KEYMAT_SIZE, InboundSA, OutboundSA

RUNS: Final = 9
PACKETS: Final = 5_000
INNER_SIZES: Final = (64, 1400)
PEER: Final = "bare AES-256-GCM"


def main() -> None:
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
