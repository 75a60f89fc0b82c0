"""Consoles over IPMI's Serial over LAN: one session with the BMC, held for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from minerva.console.backends.base import BackendError, Base, Capability, Dialer
from minerva.console.ipmi_client import IpmiClient
from minerva.console.port_config import IpmiPort

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 20.0
"""How often the BMC is asked whether the console is still ours. It forgets sessions after 60 s of silence."""
_ON_THE_WAY: Final = 255


class SolBackend(Base):
    """A console over IPMI."""

    def __init__(self, port: IpmiPort, dialer: Dialer | None = None) -> None:
        self._settings = port
        self._dialer = dialer
        self._client = IpmiClient(port, dialer)
        self._data = bytearray()
        self._came = asyncio.Event()
        self._moved = asyncio.Event()
        self._check: asyncio.Task[None] | None = None
        self._lost: str | None = None
        self._dropped = 0

    @property
    def capabilities(self) -> Capability:
        """A break, which the BMC makes."""
        return Capability.BREAK

    def describe(self) -> str:
        """Return the BMC's address."""
        suite = f", cipher suite {self._client.suite}" if self._client.suite else ""
        return f"IPMI Serial over LAN of {self._client.where}{suite}"

    async def open(self) -> None:
        """Log in and have the console, if policy allows from another one who has it."""
        client = self._client = IpmiClient(self._settings, self._dialer)
        self._data.clear()
        self._lost, self._dropped = None, 0
        await client.open()
        await client.activate_sol(self._take, take_over=self._settings.take_over)
        self._check = asyncio.get_running_loop().create_task(self._keep(client))

    async def read(self) -> bytes:
        """Return what the machine says next."""
        while not self._data:
            if (reason := self._lost or self._client.ended) is not None:
                raise BackendError(reason)
            self._came.clear()
            await self._came.wait()
        data = bytes(self._data)
        self._data.clear()
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data``; wait until the BMC has taken all but a packet of it."""
        self._client.send_sol(data)
        while self._client.sol_waiting > _ON_THE_WAY:
            if (reason := self._lost or self._client.ended) is not None:
                raise BackendError(reason)
            # There is no event for an acknowledgement alone; a BMC takes some milliseconds for each anyway.
            await asyncio.sleep(0.01)
        if (dropped := self._client.sol_dropped) > self._dropped:
            lost, self._dropped = dropped - self._dropped, dropped
            log.warning("%s: it did not want %d characters: the machine may be off", self.describe(), lost)

    async def send_break(self, seconds: float) -> None:  # noqa: ARG002  # the BMC decides how long
        """Send a break after all characters so far."""
        self._client.send_sol_break()

    async def close(self) -> None:
        """Give the console back and end the session."""
        check, self._check = self._check, None
        if check is not None:
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)
            if self._client.ended is None and self._lost is None:
                try:
                    async with asyncio.timeout(2):
                        await self._client.deactivate_sol()
                except (BackendError, TimeoutError) as error:
                    log.debug("%s: %s", self.describe(), error)
        self._client.close()

    def _take(self, data: bytes) -> None:
        self._data += data
        self._came.set()

    async def _keep(self, client: IpmiClient) -> None:
        """Find out when another one takes the console from us."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                ours = await client.holds_sol()
                holder = "" if ours else await client.sol_holder()
            except BackendError as error:
                self._lost = str(error)
            else:
                if ours:
                    continue
                self._lost = f"BMC {client.where}: {holder} has taken Serial over LAN"
            self._came.set()
            return
