"""What goes to the kernel's IPsec is, byte for byte, what iproute2 sends (tests/vectors/xfrm.txt)."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from minerva.core.secret import Secret
from minerva.linux import xfrm
from minerva.linux.errors import LinuxError
from minerva.linux.namespace import Namespace
from minerva.linux.xfrm import Direction, SecurityAssociation, Xfrm, XfrmError

OURS, THEIRS = IPv6Address("fe80::1"), IPv6Address("fe80::2")
IF_ID = 7
MATERIAL = bytes(range(36))
KEY = Secret(MATERIAL)
INBOUND = SecurityAssociation(THEIRS, OURS, 0x101, IF_ID, window=1024)
OUTBOUND = SecurityAssociation(
    OURS, THEIRS, 0x202, IF_ID, soft_bytes=1_000_000, soft_packets=1000, hard_packets=2000
)

VECTORS = {
    block.splitlines()[0]: bytes.fromhex("".join(block.splitlines()[3:]))
    for block in (Path(__file__).parents[1] / "vectors" / "xfrm.txt").read_text().split("\n\n")[1:]
}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("state-in", xfrm.encode_sa(INBOUND, KEY)),
        ("state-out", xfrm.encode_sa(OUTBOUND, KEY)),
        ("state-out-udp", xfrm.encode_sa(replace(OUTBOUND, soft_bytes=xfrm.UNLIMITED, udp_port=4500), KEY)),
        ("policy-in", xfrm.encode_policy(Direction.IN, THEIRS, OURS, IF_ID, 0)),
        ("policy-out", xfrm.encode_policy(Direction.OUT, OURS, THEIRS, IF_ID, 0x202)),
        ("policy-delete", xfrm.encode_policy_id(Direction.OUT, IF_ID)),
    ],
)
def test_as_iproute2_sends_it(name: str, body: bytes) -> None:
    assert bytes(body).hex() == VECTORS[name].hex()


def test_an_sa_is_deleted_as_iproute2_deletes_it() -> None:
    """Which adds the source address, that the kernel looks at only where there is no SPI."""
    body = xfrm.encode_sa_id(THEIRS, 0x202)
    assert VECTORS["state-delete"].startswith(body)
    assert len(body) == 24


def test_counters_are_read_where_the_kernel_has_them() -> None:
    """From an SA as the kernel would tell of it, with other numbers in each field."""
    body = xfrm.encode_sa(INBOUND, KEY)
    struct.pack_into("@4Q3I", body, 160, 1000, 11, 0, 0, 3, 4, 5)
    found = xfrm.decode_counters(memoryview(body))
    assert found == xfrm.SaCounters(
        OURS, 0x101, IF_ID, packets=11, bytes=1000, old=3, replayed=4, not_authentic=5
    )


def test_what_is_too_short_for_an_sa_is_refused() -> None:
    with pytest.raises(struct.error):
        xfrm.decode_counters(memoryview(bytes(223)))


def test_no_key_in_what_can_be_printed() -> None:
    assert MATERIAL.hex() not in repr(INBOUND) + repr(OUTBOUND) + repr(KEY)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    made = Namespace.create(f"minerva-test-{os.getpid()}")
    yield made
    made.delete()


@pytest.fixture
def connection(namespace: Namespace) -> Iterator[Xfrm]:
    try:
        made = Xfrm(namespace)
    except LinuxError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def ip(namespace: Namespace, *arguments: str) -> str:
    command = ["ip", "-n", namespace.name, "xfrm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.root
def test_policies_are_what_ip_shows(connection: Xfrm, namespace: Namespace) -> None:
    connection.set_policy(Direction.IN, THEIRS, OURS, IF_ID)
    connection.set_policy(Direction.OUT, OURS, THEIRS, IF_ID, 0x202)
    connection.set_policy(Direction.OUT, OURS, THEIRS, IF_ID, 0x303)  # in place of the one before
    shown = [" ".join(block.split()) for block in re.split(r"\n(?=\S)", ip(namespace, "policy"))]
    end = "proto esp reqid 7 mode tunnel if_id 0x7"
    assert sorted(shown) == [
        f"src ::/0 dst ::/0 dir in priority 0 ptype main tmpl src fe80::2 dst fe80::1 {end}",
        "src ::/0 dst ::/0 dir out priority 0 ptype main tmpl src fe80::1 dst fe80::2 "
        + end.replace("reqid", "spi 0x00000303 reqid"),
    ]
    for direction in Direction:
        connection.delete_policy(direction, IF_ID)
        connection.delete_policy(direction, IF_ID)  # gone already is fine
    assert ip(namespace, "policy") == ""


@pytest.mark.root
def test_an_sa_that_the_kernel_refuses(connection: Xfrm) -> None:
    """It says why, and nothing of the key is in it, nor left in the buffer that the answer came in."""
    with pytest.raises(XfrmError) as caught:
        connection.add_sa(SecurityAssociation(THEIRS, OURS, 0x101, IF_ID, window=1 << 20), KEY)
    assert caught.value.number in (errno.EINVAL, errno.ENOSYS, errno.EPROTONOSUPPORT)
    assert str(caught.value).startswith("cannot add the SA 00000101 in minerva-test-")
    assert MATERIAL[:8] not in bytes(connection._buffer)
    assert connection.counters() == []


@pytest.mark.root
def test_deleting_what_is_not_there(connection: Xfrm) -> None:
    connection.delete_sa(OURS, 0x101)
