"""The registrar makes itself known in the ACP, as an ASA of this host's node.

AN_join_registrar brings new devices here (RFC 8995 section 4.3), SRV.est members whose certificates are to be
renewed (RFC 8994 section 6.2.5.1). Both are flooded for as long as the registrar can issue certificates, and
taken back, by a flood that is believed for a moment only, when it cannot or ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from minerva.asa import Asa, AsaError, Grasp, services
from minerva.core.errors import UsageError
from minerva.pki.address import AcpAddress
from minerva.pki.errors import AddressError

log = logging.getLogger(__name__)

ASA_NAME: Final = "minerva-registrar"

CHECK_SECONDS: Final = 5.0
"""How often the registrar asks itself whether it works."""

RECONNECT_SECONDS: Final = 2.0
"""How long it waits before it looks for the node again."""

_MOMENT = 1  # milliseconds; 0 would be for ever


async def node_address(socket: Path) -> IPv6Address:
    """Return the V=1 address of the node with the API socket ``socket``: that of this host in the ACP.

    Raises :class:`~minerva.asa.AsaError` if no node runs, :class:`~minerva.core.errors.UsageError` if it must
    not be asked or has no address of that kind.
    """
    async with Grasp.connect(socket) as grasp:
        address, _ = await grasp.node()
    try:
        return AcpAddress(address).with_v(1).address
    except AddressError as error:
        raise UsageError(f"the node's address is of no use for a registrar: {error}") from error


class Announcer:
    """Floods where the registrar is, by the node with the API socket ``socket``, until it is cancelled.

    ``works`` tells whether the registrar can issue certificates. ``period`` is in seconds. It goes on after
    the node was restarted, and waits while there is none.
    """

    def __init__(
        self,
        socket: Path,
        address: IPv6Address,
        port: int,
        *,
        works: Callable[[], Awaitable[bool]],
        period: float = services.PERIOD,
        check: float = CHECK_SECONDS,
        reconnect: float = RECONNECT_SECONDS,
    ) -> None:
        self.announced = False
        """Whether others are told of this registrar now."""
        self.changed = asyncio.Event()
        """Set whenever that changes."""
        self._socket = socket
        self._works = works
        self._period, self._check, self._reconnect = period, check, reconnect
        factor = period / services.PERIOD
        self._offers = (
            (services.join_registrar(address, port), int(services.JOIN_REGISTRAR_TTL * factor)),
            (services.est_server(address, port), int(services.SRV_EST_TTL * factor)),
        )
        self._said: str | None = None

    async def run(self) -> None:
        """Announce for ever."""
        while True:
            try:
                async with Asa.connect(ASA_NAME, self._socket) as asa:
                    await self._announce(asa)
                self._say("not announced in the ACP: the node has ended", logging.WARNING)
            except (AsaError, UsageError) as error:
                self._say(f"not announced in the ACP: {error}", logging.WARNING)
            self._note(announced=False)
            await asyncio.sleep(self._reconnect)

    async def _announce(self, asa: Asa) -> None:
        """Announce until the connection to the node ends."""
        loop = asyncio.get_running_loop()
        for tagged, ttl in self._offers:
            # Others on this host may offer the same: a second registrar, for instance.
            await asa.register_objective(tagged.objective, ttl, overlap=True)
        due = loop.time()
        gone = loop.create_task(asa.grasp.wait_closed())
        try:
            while not gone.done():
                if not await self._works():
                    if self.announced:
                        await self._withdraw(asa)
                    due = loop.time()
                    self._say("not announced in the ACP: no certificates can be issued", logging.WARNING)
                elif loop.time() >= due:
                    for tagged, ttl in self._offers:
                        await asa.flood(ttl, tagged)
                    due = loop.time() + self._period
                    self._note(announced=True)
                    self._say("announced in the ACP", logging.INFO)
                left = due - loop.time()
                await asyncio.wait([gone], timeout=min(self._check, left) if left > 0 else self._check)
        finally:
            gone.cancel()
            if self.announced and asa.grasp.is_open:
                # If the node goes meanwhile, what it has flooded runs out by itself.
                with contextlib.suppress(AsaError):
                    await self._withdraw(asa)

    def _note(self, *, announced: bool) -> None:
        if announced != self.announced:
            self.announced = announced
            self.changed.set()

    async def _withdraw(self, asa: Asa) -> None:
        self._note(announced=False)
        for tagged, _ in self._offers:
            await asa.flood(_MOMENT, tagged)

    def _say(self, sentence: str, level: int) -> None:
        """Log ``sentence`` unless it was the last that was said."""
        if sentence != self._said:
            self._said = sentence
            log.log(level, "%s", sentence)
