"""``minerva grasp trace`` as an operator types it: on a capture, and on a node."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minerva.cli.grasp_trace import trace
from minerva.cli.main import main
from minerva.core import cbor
from minerva.core.errors import MinervaError
from minerva.grasp.messages import Invalid
from minerva.grasp.substrate import Traced
from minerva.linux.pcap import LinkType, PcapngWriter
from tests.asa.node import FakeNode, fake_node
from tests.grasp.examples import ACP, APPENDIX_A
from tests.grasp.packets import SYN, datagram, pcap, segment

FLOOD, DISCOVERY, WAIT = ACP[0], APPENDIX_A[0], APPENDIX_A[10]
CLOCK = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


def run(*arguments: str | Path, data: bytes | None = None) -> Result:
    return CliRunner().invoke(trace, [str(argument) for argument in arguments], input=data)


def good(*arguments: str | Path, data: bytes | None = None) -> list[str]:
    result = run(*arguments, data=data)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A link with DULL GRASP, and a channel with a connection."""
    stream = io.BytesIO()
    writer = PcapngWriter(stream)
    port = writer.add_interface("eth1", LinkType.ETHERNET)
    channel = writer.add_interface("acp_\x1b[1m", LinkType.IPV6)
    ethernet = bytes(12) + b"\x86\xdd"
    writer.write(port, 1_700_000_000_000_000_000, ethernet + datagram(FLOOD.encode()), outgoing=True)
    writer.write(port, 1_700_000_000_250_000_000, ethernet + datagram(DISCOVERY.encode()), outgoing=False)
    writer.write(channel, 1_700_000_001_000_000_000, segment(0, b"", SYN))
    writer.write(
        channel, 1_700_000_001_000_000_001, segment(1, WAIT.encode() + Invalid(1, "\x1b]0;").encode())
    )
    writer.write(port, 1_700_000_002_000_000_000, ethernet + datagram(b"\xff\x1b"))
    writer.flush()
    path = tmp_path / "link.pcapng"
    path.write_bytes(stream.getvalue())
    return path


def test_a_capture(capture: Path) -> None:
    lines = good(capture)
    assert all(re.match(CLOCK, line) for line in lines)
    assert [line[29:] for line in lines] == [
        "eth1 udp [fe80::1]:49152 > [ff02::13]:7017  out"
        "  M_FLOOD session 12340815 initiator fe80::c001:1001:feef:0 ttl 210 s"
        ' AN_ACP (SYNCH, loop 1) = "IKEv2" at udp [fe80::c001:1001:feef:0]:15000;'
        ' AN_ACP (SYNCH, loop 1) = "DTLS" at udp [fe80::c001:1001:feef:0]:17000',
        "eth1 udp [fe80::1]:49152 > [ff02::13]:7017  in"
        "  M_DISCOVERY session 13948744 initiator 2001:db8:f000:baaa:28cc:dc4c:9703:6781"
        " EX1 (DISC|SYNCH, loop 2) = 0",
        "acp_\\u001b[1m tcp [fe80::1]:40000 > [fe80::2]:7017  M_WAIT session 13767778 34.965 s",
        'acp_\\u001b[1m tcp [fe80::1]:40000 > [fe80::2]:7017  M_INVALID session 1 "\\u001b]0;"',
        "eth1 udp [fe80::1]:49152 > [ff02::13]:7017  not a GRASP message: not CBOR:"
        " break code encountered where a data item was expected: h'ff1b'",
    ]
    # The same from standard input.
    assert good("-", data=capture.read_bytes()) == lines


def test_json(capture: Path) -> None:
    lines = good(capture, "--json")
    assert all(line.isascii() and line.isprintable() for line in lines)
    first, *_, invalid, broken = map(json.loads, lines)
    message = first.pop("message")
    assert first == {
        "time": 1_700_000_000.0,
        "interface": "eth1",
        "transport": "udp",
        "source": "[fe80::1]:49152",
        "destination": "[ff02::13]:7017",
        "direction": "out",
    }
    assert message["hex"] == FLOOD.encode().hex()
    assert message["entries"][1]["objective"]["value"] == "DTLS"
    assert (invalid["interface"], invalid["direction"]) == ("acp_\x1b[1m", None)
    assert invalid["message"]["content"] == "\x1b]0;"
    assert broken["message"]["hex"] == "ff1b"
    assert broken["message"]["error"].startswith("not CBOR")


@pytest.mark.parametrize(
    ("options", "types"),
    [
        (["--type", "M_FLOOD"], ["M_FLOOD"]),
        (["--type", "m_wait", "--type", "M_DISCOVERY"], ["M_DISCOVERY", "M_WAIT"]),
        (["--objective", "AN_ACP"], ["M_FLOOD"]),
        (["--objective", "EX1"], ["M_DISCOVERY"]),
        (["--objective", "EX1", "--type", "M_FLOOD"], []),
        (["--interface", "eth1"], ["M_FLOOD", "M_DISCOVERY", None]),
        (["--interface", "eth"], []),
        (["--count", "2"], ["M_FLOOD", "M_DISCOVERY"]),
        (["--count", "1", "--type", "M_INVALID"], ["M_INVALID"]),
    ],
)
def test_what_is_asked_for(capture: Path, options: list[str], types: list[str | None]) -> None:
    lines = [json.loads(line) for line in good(capture, "--json", *options)]
    assert [line["message"].get("type") for line in lines] == types


def test_other_ports_and_tls(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(
        pcap(
            [
                segment(0, b"", SYN, (1, 2)),
                segment(1, WAIT.encode(), ports=(1, 2)),
                segment(0, b"", SYN),
                segment(1, b"\x16\x03\x01\x02\x00\x01\x00"),
            ]
        )
    )
    (line,) = good(path)
    assert line.endswith("tcp [fe80::1]:40000 > [fe80::2]:7017  TLS, not readable")
    assert json.loads(good(path, "--json")[0])["note"] == "TLS, not readable"
    assert len(good(path, "--port", "2")) == 2
    assert len(good(path, "--port", "9", "--port", "1")) == 2
    assert good(path, "--type", "M_FLOOD") == []


def test_what_else_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    packets = [b"\x60", segment(0, b"", SYN), segment(9, WAIT.encode()), datagram(b"")]
    path.write_bytes(pcap(packets)[:-1])
    result = run(path)
    assert result.exit_code == 0
    assert result.stderr == (
        "minerva: 1 broken packets were skipped; in 1 places a part of a connection is missing;"
        " the capture ends in the middle of a packet\n"
    )
    assert result.stdout.endswith("M_WAIT session 13767778 34.965 s\n")


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"no capture")
    for arguments, code, why in (
        ([str(path)], 1, "minerva: neither a pcap nor a pcapng file\n"),
        ([str(tmp_path)], 2, "Is a directory"),
        ([str(tmp_path / "y")], 2, "No such file or directory"),
        ([str(path), "--type", "M_NONE"], 2, "'M_NONE' is not one of"),
        ([str(path), "--count", "0"], 2, "0 is not in the range"),
        (["--run-dir", str(tmp_path)], 1, "no node runs with the run directory"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["grasp", "trace", *arguments])
        assert caught.value.code == code
        output = capsys.readouterr()
        assert why in output.err
        assert output.out == ""


def test_a_terminal_that_cannot_show_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([datagram(Invalid(1, "水").encode())]))
    for encoding, shown in (("ascii", b'"\\u6c34"'), ("utf-8", '"水"'.encode())):
        result = subprocess.run(
            [sys.executable, "-m", "minerva", "grasp", "trace", path],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        assert result.stdout.rstrip().endswith(b"M_INVALID session 1 " + shown)


def test_captures_of_another_implementation(fixtures: Path) -> None:
    lines = good(fixtures / "grasp-peer" / "dull-two-nodes.pcap", "--objective", "AN_Proxy", "--json")
    types = [json.loads(line)["message"]["type"] for line in lines]
    assert (types.count("M_FLOOD"), types.count("M_DISCOVERY")) == (8, 1)
    (line,) = good(fixtures / "grasp-peer" / "dull-two-nodes.pcap", "--type", "M_RESPONSE")
    assert "tcp [fe80::ff:fe00:405]:43704 > [fe80::ff:fe00:504]:60719" in line


# On a node

PEER = IPv6Address("fe80::2")
TRACED = [
    Traced(1, PEER, True, FLOOD.encode()),
    Traced(None, IPv6Address("fd00::9"), False, DISCOVERY.encode()),
    Traced(1, PEER, True, b"\xff"),
    Traced(1, PEER, False, cbor.dumps([7, 1, 2])),
]


@contextmanager
def node(run_dir: Path) -> Iterator[FakeNode]:
    """A node in a thread that has the same to tell, again and again, to whoever asks."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()
    found: list[FakeNode] = []

    async def serve() -> None:
        async with fake_node(run_dir) as fake:
            found.append(fake)
            ready.set()
            while not stop.is_set():
                if fake.engine.tracing:
                    fake.engine.events.extend(TRACED)
                    fake.pump()
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def live(run_dir: Path, *arguments: str) -> list[str]:
    return good("--run-dir", run_dir, *arguments)


def test_live(tmp_path: Path) -> None:
    with node(tmp_path):
        lines = live(tmp_path, "--count", "4")
        assert all(re.match(CLOCK, line) for line in lines)
        flood, discovery, broken, wait = (line[29:] for line in lines)
        interface, peer, direction = flood.split()[:3]
        assert (peer, direction) == ("fe80::2", "in")
        assert "M_FLOOD session 12340815" in flood
        assert discovery.startswith("fd00::9  out  M_DISCOVERY")
        assert "in  not a GRASP message" in broken
        assert wait.endswith("fe80::2  out  M_WAIT session 1 0.002 s")
        (line,) = live(tmp_path, "--objective", "AN_ACP", "--count", "1", "--json")
        found: dict[str, Any] = json.loads(line)
        assert (found["interface"], found["where"]) == (interface, f"{interface} fe80::2")
        assert (found["direction"], found["message"]["type"]) == ("in", "M_FLOOD")
        assert len(live(tmp_path, "--interface", interface, "--count", "3")) == 3
        (line,) = live(tmp_path, "--type", "M_DISCOVERY", "--count", "1", "--json")
        assert json.loads(line)["interface"] is None


def test_live_until_interrupted_or_the_node_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "minerva", "grasp", "trace", "--run-dir", tmp_path]
    with node(tmp_path):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "M_FLOOD" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr.read() == ""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "M_FLOOD" in process.stdout.readline()
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors == "minerva: the node has ended the connection\n"
    assert output.splitlines()[-1].endswith("M_WAIT session 1 0.002 s")


def test_errors_are_of_the_known_kind(tmp_path: Path) -> None:
    assert isinstance(run("--run-dir", tmp_path).exception, MinervaError)
