"""The desk: what is done for one who does not stay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from minerva.console.access import Identity, Role
from minerva.console.backends.base import BackendError
from minerva.console.power import PowerAction, PowerState
from minerva.core.errors import UsageError
from tests.console.office import Line, Office

ALL = ((Role.ADMIN, "*"),)


class SlowPower:
    """A machine that takes its time, and counts."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0
        self.acts: list[PowerAction] = []
        self.broken = False

    def describe(self) -> str:
        """Return a name."""
        return "slow"

    async def status(self) -> PowerState:
        """Wait, and say that it is on."""
        self.asked += 1
        await self.go.wait()
        if self.broken:
            raise BackendError("the BMC is broken")
        return PowerState.ON

    async def act(self, action: PowerAction) -> None:
        """Wait, and note it."""
        self.acts.append(action)
        await self.go.wait()


def test_however_many_ask_the_machine_is_asked_once_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        line = Line("rack1")
        line.power = power = SlowPower()  # type: ignore[assignment]
        office = Office(tmp_path, {}, [line])
        vera = Identity("vera", "ssh", grants=ALL)
        many = [asyncio.ensure_future(office.desk.power(vera, "rack1", None)) for _ in range(100)]
        await asyncio.sleep(0.01)
        many[0].cancel()
        power.go.set()
        said = await asyncio.gather(*many, return_exceptions=True)
        assert isinstance(said[0], asyncio.CancelledError)
        assert said[1:] == ["the machine of rack1 is on"] * 99
        assert power.asked == 1
        power.broken = True
        with pytest.raises(BackendError, match="the BMC is broken"):
            await office.desk.power(vera, "rack1", None)
        assert power.asked == 2
        office.close()

    asyncio.run(main())


def test_a_machine_does_one_thing_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        line = Line("rack1")
        line.power = power = SlowPower()  # type: ignore[assignment]
        office = Office(tmp_path, {}, [line])
        paul = Identity("paul", "ssh", grants=ALL)
        first = asyncio.ensure_future(office.desk.power(paul, "rack1", PowerAction.CYCLE))
        while not power.acts:
            await asyncio.sleep(0.01)
        with pytest.raises(UsageError, match="the machine of rack1 is being switched just now"):
            await office.desk.power(paul, "rack1", PowerAction.OFF)
        power.go.set()
        assert await first == "power cycle of rack1 has been accepted"
        await office.desk.power(paul, "rack1", PowerAction.OFF)
        assert power.acts == [PowerAction.CYCLE, PowerAction.OFF]
        office.close()

    asyncio.run(main())
