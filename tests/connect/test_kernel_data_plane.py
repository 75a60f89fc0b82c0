"""The kernel data plane against a kernel that only takes notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import replace
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any

import pytest

from minerva.connect import kernel_data_plane
from minerva.connect import messages as m
from minerva.connect.channels import Channel
from minerva.connect.ipc import Message
from minerva.connect.kernel_data_plane import KernelDataPlane
from minerva.core.secret import Secret
from minerva.esp.sa import LAST_SEQUENCE, REKEY_SEQUENCE
from minerva.linux.errors import LinuxError
from minerva.linux.xfrm import Direction, SaCounters, SecurityAssociation

OURS, PEER, OTHER = IPv6Address("fe80::1"), IPv6Address("fe80::2"), IPv6Address("fe80::3")
MATERIAL = bytes(range(100, 136))
FIRST = 10_000
BYTES = 1_000_000


class FakeXfrm:
    """One namespace's SAs and policies, and what was done in which order."""

    def __init__(self, namespace: object) -> None:
        self.namespace = namespace
        self.sas: dict[tuple[IPv6Address, int], SaCounters] = {}
        self.added: list[SecurityAssociation] = []
        self.policies: dict[tuple[Direction, int], tuple[IPv6Address, IPv6Address, int]] = {}
        self.log: list[str] = []
        self.refuse: set[int] = set()
        self.closed = False

    def add_sa(self, sa: SecurityAssociation, key: Secret) -> None:
        if sa.spi in self.refuse:
            raise LinuxError(f"cannot add the SA {sa.spi:08x}: no")
        assert key.reveal() == MATERIAL
        self.added.append(sa)
        self.sas[sa.destination, sa.spi] = SaCounters(sa.destination, sa.spi, sa.if_id, 0, 0, 0, 0, 0)
        self.log.append(f"add {sa.spi}")

    def delete_sa(self, destination: IPv6Address, spi: int) -> None:
        self.sas.pop((destination, spi), None)
        self.log.append(f"delete {spi}")

    def set_policy(
        self, direction: Direction, source: IPv6Address, destination: IPv6Address, if_id: int, spi: int = 0
    ) -> None:
        self.policies[direction, if_id] = (source, destination, spi)
        self.log.append(f"{direction.name} by {spi}")

    def delete_policy(self, direction: Direction, if_id: int) -> None:
        self.policies.pop((direction, if_id), None)
        self.log.append(f"{direction.name} by nothing")

    def counters(self) -> list[SaCounters]:
        return list(self.sas.values())

    def count(self, destination: IPv6Address, spi: int, **counters: int) -> None:
        """Let packets pass."""
        self.sas[destination, spi] = replace(self.sas[destination, spi], **counters)

    def close(self) -> None:
        self.closed = True


class FakeNetlink:
    """Interfaces of a namespace: methods do nothing, with the results that are of use."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fails = ""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def call(*arguments: Any, **attributes: Any) -> Any:
            self.calls.append((name, arguments))
            if name == self.fails:
                raise LinuxError(f"{name} does not work")
            if name == "links":
                return [SimpleNamespace(index=FIRST), SimpleNamespace(index=FIRST + 1)]
            return FIRST if name == "index_of" else bool(attributes) or True

        return call


class World:
    """A data plane with a port; ``told`` is what the abutment hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.xfrm: list[FakeXfrm] = []

        def connect(namespace: object) -> FakeXfrm:
            self.xfrm.append(FakeXfrm(namespace))
            return self.xfrm[-1]

        monkeypatch.setattr(kernel_data_plane, "Xfrm", connect)
        self.acp = SimpleNamespace(netlink=FakeNetlink(), namespace=SimpleNamespace(descriptor=99))
        self.port = SimpleNamespace(
            number=1,
            name="eth0",
            index=2,
            namespace=SimpleNamespace(name="link", entered=nullcontext),
            netlink=FakeNetlink(),
            link_local=OURS,
        )
        self.told: list[Message] = []
        self.later: list[Coroutine[Any, Any, None]] = []
        self.plane = KernelDataPlane(self.acp, self.told.append, self.later.append, BYTES)  # type: ignore[arg-type]

    async def attach(self, number: int = 1, peer: IPv6Address = PEER, *, in_udp: bool = False) -> Channel:
        """Attach a channel."""
        channel = Channel(
            *(number, self.port, OURS, peer, peer, "peer", f"acp_{number}", OTHER),  # type: ignore[arg-type]
            mtu=1426,
            in_udp=in_udp,
        )
        await self.plane.attach(channel)
        return channel

    def out(self, number: int = FIRST) -> int:
        """Return the SPI that is sent with."""
        return self.xfrm[-1].policies[Direction.OUT, number][2]

    async def do_later(self) -> None:
        """Do what waits for its turn."""
        while self.later:
            await self.later.pop(0)


def keys(spi_in: int, spi_out: int, *, send: bool = False, channel: int = 1) -> m.ChannelKeys:
    return m.ChannelKeys(channel, spi_in, spi_out, Secret(MATERIAL), Secret(MATERIAL), send)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(kernel_data_plane, "SETTLE_SECONDS", 0.01)
    return World(monkeypatch)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_a_first_pair_is_for_both_directions_at_once(world: World) -> None:
    async def test() -> None:
        channel = await world.attach()
        assert channel.index == FIRST
        [xfrm] = world.xfrm
        assert xfrm.policies == {(Direction.IN, FIRST): (PEER, OURS, 0)}, "nothing leaves without keys"
        world.plane.add_keys(keys(1001, 2001))
        assert xfrm.added == [
            SecurityAssociation(PEER, OURS, 1001, FIRST, window=1024),
            SecurityAssociation(
                *(OURS, PEER, 2001, FIRST),
                soft_bytes=BYTES,
                soft_packets=REKEY_SEQUENCE,
                hard_packets=LAST_SEQUENCE,
            ),
        ]
        assert xfrm.policies[Direction.OUT, FIRST] == (OURS, PEER, 2001)
        status = (await world.plane.status())[1]
        assert (status["spis_in"], status["spi_out"]) == (["000003e9"], "000007d1")
        assert world.told == []

    run(test())


def test_new_keys_are_sent_with_when_ike_says_so(world: World) -> None:
    async def test() -> None:
        await world.attach()
        world.plane.add_keys(keys(1001, 2001))
        world.plane.add_keys(keys(1002, 2002, send=True))
        assert world.out() == 2001
        await asyncio.sleep(0.05)
        assert world.out() == 2002

    run(test())


def test_or_when_the_peer_shows_that_it_has_them(world: World) -> None:
    async def test() -> None:
        await world.attach()
        world.plane.add_keys(keys(1001, 2001))
        world.plane.add_keys(keys(1002, 2002))
        world.xfrm[0].count(OURS, 1001, packets=5)
        await world.plane.status()
        assert world.out() == 2001
        assert world.told == [m.Traffic((1,))]
        world.xfrm[0].count(OURS, 1002, packets=1)
        await world.plane.status()
        assert world.out() == 2002
        await world.plane.status()
        assert world.told == [m.Traffic((1,)), m.Traffic((1,))], "once for what came in"

    run(test())


def test_the_counters_are_read_by_themselves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More often while a pair waits."""
    monkeypatch.setattr(kernel_data_plane, "_TRAFFIC_SECONDS", 60.0)
    monkeypatch.setattr(kernel_data_plane, "_WAITING_SECONDS", 0.01)

    async def test() -> None:
        watching = asyncio.create_task(world.plane.watch())
        await world.attach()
        world.plane.add_keys(keys(1001, 2001))
        await asyncio.sleep(0.03)
        world.plane.add_keys(keys(1002, 2002))
        world.xfrm[0].count(OURS, 1002, packets=1)
        await asyncio.sleep(0.1)
        assert world.out() == 2002
        watching.cancel()

    run(test())


def test_others_are_sent_with_before_a_pair_is_deleted(world: World) -> None:
    """And what it has counted stays counted."""

    async def test() -> None:
        await world.attach()
        xfrm = world.xfrm[0]
        world.plane.add_keys(keys(1001, 2001))
        world.plane.add_keys(keys(1002, 2002))
        xfrm.count(OURS, 1001, packets=3, bytes=300, old=1, replayed=2, not_authentic=4)
        xfrm.count(PEER, 2001, packets=5, bytes=500)
        xfrm.log.clear()
        world.plane.remove_keys(m.ChannelKeysGone(1, 1001))
        assert xfrm.log == ["OUT by 2002", "delete 2001", "delete 1001"]
        xfrm.count(OURS, 1002, packets=1, bytes=10, old=1)
        status = (await world.plane.status())[1]
        assert status == {
            "packets_in": 4,
            "bytes_in": 310,
            "packets_out": 5,
            "bytes_out": 500,
            "drops": {"old": 2, "replayed": 2, "not_authentic": 4},
            "spis_in": ["000003ea"],
            "spi_out": "000007d2",
        }
        world.plane.remove_keys(m.ChannelKeysGone(1, 1002))
        assert (Direction.OUT, FIRST) not in xfrm.policies
        world.plane.remove_keys(m.ChannelKeysGone(1, 1002))  # what is gone already
        assert xfrm.sas == {}

    run(test())


@pytest.mark.parametrize(("counter", "limit"), [("packets", REKEY_SEQUENCE), ("bytes", BYTES)])
def test_fresh_keys_are_asked_for_once_in_time(world: World, counter: str, limit: int) -> None:
    async def test() -> None:
        await world.attach()
        world.plane.add_keys(keys(1001, 2001))
        world.xfrm[0].count(PEER, 2001, **{counter: limit - 1})
        await world.plane.status()
        assert world.told == []
        world.xfrm[0].count(PEER, 2001, **{counter: limit})
        for _ in range(3):
            await world.plane.status()
        assert world.told == [m.ChannelRekey(1)]
        world.plane.add_keys(keys(1002, 2002, send=True))
        await asyncio.sleep(0.05)
        world.xfrm[0].count(PEER, 2002, **{counter: limit})
        await world.plane.status()
        assert world.told == [m.ChannelRekey(1), m.ChannelRekey(1)]

    run(test())


def test_an_sa_that_is_gone_from_the_kernel_is_a_fault(world: World) -> None:
    """The kernel deletes it itself when its sequence numbers are used up."""

    async def test() -> None:
        await world.attach()
        world.plane.add_keys(keys(1001, 2001))
        world.xfrm[0].delete_sa(PEER, 2001)
        for _ in range(3):
            await world.plane.status()
        [fault] = world.told
        assert isinstance(fault, m.ChannelFault)
        assert fault.channel == 1
        assert "gone" in fault.reason

    run(test())


@pytest.mark.parametrize(
    "bad",
    [
        keys(255, 2001),
        keys(1001, 0),
        replace(keys(1001, 2001), key_in=Secret(bytes(35))),
        replace(keys(1001, 2001), key_out=Secret(bytes(37))),
    ],
    ids=["spi_in", "spi_out", "key_in", "key_out"],
)
def test_keys_that_no_honest_abutment_sends_do_not_reach_the_kernel(world: World, bad: m.ChannelKeys) -> None:
    async def test() -> None:
        await world.attach()
        world.plane.add_keys(bad)
        assert world.told == [m.ChannelFault(1, "these are no keys of an ACP channel")]
        assert world.xfrm[0].added == []

    run(test())


def test_nor_more_pairs_than_a_channel_can_need(world: World) -> None:
    async def test() -> None:
        await world.attach()
        for number in range(64):
            world.plane.add_keys(keys(1000 + number, 2000 + number))
        assert world.told == []
        for again in (keys(5000, 6000), keys(1000, 6000)):
            world.plane.add_keys(again)
        assert len(world.told) == 2
        assert len(world.xfrm[0].sas) == 128

    run(test())


def test_half_a_pair_is_taken_back(world: World) -> None:
    async def test() -> None:
        await world.attach()
        world.xfrm[0].refuse.add(2001)
        world.plane.add_keys(keys(1001, 2001))
        assert world.told == [m.ChannelFault(1, "cannot add the SA 000007d1: no")]
        assert world.xfrm[0].sas == {}
        assert MATERIAL.hex() not in repr(world.told)

    run(test())


def test_the_last_channel_of_a_port_lets_go_of_its_namespace(world: World) -> None:
    async def test() -> None:
        first, second = await world.attach(1), await world.attach(2, OTHER)
        [xfrm] = world.xfrm
        world.plane.add_keys(keys(1001, 2001))
        world.plane.add_keys(keys(1002, 2002, channel=2))
        world.plane.detach(first)
        assert not xfrm.closed
        assert {spi for _, spi in xfrm.sas} == {1002, 2002}
        assert {number for _, number in xfrm.policies} == {FIRST + 1}
        world.plane.detach(second)
        world.plane.detach(second)
        assert xfrm.closed
        assert (xfrm.sas, xfrm.policies) == ({}, {})
        await world.do_later()
        deleted = [arguments for name, arguments in world.acp.netlink.calls if name == "delete_link"]
        assert deleted == [(FIRST,), (FIRST + 1,)]
        await world.attach(3)
        assert len(world.xfrm) == 2, "a connection of its own to what may be another namespace"
        world.plane.close()
        assert world.xfrm[1].closed

    run(test())


def test_what_cannot_be_attached_leaves_nothing(world: World) -> None:
    async def test() -> None:
        for step in ("index_of", "add_address"):
            world.acp.netlink.fails = step
            with pytest.raises(LinuxError, match=step):
                await world.attach()
            assert world.xfrm[-1].closed
            assert world.xfrm[-1].policies == {}
            world.acp.netlink.fails = ""
            await world.do_later()
        world.acp.netlink.fails = ""
        await world.attach()

    run(test())


def test_messages_about_channels_that_are_gone_do_nothing(world: World) -> None:
    async def test() -> None:
        channel = await world.attach()
        world.plane.add_keys(keys(1001, 2001))
        world.plane.add_keys(keys(1002, 2002, send=True))
        world.plane.detach(channel)
        world.plane.add_keys(keys(1003, 2003))
        world.plane.remove_keys(m.ChannelKeysGone(1, 1001))
        await asyncio.sleep(0.05)
        assert world.told == []
        assert await world.plane.status() == {}
        await world.do_later()

    run(test())


def test_an_interface_that_is_gone_is_a_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_data_plane, "_TRAFFIC_SECONDS", 0.01)

    async def test() -> None:
        channels = [await world.attach(number, IPv6Address(f"fe80::{number + 1}")) for number in (1, 2, 3)]
        watching = asyncio.create_task(world.plane.watch())
        await asyncio.sleep(0.2)
        assert world.told == [m.ChannelFault(3, "its interface is gone")]
        watching.cancel()
        assert len(channels) == 3

    run(test())


class FakeSocket:
    """A socket of which only matters whether it is there."""

    def __init__(self, *_: object) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_with_esp_in_udp_there_is_one_socket_a_link_and_sas_say_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened for the first channel that needs it, closed with the last one."""
    opened: list[FakeSocket] = []

    def open_socket(*_: object) -> FakeSocket:
        opened.append(FakeSocket())
        return opened[-1]

    monkeypatch.setattr(kernel_data_plane.sockets, "esp_in_udp_socket", open_socket)

    async def test() -> None:
        plain = await world.attach(1)
        assert opened == []
        wrapped = [await world.attach(number, peer, in_udp=True) for number, peer in ((2, OTHER), (3, PEER))]
        assert len(opened) == 1
        for number in (1, 2, 3):
            world.plane.add_keys(keys(300 + number, 400 + number, channel=number))
        assert [sa.udp_port for sa in world.xfrm[-1].added] == [0, 0, 4500, 4500, 4500, 4500]
        for channel in (plain, wrapped[0]):
            world.plane.detach(channel)
        assert not opened[0].closed
        world.plane.detach(wrapped[1])
        assert opened[0].closed
        await world.do_later()

    run(test())


def test_a_kernel_that_does_not_take_esp_in_udp_leaves_no_channel(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> FakeSocket:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(kernel_data_plane.sockets, "esp_in_udp_socket", refuse)

    async def test() -> None:
        with pytest.raises(OSError, match="not available"):
            await world.attach(in_udp=True)
        assert world.xfrm[-1].closed
        assert world.xfrm[-1].policies == {}
        await world.do_later()

    run(test())
