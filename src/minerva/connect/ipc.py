"""How the supervisor and its children talk: one CBOR array a packet, over ``SOCK_SEQPACKET``.

A message is a frozen dataclass; its number and the types of its fields are its whole definition, and
the codec, the checks on receipt and the CDDL in ``docs/ipc.md`` all follow from them. A peer that sends
anything else is broken or hostile: :class:`IpcError`, and the supervisor restarts it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import socket
import types
import typing
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from ipaddress import IPv6Address, IPv6Network
from typing import Any, TypeVar

from minerva.core import cbor
from minerva.core.errors import DecodeError
from minerva.core.secret import Secret
from minerva.linux.process import ALL_SEALS

VERSION = 1
"""Version of the messages. Supervisor and children are one program: anything else is a mix-up."""

MAX_PACKET = 60_000
"""Largest packet in bytes; a message above that travels in a sealed memory file."""

MAX_MESSAGE = 4 << 20
"""Largest message in bytes."""

MAX_DESCRIPTORS = 8
"""Most file descriptors that come with one message."""

MAX_BACKLOG = 2_000
"""Most messages that wait for a peer that does not read; one that lets them grow to that is hung."""


class IpcError(DecodeError):
    """A message between processes of a node does not follow its definition."""


class Message:
    """Base of all messages. Each subclass is a frozen dataclass with a number of its own."""

    NUMBER: typing.ClassVar[int]


_M = TypeVar("_M", bound=type[Message])
_registry: dict[int, type[Message]] = {}


def message(number: int) -> Callable[[_M], _M]:
    """Register a message class under ``number``, which never changes its meaning."""

    def register(cls: _M) -> _M:
        if number in _registry:
            raise ValueError(f"message number {number} is taken by {_registry[number].__name__}")
        cls.NUMBER = number
        _registry[number] = cls
        return cls

    return register


def registered() -> dict[int, type[Message]]:
    """Return all message classes by number."""
    return dict(sorted(_registry.items()))


# --- from a type to its encoder and decoder ---------------------------------------------------------------


_known_fields: dict[Any, tuple[tuple[str, Any], ...]] = {}


def _fields(cls: Any) -> tuple[tuple[str, Any], ...]:
    if cls not in _known_fields:
        hints = typing.get_type_hints(cls)
        _known_fields[cls] = tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))
    return _known_fields[cls]


def _pack(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, IPv6Address):
        return value.packed
    if isinstance(value, IPv6Network):
        return [value.network_address.packed, value.prefixlen]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_pack(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_pack(getattr(value, name)) for name, _ in _fields(type(value))]
    return value


def _expect(condition: bool, what: str, value: object) -> None:
    if not condition:
        raise IpcError(f"{what}: a {type(value).__name__} is not what belongs here")


def _unpack_bytes(kind: Any, value: Any, what: str) -> Any:
    _expect(type(value) is bytes, what, value)
    if kind is IPv6Address:
        _expect(len(value) == 16, what, value)
    return value if kind is bytes else kind(value)


def _unpack(kind: Any, value: Any, what: str) -> Any:
    """Return ``value``, as it came out of CBOR, as a ``kind``; raise IpcError if it is not one."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if kind in (int, str, bool):
        _expect(type(value) is kind, what, value)
        return value
    if kind is float:
        _expect(type(value) in (int, float), what, value)
        return float(value)
    if kind in (bytes, Secret, IPv6Address):
        return _unpack_bytes(kind, value, what)
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _unpack(inner[0], value, what)
    is_array = type(value) is list
    if origin is tuple:
        _expect(is_array, what, value)
        return tuple(_unpack(typing.get_args(kind)[0], item, what) for item in value)
    if kind is IPv6Network:
        _expect(is_array and len(value) == 2, what, value)
        _expect(type(value[0]) is bytes and len(value[0]) == 16 and type(value[1]) is int, what, value)
        return _checked(lambda: IPv6Network((value[0], value[1])), what)
    if isinstance(kind, type) and issubclass(kind, Enum):
        _expect(type(value) in (int, str), what, value)
        return _checked(lambda: kind(value), what)
    if dataclasses.is_dataclass(kind):
        _expect(is_array, what, value)
        return _unpack_fields(kind, value)
    raise TypeError(f"{what}: messages cannot have fields of type {kind}")


def _checked(make: Callable[[], Any], what: str) -> Any:
    try:
        return make()
    except ValueError as error:
        raise IpcError(f"{what}: {error}") from error


def _unpack_fields(cls: Any, values: list[Any]) -> Any:
    fields = _fields(cls)
    if len(values) != len(fields):
        raise IpcError(f"{cls.__name__}: {len(values)} fields instead of {len(fields)}")
    return cls(
        *(
            _unpack(kind, value, f"{cls.__name__}.{name}")
            for (name, kind), value in zip(fields, values, strict=True)
        )
    )


def encode(item: Message) -> bytes:
    """Return ``item`` as bytes. Raises IpcError if it is too large."""
    data = cbor.dumps([item.NUMBER, *(_pack(getattr(item, name)) for name, _ in _fields(type(item)))])
    if len(data) > MAX_MESSAGE:
        raise IpcError(f"{type(item).__name__} of {len(data)} bytes, at most {MAX_MESSAGE} allowed")
    return data


def decode(data: bytes) -> Message:
    """Return the message in ``data``. Raises :class:`IpcError`."""
    try:
        items = cbor.loads(data, max_size=MAX_MESSAGE)
    except cbor.CborError as error:
        raise IpcError(str(error)) from error
    if type(items) is not list or not items or type(items[0]) is not int:
        raise IpcError("not an array that starts with the number of a message")
    cls = _registry.get(items[0])
    if cls is None:
        raise IpcError(f"there is no message {items[0]}")
    decoded = _unpack_fields(cls, items[1:])
    assert isinstance(decoded, Message)
    return decoded


# --- the definition in CDDL --------------------------------------------------------------------------------

_PLAIN = {int: "int", str: "tstr", bool: "bool", float: "float", bytes: "bstr", Any: "any"}
_PLAIN |= {Secret: "secret", IPv6Address: "ipv6-address", IPv6Network: "ipv6-prefix"}


def _cddl_type(kind: Any) -> str:
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return f"{_cddl_type(inner[0])} / null"
    if origin is tuple:
        return f"[* {_cddl_type(typing.get_args(kind)[0])}]"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " / ".join(
            f'"{item.value}"' if isinstance(item.value, str) else str(item.value) for item in kind
        )
    return f"[{_cddl_group(kind)}]"


def _cddl_group(cls: Any) -> str:
    return ", ".join(f"{name.replace('_', '-')}: {_cddl_type(kind)}" for name, kind in _fields(cls))


def cddl() -> str:
    """Return the CDDL (RFC 8610) of all registered messages."""
    lines = ["secret = bstr  ; key material: never printed", "ipv6-address = bstr .size 16"]
    lines += ["ipv6-prefix = [bstr .size 16, 0..128]", ""]
    for number, cls in registered().items():
        summary = (cls.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("    ", "").strip()
        group = _cddl_group(cls)
        lines += [f"; {summary}", f"{cls.__name__} = [{number}{', ' if group else ''}{group}]", ""]
    return "\n".join(lines).rstrip() + "\n"


# --- the socket --------------------------------------------------------------------------------------------


class Ipc:
    """One end of a connection between two processes of a node, in an asyncio event loop.

    ``on_message(message, descriptors)`` owns the descriptors it gets. ``on_close(error)`` is called once,
    with ``None`` when the peer has gone and with the reason when it broke the rules or hangs.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_close: Callable[[IpcError | None], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_close = on_close
        self._backlog: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._open = True

    def send(self, item: Message, descriptors: Sequence[int] = ()) -> None:
        """Send ``item`` with copies of ``descriptors``, which stay the caller's. Never blocks."""
        if not self._open:
            return
        data = encode(item)
        if len(data) > MAX_PACKET:
            body = _sealed(data)
            self._queue(_BODY_FOLLOWS, [body, *descriptors])
            os.close(body)
        else:
            self._queue(data, descriptors)

    def _queue(self, data: bytes, descriptors: Sequence[int]) -> None:
        if not self._backlog and self._transmit(data, descriptors):
            return
        if len(self._backlog) >= MAX_BACKLOG:
            self._fail(IpcError(f"{MAX_BACKLOG} messages wait for a process that does not read"))
            return
        if not self._backlog:
            self._loop.add_writer(self._socket, self._writable)
        self._backlog.append((data, [os.dup(descriptor) for descriptor in descriptors]))

    def _transmit(self, data: bytes, descriptors: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._socket, [data], list(descriptors))
        except BlockingIOError:
            return False
        except OSError:
            self._fail(None)
        return True

    def _writable(self) -> None:
        while self._open and self._backlog:
            data, descriptors = self._backlog[0]
            if not self._transmit(data, descriptors):
                return
            if self._open:
                self._backlog.popleft()
                _close_all(descriptors)
        if self._open:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        for _ in range(64):  # then others have their turn
            if not self._open:
                return
            try:
                data, descriptors, flags, _ = socket.recv_fds(
                    self._socket, MAX_PACKET + 1, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                self._fail(None)
                return
            if not data:
                self._fail(None)
                return
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise IpcError("a message is too large or has too many descriptors")
                if data == _BODY_FOLLOWS:
                    data = _unsealed(descriptors)
                received = decode(data)
            except IpcError as error:
                _close_all(descriptors)
                self._fail(error)
                return
            self._on_message(received, descriptors)

    def _fail(self, error: IpcError | None) -> None:
        if self._open:
            self.close()
            self._on_close(error)

    def close(self) -> None:
        """Close this end; ``on_close`` is not called any more."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        if self._backlog:
            self._loop.remove_writer(self._socket)
            for _, descriptors in self._backlog:
                _close_all(descriptors)
            self._backlog.clear()
        self._socket.close()


_BODY_FOLLOWS = cbor.dumps([0])


def _sealed(data: bytes) -> int:
    body = os.memfd_create("minerva-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(body, data)
    fcntl.fcntl(body, fcntl.F_ADD_SEALS, ALL_SEALS)
    return body


def _unsealed(descriptors: list[int]) -> bytes:
    """Return the message in the first of ``descriptors``, which is closed and removed from the list."""
    if not descriptors:
        raise IpcError("a message without the memory file that holds it")
    body = descriptors.pop(0)
    try:
        # Without its seals the sender could change it, or cut it off, while we read.
        if fcntl.fcntl(body, fcntl.F_GET_SEALS) & ALL_SEALS != ALL_SEALS:
            raise IpcError("a message in a memory file that is not sealed")
        if (size := os.fstat(body).st_size) > MAX_MESSAGE:
            raise IpcError(f"a message of {size} bytes, at most {MAX_MESSAGE} allowed")
        return os.pread(body, size, 0)
    except OSError as error:
        raise IpcError(f"a message in something that is not a memory file: {error.strerror}") from error
    finally:
        os.close(body)


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends for :class:`Ipc`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
