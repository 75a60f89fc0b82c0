"""tshark as a witness: what our nodes send is what it should be in the eyes of somebody else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from minerva.rpl.config import Preference

from . import captures
from .network import Network, ring

FIELDS = [
    "icmpv6.code",
    "icmpv6.checksum.status",
    "_ws.malformed",
    "_ws.expert",
    "ipv6.hopopts",
    "icmpv6.rpl.opt.type",
    "icmpv6.rpl.dio.instance",
    "icmpv6.rpl.dio.flag.mop",
    "icmpv6.rpl.dio.flag.preference",
    "icmpv6.rpl.opt.config.pcs",
    "icmpv6.rpl.opt.config.ocp",
    "icmpv6.rpl.opt.config.min_hop_rank_inc",
    "icmpv6.rpl.dao.flag.k",
    "icmpv6.rpl.opt.target.prefix_length",
    "icmpv6.rpl.daoack.status",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Every packet of a ring that forms, breaks and says goodbye, as tshark sees it."""
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed")
    net = Network(6, ring(6), preferences={2: Preference.REGISTRAR})
    links = list(net.links.values())
    net.run(5)
    net.cut(2, 3)
    net.run(5)
    net.hosts[0].node.shutdown(net.now)
    net.hosts[0].pump()
    net.run(1)
    path: Path = tmp_path_factory.mktemp("rpl") / "ring.pcap"
    carried = [packet for link in links for packet in link.carried]
    captures.write(path, (captures.Packet(p.source, p.destination, p.data) for p in carried))
    command = [tshark, "-r", str(path), "-T", "fields", "-E", "separator=;"]
    for field in FIELDS:
        command += ["-e", field]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [dict(zip(FIELDS, row.split(";"), strict=True)) for row in output.splitlines()]
    assert len(rows) == len(carried)
    return rows


def test_nothing_is_malformed(rows: list[dict[str, str]]) -> None:
    """covers: 6.12.1.1-1"""
    for row in rows:
        assert row["icmpv6.checksum.status"] == "1"
        assert row["_ws.malformed"] == row["_ws.expert"] == row["ipv6.hopopts"] == ""


def test_every_kind_of_message_is_there(rows: list[dict[str, str]]) -> None:
    assert {row["icmpv6.code"] for row in rows} == {"0", "1", "2", "3"}


def test_dio(rows: list[dict[str, str]]) -> None:
    """covers: 6.12.1.2-1, 6.12.1.3-1, 6.12.1.6-1"""
    dios = [row for row in rows if row["icmpv6.code"] == "1"]
    for row in dios:
        assert row["icmpv6.rpl.opt.type"] == "4"
        assert row["icmpv6.rpl.dio.instance"] == "0"
        assert int(row["icmpv6.rpl.dio.flag.mop"], 0) == 2
        assert int(row["icmpv6.rpl.opt.config.pcs"], 0) == 7
        assert int(row["icmpv6.rpl.opt.config.ocp"], 0) == 0
        assert int(row["icmpv6.rpl.opt.config.min_hop_rank_inc"], 0) == 256
    assert {int(row["icmpv6.rpl.dio.flag.preference"], 0) for row in dios} == {1, 3}


def test_dao(rows: list[dict[str, str]]) -> None:
    """covers: 6.12.1.4-1"""
    daos = [row for row in rows if row["icmpv6.code"] == "2"]
    assert {length for row in daos for length in row["icmpv6.rpl.opt.target.prefix_length"].split(",")} == {
        "127"
    }
    assert {row["icmpv6.rpl.dao.flag.k"] for row in daos} >= {"1"}
    acks = [row for row in rows if row["icmpv6.code"] == "3"]
    assert {int(row["icmpv6.rpl.daoack.status"], 0) for row in acks} == {0}
