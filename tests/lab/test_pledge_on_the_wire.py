"""What a pledge sends before it is a member, as tshark sees it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from minerva.connect.join_proxy import PROXY_PORTS
from minerva.grasp.constants import AN_ACP, AN_PROXY
from minerva.lab.lab import DOMAIN
from tests.lab.conftest import lab_run

pytestmark = pytest.mark.root

FIELDS = (
    "eth.src",
    "ipv6.src",
    "ipv6.dst",
    "icmpv6.type",
    "udp.dstport",
    "udp.payload",
    "tcp.srcport",
    "tcp.dstport",
    "tls.handshake.type",
    "tls.handshake.extensions_server_name",
)
CLIENT_HELLO = "1"

Frame = dict[str, str]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    directory = tmp_path_factory.mktemp("pcap")
    found = lab_run("line:2", "--zero-touch", "--pcap", directory)
    assert found["exit_code"] == 0, found["stderr"]
    decode = [word for port in PROXY_PORTS for word in ("-d", f"tcp.port=={port},tls")]
    wanted = [word for field in FIELDS for word in ("-e", field)]
    command = ["tshark", "-r", str(directory / "n1-n2.pcap"), *decode, "-T", "fields", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert DOMAIN.encode() not in Path(directory / "n1-n2.pcap").read_bytes()
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


def floods(frames: list[Frame], mac: str) -> list[bytes]:
    """The DULL GRASP messages that an interface sent."""
    return [
        bytes.fromhex(f["udp.payload"]) for f in frames if f["eth.src"] == mac and f["udp.dstport"] == "7017"
    ]


def roles(frames: list[Frame]) -> tuple[str, str]:
    """The interfaces of the member and of the pledge."""
    [member] = {f["eth.src"] for f in frames if f["tcp.srcport"] in map(str, PROXY_PORTS)}
    [pledge] = {f["eth.src"] for f in frames if f["tcp.dstport"] in map(str, PROXY_PORTS)}
    return member, pledge


def test_a_pledge_only_listens_and_connects(frames: list[Frame]) -> None:
    """It never announces itself, speaks no IKE, and never has both roles.

    covers: 6.4-7, 6.4-3, P-4, P-10, P-11
    """
    member, pledge = roles(frames)
    enrolled = next(
        number
        for number, frame in enumerate(frames)
        if frame["eth.src"] == pledge and frame["udp.dstport"] in ("7017", "500")
    )
    before = [frame for frame in frames[:enrolled] if frame["eth.src"] == pledge]
    connections = [frame for frame in before if frame["tcp.dstport"]]
    assert connections
    for frame in before:
        discovery = frame["icmpv6.type"] in ("135", "136", "143") or frame["udp.dstport"] == "5353"
        assert discovery or int(frame["tcp.dstport"]) in PROXY_PORTS, frame
    for frame in connections:
        assert frame["ipv6.src"].startswith("fe80:")
        assert frame["ipv6.dst"].startswith("fe80:")
    # What it does once it is a member.
    assert any(AN_ACP.encode() in flood for flood in floods(frames, pledge))
    announced = floods(frames[:enrolled], member)
    assert any(AN_PROXY.encode() in flood for flood in announced)


def test_tls_names_no_server(frames: list[Frame]) -> None:
    """There is nobody known to be named, and whom it asks is nobody's business.

    covers: P-21
    """
    hellos = [frame for frame in frames if CLIENT_HELLO in frame["tls.handshake.type"].split(",")]
    assert hellos
    assert all(not frame["tls.handshake.extensions_server_name"] for frame in hellos)
