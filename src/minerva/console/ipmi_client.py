"""Drives a session with a BMC on a UDP socket in asyncio."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final, cast

from minerva.console.backends.base import (
    CONNECT_SECONDS,
    BackendError,
    Dialer,
    SystemDialer,
    read_password,
    why,
)
from minerva.console.ipmi import (
    COMPLETION,
    NETFN_APP,
    NETFN_CHASSIS,
    Answer,
    Ended,
    IpmiError,
    LoggedIn,
    Privilege,
    Session,
    SolPayload,
)
from minerva.console.port_config import IpmiPort, IpmiPower
from minerva.console.sol import Sol, SolDecodeError
from minerva.core.text import printable, shortened

GET_CHASSIS_STATUS: Final = 0x01
CHASSIS_CONTROL: Final = 0x02
GET_SESSION_INFO: Final = 0x3D
GET_USER_NAME: Final = 0x46
ACTIVATE_PAYLOAD: Final = 0x48
DEACTIVATE_PAYLOAD: Final = 0x49
GET_PAYLOAD_INSTANCE_INFO: Final = 0x4B

ALREADY_ACTIVE: Final = 0x80
_SOL: Final = b"\x01\x01"  # type of payload and instance
_ENCRYPTED_AND_AUTHENTICATED: Final = 0xC0
_ACTIVATION: Final = {
    0x81: "the BMC has Serial over LAN turned off for this user or channel",
    0x82: "the BMC has no room for one more session of Serial over LAN",
    0x83: "the BMC does not encrypt Serial over LAN: allow that there",
}


class Refused(BackendError):
    """The BMC does not do what a command asks for; the session is well."""

    def __init__(self, what: str, code: int) -> None:
        reason = COMPLETION.get(code, f"completion code {code:#04x}")
        super().__init__(f"the BMC refuses {what}: {reason}")
        self.code = code


class IpmiClient(asyncio.DatagramProtocol):
    """A session with a BMC. Everything raises BackendError at most."""

    def __init__(self, settings: IpmiPort | IpmiPower, dialer: Dialer | None = None) -> None:
        self._settings = settings
        self._dialer = dialer or SystemDialer()
        self._session: Session | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._logged_in: asyncio.Future[None] | None = None
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._sol: Sol | None = None
        self._on_sol: Callable[[bytes], None] | None = None
        self._unreachable = ""
        self.ended: str | None = None
        """Why the session is over."""
        self.suite = 0
        """The number of the cipher suite."""

    @property
    def where(self) -> str:
        """The BMC's address, fit for a terminal."""
        port = "" if self._settings.port == 623 else f" port {self._settings.port}"
        return f"{printable(self._settings.host)}{port}"

    async def open(self) -> None:
        """Log in."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        try:
            self._session = Session(
                settings.user,
                read_password(settings.password_file),
                privilege=Privilege[settings.privilege.upper()],
                random=os.urandom,
            )
        except IpmiError as error:
            raise BackendError(str(error)) from error
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await self._dialer.datagram(settings.host, settings.port)
        except TimeoutError as error:
            raise BackendError(f"the address of the BMC {self.where} is not found in time") from error
        except OSError as error:
            raise BackendError(f"the BMC {self.where} cannot be reached: {why(error)}") from error
        self.ended, self._unreachable = None, ""
        self._logged_in = loop.create_future()
        await loop.create_datagram_endpoint(lambda: self, sock=sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self._session.start(loop.time())
        self._turn()
        try:
            await self._logged_in
        except BaseException:
            self.close()
            raise

    async def command(self, netfn: int, command: int, data: bytes, what: str) -> bytes:
        """Return the BMC's answer to a command; ``what`` says what for. Raises Refused."""
        session = self._session
        if session is None or self.ended is not None:
            raise BackendError(self.ended or f"there is no session with the BMC {self.where}")
        loop = asyncio.get_running_loop()
        token = session.command(netfn, command, data, loop.time())
        future: asyncio.Future[Answer] = loop.create_future()
        self._answers[token] = future
        self._turn()
        try:
            answer = await future
        finally:
            self._answers.pop(token, None)
        if answer.code:
            raise Refused(what, answer.code)
        return answer.data

    def close(self) -> None:
        """End the session; the BMC is told so."""
        if self._session is not None:
            self._session.close()
            self._turn()
            self._session = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # -- Serial over LAN

    async def activate_sol(self, on_data: Callable[[bytes], None], *, take_over: bool) -> None:
        """Have the console's characters handed to ``on_data``, which gets ``b""`` when no more come.

        If another session has it already, that one is ended with ``take_over``; else the error says whose.
        """
        try:
            answer = await self._activate()
        except Refused as error:
            if error.code != ALREADY_ACTIVE:
                raise
            holder = await self.sol_holder()
            if not take_over:
                raise BackendError(
                    f"{holder} has Serial over LAN of the BMC {self.where}: end that, or set take_over"
                ) from error
            await self.deactivate_sol()
            answer = await self._activate()
        # To the BMC: how much it takes at once, without the four bytes before the characters.
        size = int.from_bytes(answer[4:6], "little") - 4 if len(answer) >= 6 else 0
        self._sol, self._on_sol = Sol(size if size > 0 else 64), on_data

    async def deactivate_sol(self) -> None:
        """End Serial over LAN, whosever it is."""
        try:
            await self.command(
                NETFN_APP, DEACTIVATE_PAYLOAD, _SOL + bytes(4), "to end another one's Serial over LAN"
            )
        except Refused as error:
            if error.code != ALREADY_ACTIVE:  # here that means: not active
                raise

    async def holds_sol(self) -> bool:
        """Ask the BMC whether Serial over LAN is still ours. This also keeps the session alive."""
        answer = await self._instance()
        session = self._session
        return session is not None and answer == session.session_id

    async def sol_holder(self) -> str:
        """Return who has Serial over LAN, as far as the BMC tells."""
        try:
            session = await self._instance()
            info = await self.command(
                NETFN_APP, GET_SESSION_INFO, b"\xff" + session.to_bytes(4, "little"), "to say who that is"
            )
        except Refused:
            return "another session"
        if len(info) < 6:
            return "another session"
        where = f" from {IPv4Address(info[6:10])}" if len(info) >= 18 and any(info[6:10]) else ""
        return f"{await self._user_name(info[3] & 0x3F)}{where}"

    def send_sol(self, data: bytes) -> None:
        """Send characters to the machine."""
        if self._sol is not None:
            self._sol.send(data, asyncio.get_running_loop().time())
            self._turn()

    def send_sol_break(self) -> None:
        """Send a break to the machine, after all characters so far."""
        if self._sol is not None:
            self._sol.send_break(asyncio.get_running_loop().time())
            self._turn()

    @property
    def sol_waiting(self) -> int:
        """How many characters the BMC has not taken yet."""
        return 0 if self._sol is None else self._sol.waiting

    @property
    def sol_dropped(self) -> int:
        """How many characters the BMC did not want."""
        return 0 if self._sol is None else self._sol.dropped

    async def _activate(self) -> bytes:
        data = _SOL + bytes([_ENCRYPTED_AND_AUTHENTICATED, 0, 0, 0])
        try:
            return await self.command(NETFN_APP, ACTIVATE_PAYLOAD, data, "Serial over LAN")
        except Refused as error:
            if error.code in _ACTIVATION:
                raise BackendError(_ACTIVATION[error.code]) from error
            raise

    async def _instance(self) -> int:
        """Return the number of the session that has Serial over LAN; 0 if none has."""
        answer = await self.command(
            NETFN_APP, GET_PAYLOAD_INSTANCE_INFO, _SOL, "to say who has Serial over LAN"
        )
        return int.from_bytes(answer[:4], "little")

    async def _user_name(self, number: int) -> str:
        try:
            name = await self.command(NETFN_APP, GET_USER_NAME, bytes([number]), "a user's name")
        except Refused:
            return f"user {number}"
        text = name.rstrip(b"\0").decode("utf-8", "replace")
        return shortened(text, 32) if text else f"user {number}"

    # -- power

    async def power_is_on(self) -> bool:
        """Return whether the machine is on."""
        answer = await self.command(
            NETFN_CHASSIS, GET_CHASSIS_STATUS, b"", "to say whether the machine is on"
        )
        if not answer:
            raise BackendError(f"the BMC {self.where} does not say whether the machine is on")
        return bool(answer[0] & 1)

    async def control_chassis(self, control: int) -> None:
        """Switch the machine (IPMI 2.0 table 28-4)."""
        await self.command(NETFN_CHASSIS, CHASSIS_CONTROL, bytes([control]), "to switch the machine")

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # asyncio's own is no subclass of what it is declared to be.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002  # connected
        """Take a datagram."""
        if self._session is not None:
            self._session.receive(data, asyncio.get_running_loop().time())
            self._turn()

    def error_received(self, exc: Exception) -> None:
        """Remember what the network says; the datagram is sent again anyway."""
        if isinstance(exc, OSError):
            self._unreachable = why(exc)

    def _turn(self) -> None:
        """Send what is to be sent, take the events, and set the timer."""
        session = self._session
        if session is None:
            return
        while (event := session.next_event()) is not None:
            match event:
                case LoggedIn():
                    self.suite = event.suite
                    if self._logged_in is not None and not self._logged_in.done():
                        self._logged_in.set_result(None)
                case Answer():
                    if (future := self._answers.get(event.token)) is not None and not future.done():
                        future.set_result(event)
                case SolPayload():
                    self._take_sol(event.data)
                case Ended():
                    self._has_ended(event.reason)
        if self._sol is not None:
            for payload in self._sol.payloads_to_send():
                session.send_sol(payload)
            if self._sol.ended is not None:
                self._has_ended(self._sol.ended)
        if self._transport is not None:
            for datagram in session.datagrams_to_send():
                self._transport.sendto(datagram)
        self._set_timer(session)

    def _take_sol(self, payload: bytes) -> None:
        if self._sol is None or self._on_sol is None:
            return
        try:
            data = self._sol.receive(payload, asyncio.get_running_loop().time())
        except SolDecodeError:
            return
        if data:
            self._on_sol(data)

    def _has_ended(self, reason: str) -> None:
        if self.ended is not None:
            return
        network = f" ({self._unreachable})" if self._unreachable else ""
        self.ended = f"BMC {self.where}: {reason}{network}"
        if self._logged_in is not None and not self._logged_in.done():
            self._logged_in.set_exception(BackendError(self.ended))
        for future in self._answers.values():
            if not future.done():
                future.set_exception(BackendError(self.ended))
        if self._on_sol is not None:
            self._on_sol(b"")

    def _set_timer(self, session: Session) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        timers = [session.next_timer(), None if self._sol is None else self._sol.next_timer()]
        due = min((timer for timer in timers if timer is not None), default=None)
        if due is not None and self.ended is None:
            self._handle = asyncio.get_running_loop().call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._session is not None:
            self._session.on_timer(now)
            if self._sol is not None:
                self._sol.on_timer(now)
            self._turn()
