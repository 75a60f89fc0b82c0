"""A netlink connection that is closed while others use it."""

from __future__ import annotations

import asyncio

import pytest

from minerva.linux.errors import LinuxError
from minerva.linux.netlink import Netlink


def test_what_is_under_way_is_answered_before_the_end() -> None:
    async def test() -> None:
        netlink = Netlink()
        under_way = [asyncio.create_task(netlink.links()) for _ in range(5)]
        under_way.append(asyncio.create_task(netlink.index_of("lo")))
        await asyncio.sleep(0)
        await netlink.close()
        found = await asyncio.wait_for(asyncio.gather(*under_way, return_exceptions=True), 5)
        assert any(isinstance(item, list) for item in found)
        assert all(isinstance(item, list | LinuxError) for item in found[:5]), found

    asyncio.run(test())


def test_after_that_nothing_is_asked_any_more() -> None:
    async def test() -> None:
        netlink = Netlink()
        await netlink.links()
        await netlink.close()
        with pytest.raises(LinuxError, match="being left"):
            await netlink.links()
        with pytest.raises(LinuxError, match="cannot delete interface 99 in the host"):
            await netlink.delete_link(99)

    asyncio.run(test())
