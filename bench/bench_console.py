"""What a console server costs, and whether anybody misses a byte: 64 lines at 115,200 baud that never pause.

Each line has 8 readers over TCP, one of which has stopped to read, and a record. Lines are pseudoterminals:
what the server does not take in time waits in them, as it would not in a UART. Beside ours stands conserver
with the same lines, readers and logs, if it is there. CPU time and memory (the proportional share, because
conserver is several processes) are those of all processes of the server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from _report import report
from minerva.console import record_search

LINES = 64
READERS = 8
BYTES_A_SECOND = 11_520
TICK = 0.01
PATTERN = b"".join(
    b"[%8d.%06d] what a kernel says at its start, line %d\r\n" % (n, n, n) for n in range(5000)
)
DRAIN = 3.0
_STOPPED = 4096  # of a reader that has stopped: its receive buffer


def expected(start: int, length: int) -> bytes:
    """Return what a line says from an offset on."""
    start %= len(PATTERN)
    data = PATTERN[start : start + length]
    while len(data) < length:
        data += PATTERN[: length - len(data)]
    return data


def feed(masters: list[int], seconds: float, pipe: Connection) -> None:
    """Be the devices: say so many bytes a second on each line. Sends how many each has said."""
    for master in masters:
        os.set_blocking(master, False)
    said, late = [0] * len(masters), 0
    pipe.recv()
    began = time.monotonic()
    ticks = int(seconds / TICK)
    for tick in range(1, ticks + 1):
        due = int(tick * TICK * BYTES_A_SECOND)
        for number, master in enumerate(masters):
            try:
                said[number] += os.write(master, expected(said[number], due - said[number]))
            except BlockingIOError:
                late += 1
        time.sleep(max(0.0, began + tick * TICK - time.monotonic()))
    pipe.send((said, late))
    pipe.recv()


def read(ports: Callable[[int], socket.socket], pipe: Connection) -> None:
    """Be the readers. When told, sends how many bytes each got, and how often they were the wrong ones."""
    stopped, got, wrong = [], {}, 0
    poll = select.epoll()
    socks: dict[int, tuple[socket.socket, int]] = {}
    for line in range(LINES):
        for reader in range(READERS):
            sock = ports(line)
            if reader == 0:
                stopped.append(sock)
                continue
            sock.setblocking(False)
            socks[sock.fileno()] = (sock, line)
            got[sock.fileno()] = 0
            poll.register(sock, select.EPOLLIN)
    pipe.send("attached")
    while not pipe.poll():
        for descriptor, _ in poll.poll(0.2):
            data = socks[descriptor][0].recv(65_536)
            if not data:
                poll.unregister(descriptor)
                continue
            if data != expected(got[descriptor], len(data)):
                wrong += 1
            got[descriptor] += len(data)
    pipe.send(([(line, got[descriptor]) for descriptor, (_, line) in socks.items()], wrong))


def processes(root: int) -> list[int]:
    """Return a process and all that come of it."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def cpu(pids: list[int]) -> float:
    """Return the time that processes, with all their threads, have used, in seconds."""
    ticks = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pids: list[int]) -> float:
    """Return the memory of processes in MiB, each page once."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return found


def dial(port: int) -> socket.socket:
    """Return a connection, as soon as somebody listens."""
    deadline = time.monotonic() + 30
    while True:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        try:
            sock.connect(("127.0.0.1", port))
        except ConnectionRefusedError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return sock


class Ours:
    """Minerva's console server, with a port of TCP for each line."""

    name = None

    def __init__(self, directory: Path, devices: list[str]) -> None:
        self.directory = directory
        self.ports = free_ports(LINES)
        lines = [
            "[console]",
            f"directory = {json.dumps(str(directory / 'state'))}",
            'listen = ["127.0.0.1"]\nannounce = false\nssh = {enabled = false}\nweb = {enabled = false}',
            '[console.users.all]\nview = ["*"]',
        ]
        for number, (device, port) in enumerate(zip(devices, self.ports, strict=True)):
            lines += [
                f'[console.ports.c{number}]\ntype = "pty"\npath = "{device}"',
                f'raw_port = {port}\ntools_user = "all"',
            ]
        config = directory / "minerva.toml"
        config.write_text("\n".join(lines))
        command = [sys.executable, "-m", "minerva", "console", "run"]
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--config", config, "--run-dir", directory / "run"], stdout=log, stderr=log
            )

    def connect(self, line: int) -> socket.socket:
        """Attach to a line, to read."""
        return dial(self.ports[line])

    def recorded(self, line: int) -> int:
        """Return how many bytes of the line are in its record, in the right order."""
        found = b"".join(record_search.output(self.directory / "state" / "records", f"c{line}"))
        return len(found) if found == expected(0, len(found)) else 0


_REMARK = re.compile(rb"\[-- [^\]\r\n]*\]\r?\n")
"""What conserver itself writes into a log, as when somebody has attached; in the middle of a line, too."""


class Conserver:
    """conserver, whose readers log in as its own client does."""

    name = "conserver"

    def __init__(self, directory: Path, devices: list[str]) -> None:
        self.directory = directory
        self.port, base = free_ports(2)
        lines = [
            "config * { sslrequired no; }",
            "access * { trusted 127.0.0.1; }",
            "default * { rw *; master 127.0.0.1; }",
        ]
        for number, device in enumerate(devices):
            lines.append(
                f"console c{number} {{ type device; device {device}; baud 115200; parity none; "
                f"logfile {directory}/c{number}.log; }}"
            )
        config = directory / "conserver.cf"
        config.write_text("\n".join(lines) + "\n")
        (directory / "conserver.passwd").write_text("*any*:\n")
        command = ["conserver", "-C", config, "-P", directory / "conserver.passwd", "-p", str(self.port)]
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "-b", str(base), "-M", "127.0.0.1", "-m", "64", "-O", "0"], stdout=log, stderr=log
            )

    def connect(self, line: int) -> socket.socket:
        """Attach to a line: the master says on which port it is, and there it is asked for again."""
        with dial(self.port) as master:
            port = int(self._login(master, line).split()[0])
        sock = dial(port)
        answer = self._login(sock, line)
        assert answer in (b"[attached]\r\n", b"[spy]\r\n"), answer
        sock.sendall(b"\x05c;")  # as its own client says that it is ready
        answer = b""
        while not answer.endswith(b"\n"):
            answer += sock.recv(1)
        assert answer == b"[connected]\r\n", answer
        return sock

    def _login(self, sock: socket.socket, line: int) -> bytes:
        sock.settimeout(10)
        answer = b""
        for command in (b"", b"login bench\r\n", b"call c%d\r\n" % line):
            sock.sendall(command)
            answer = b""
            while not answer.endswith(b"\n"):
                answer += sock.recv(4096)
        return answer

    def recorded(self, line: int) -> int:
        """Return how many bytes of the line are in its log, in the right order."""
        found = (self.directory / f"c{line}.log").read_bytes()
        said = _REMARK.sub(b"", found)
        return len(said) if said == expected(0, len(said)) else 0


@contextmanager
def child(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run a function in a process of its own."""
    fork = multiprocessing.get_context("fork")
    pipe, other = fork.Pipe()
    process = fork.Process(target=target, args=(*arguments, other), daemon=True)
    process.start()
    try:
        yield pipe
    finally:
        process.kill()
        process.join()


def measure(make: type[Ours] | type[Conserver], seconds: float) -> dict[str, float]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [os.openpty() for _ in range(LINES)]
        for _, slave in ends:
            tty.setraw(slave)
        masters = [master for master, _ in ends]
        server = make(Path(folder), [os.ttyname(slave) for _, slave in ends])
        try:
            server.connect(0).close()
            with child(feed, masters, seconds) as feeder, child(read, server.connect) as readers:
                assert readers.recv() == "attached"
                time.sleep(1)
                pids = processes(server.process.pid)
                before = cpu(pids)
                feeder.send("go")
                said, late = feeder.recv()
                used = cpu(pids) - before
                time.sleep(DRAIN)
                taken = memory(pids)
                readers.send("enough")
                got, wrong = readers.recv()
                feeder.send("end")
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(20)
            lost = sum(said[line] - count for line, count in got)
            recorded = sum(said[line] - server.recorded(line) for line in range(LINES))
        finally:
            server.process.kill()
            server.process.wait()
            for end in ends:
                os.close(end[0])
                os.close(end[1])
    where = server.name or "ours"
    print(
        f"{where}: said {sum(said)}, late {late}, lost by readers {lost}, by the record {recorded}, "
        f"out of order {wrong}, {used:.2f} s of CPU, {taken:.1f} MiB",
        file=sys.stderr,
    )
    return {"bytes_lost": abs(lost) + abs(recorded) + wrong, "cpu_s": used, "rss_mib": taken}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    there = shutil.which("conserver") is not None
    ours, theirs = [], []
    for _ in range(arguments.runs):
        ours.append(measure(Ours, arguments.seconds))
        if there:
            theirs.append(measure(Conserver, arguments.seconds))
    for figure, unit in (("bytes_lost", "bytes"), ("cpu_s", "s"), ("rss_mib", "MiB")):
        report(
            "console",
            figure,
            [run[figure] for run in ours],
            unit,
            "lower",
            "conserver" if there else None,
            [run[figure] for run in theirs] if there else None,
            {"lines": LINES, "readers": READERS, "seconds": int(arguments.seconds)},
        )


if __name__ == "__main__":
    main()
