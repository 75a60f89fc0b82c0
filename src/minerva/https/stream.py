"""Streams of bytes over TCP, with and without TLS.

A stream belongs to one task that reads and one that writes, which may be the same. A read or a write that is
cancelled or times out loses and doubles no byte: data leaves the socket only when somebody takes it, and
what has been said but not sent is sent by the next write.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, Self

from cryptography import x509
from OpenSSL import SSL

from minerva.core.text import printable
from minerva.https.errors import HttpClosed, HttpTimeout, HttpUsageError, NotTrustedError, StreamError
from minerva.pki.certificates import dump_pem
from minerva.pki.keys import PrivateKey, dump_private_key
from minerva.tls.connection import TlsConnection
from minerva.tls.errors import TlsError

HANDSHAKE_SECONDS = 20.0
"""How long connecting and the TLS handshake may take, in seconds, if nothing else is said."""

CLOSE_SECONDS = 2.0
"""How long the last bytes may take when a stream is closed, in seconds."""

_RECORDS = 65_536  # bytes: what is read, or encrypted, at a time


class ByteStream(Protocol):
    """A connection. Every method raises :class:`~minerva.https.errors.HttpError` at most."""

    async def read(self, limit: int = _RECORDS) -> bytes:
        """Return the next bytes, at least one and at most ``limit``; ``b""`` at the end."""

    async def write(self, data: bytes) -> None:
        """Send ``data``; return when the system has taken it."""

    async def close(self) -> None:
        """Close the connection, and tell the peer so. Never raises, also when it is closed already."""


class TcpStream:
    """A TCP socket, which may still be connecting. It belongs to the stream from now on.

    ``deadline``, if there is one, is when waiting for the peer ends, by the loop's clock: what waits then
    raises :class:`HttpTimeout`. What has come already can be read all the same.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # not a TCP socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.deadline: float | None = None
        self._socket = sock
        self._descriptor = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._watched = False
        self._arrived = b""
        self._ended = False
        self._failure: OSError | None = None

    @property
    def closed(self) -> bool:
        """Whether we have closed it."""
        return self._socket.fileno() < 0

    async def read(self, limit: int = _RECORDS) -> bytes:
        """Return the next bytes, at most ``limit``; ``b""`` at the end."""
        self._expect_open()
        while not self._arrived:
            if self._failure is not None:
                raise StreamError(f"the connection broke: {_reason(self._failure)}") from self._failure
            if self._ended:
                return b""
            await self._readable()
            self._expect_open()
        data, self._arrived = self._arrived[:limit], self._arrived[limit:]
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        await self.flush(bytearray(data))

    async def flush(self, rest: bytearray) -> None:
        """Send and remove what is in ``rest``, which holds at any time what has not been sent."""
        while rest:
            self._expect_open()
            try:
                del rest[: self._socket.send(rest)]
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                raise StreamError(f"the connection broke: {_reason(error)}") from error

    async def close(self) -> None:
        """Close the socket."""
        self.abort()

    def abort(self) -> None:
        """Close the socket at once."""
        if not self.closed:
            if self._watched:
                self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._watched = False
            self._socket.close()
            # Who still waits is told by _expect_open.
            _wake(self._reader)
            _wake(self._writer)

    def shutdown(self) -> None:
        """Tell the peer that nothing more comes from us; it may go on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def _readable(self) -> None:
        self._reader = self._loop.create_future()
        if not self._watched:
            self._loop.add_reader(self._descriptor, self._has_come)
            self._watched = True
        await self._until(self._reader)

    def _has_come(self) -> None:
        """Take what has come. Watching goes on until something comes while the last has not been read."""
        if not self._arrived:
            try:
                self._arrived = self._socket.recv(_RECORDS)
            except BlockingIOError:
                return
            except OSError as error:
                self._failure = error
            else:
                self._ended = not self._arrived
            _wake(self._reader)
            if self._arrived:
                return
        self._loop.remove_reader(self._descriptor)
        self._watched = False

    async def _writable(self) -> None:
        self._writer = self._loop.create_future()
        self._loop.add_writer(self._descriptor, _wake, self._writer)
        try:
            await self._until(self._writer)
        finally:
            if not self.closed:
                self._loop.remove_writer(self._descriptor)

    async def _until(self, ready: asyncio.Future[None]) -> None:
        """Wait until ``ready``, at most until the deadline."""
        if self.deadline is None:
            await ready
            return
        timer = self._loop.call_at(self.deadline, _give_up, ready)
        try:
            await ready
        finally:
            timer.cancel()

    def _expect_open(self) -> None:
        if self.closed:
            raise StreamError("the connection is closed")


def _wake(ready: asyncio.Future[None] | None) -> None:
    if ready is not None and not ready.done():
        ready.set_result(None)


def _give_up(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_exception(HttpTimeout("the peer took too long"))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class TlsStream:
    """TLS on a TCP socket, by :class:`~minerva.tls.connection.TlsConnection`.

    Nobody checks the peer here: whoever uses the stream looks at :attr:`peer_chain`.
    """

    def __init__(self, transport: TcpStream, connection: TlsConnection) -> None:
        self.transport = transport
        self.connection = connection
        self._heard = False
        self._plaintext = bytearray()
        self._to_send = bytearray()
        self._flushing = asyncio.Lock()

    @classmethod
    async def client(
        cls,
        sock: socket.socket,
        context: SSL.Context,
        *,
        server_name: str | None = None,
        timeout: float = HANDSHAKE_SECONDS,
    ) -> Self:
        """Return a stream whose handshake is done, as the client, on a socket that may still be connecting.

        ``server_name`` is the DNS name for SNI; a pledge sends none (RFC 8995 errata 6648). The socket is
        closed if anything fails. Raises :class:`StreamError` and :class:`HttpTimeout`.
        """
        connection = TlsConnection(context, server_side=False, server_name=server_name)
        return await cls._shake(sock, connection, timeout)

    @classmethod
    async def server(
        cls,
        sock: socket.socket,
        context: SSL.Context,
        *,
        timeout: float = HANDSHAKE_SECONDS,
    ) -> Self:
        """Return a stream whose handshake is done, as the server; else as :meth:`client`."""
        return await cls._shake(sock, TlsConnection(context, server_side=True), timeout)

    @classmethod
    async def _shake(cls, sock: socket.socket, connection: TlsConnection, timeout: float) -> Self:
        transport = TcpStream(sock)
        transport.deadline = asyncio.get_running_loop().time() + timeout
        stream = cls(transport, connection)
        try:
            await stream._handshake()
        except HttpTimeout as error:
            transport.abort()
            raise HttpTimeout(f"the connection and its TLS handshake took more than {timeout:g} s") from error
        except BaseException:
            transport.abort()
            raise
        transport.deadline = None
        return stream

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """The certificates that the peer sent, its own first; empty if it has none."""
        return self.connection.peer_chain

    async def read(self, limit: int = _RECORDS) -> bytes:
        """Return the next bytes, at most ``limit``; ``b""`` when the peer says that no more comes."""
        while not self._plaintext:
            self._plaintext += self.connection.read()
            if self._plaintext:
                break
            if self.connection.closed_by_peer:
                return b""
            await self._receive()
        data = bytes(self._plaintext[:limit])
        del self._plaintext[:limit]
        return data

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        for start in range(0, len(data), _RECORDS):
            await self._flush()
            self._do(self.connection.write, data[start : start + _RECORDS])
        await self._flush()

    async def close(self) -> None:
        """Tell the peer that nothing more comes, and close the socket."""
        if self.transport.closed:
            return
        try:
            await self.say_goodbye()
        finally:
            self.transport.abort()

    async def say_goodbye(self) -> None:
        """Tell the peer that nothing more comes from us. Never raises."""
        self.connection.close()
        self.transport.deadline = asyncio.get_running_loop().time() + CLOSE_SECONDS
        with suppress(StreamError, HttpTimeout):
            await self._flush()

    async def _handshake(self) -> None:
        await self._flush()
        while not self.connection.handshake_done:
            await self._receive()
        self.connection.admit_unchecked()

    async def _receive(self) -> None:
        """Take what comes next from the transport."""
        data = await self.transport.read()
        if not data:
            if not self._heard:
                raise HttpClosed("the peer closed the connection in the TLS handshake, without a word")
            said = "in the TLS handshake" if not self.connection.handshake_done else "in the middle"
            raise StreamError(f"the peer closed the connection {said}")
        self._heard = True
        try:
            self._do(self.connection.receive, data)
        except StreamError:
            # The alert; whether it arrives changes nothing.
            with suppress(StreamError, HttpTimeout):
                await self._flush()
            raise
        await self._flush()

    def _do(self, step: Callable[[bytes], None], data: bytes) -> None:
        try:
            step(data)
        except TlsError as error:
            raise StreamError(str(error)) from error

    async def _flush(self) -> None:
        # One at a time, or records would change places.
        async with self._flushing:
            self._to_send += self.connection.data_to_send()
            await self.transport.flush(self._to_send)


class WebStream:
    """A stream of the standard library's TLS, whose server has been checked; made by :func:`web_stream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str) -> None:
        self._reader = reader
        self._writer = writer
        self._who = who

    async def read(self, limit: int = _RECORDS) -> bytes:
        """Return the next bytes, at most ``limit``; ``b""`` at the end."""
        try:
            return await self._reader.read(limit)
        except OSError as error:
            raise _broken(self._who, error) from error

    async def write(self, data: bytes) -> None:
        """Send ``data``."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise _broken(self._who, error) from error

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except OSError:  # TimeoutError as well
            self._writer.transport.abort()
        except BaseException:
            self._writer.transport.abort()
            raise


async def web_stream(
    host: str,
    port: int,
    *,
    anchors: Sequence[x509.Certificate] | Literal["web"] | None = "web",
    certificate: x509.Certificate | None = None,
    chain: Sequence[x509.Certificate] = (),
    key: PrivateKey | None = None,
    timeout: float = HANDSHAKE_SECONDS,
    sock: socket.socket | None = None,
) -> WebStream:
    """Connect to a server of the web and check that it is ``host``, a DNS name or an IP address.

    Its certificate must have a path to one of ``anchors`` (``"web"`` or ``None``: to what this system trusts)
    and hold the name as dNSName, or the address as iPAddress. A name is sent as SNI, as RFC 8995 errata 6642
    wants it. ``certificate``, its ``chain`` and ``key`` are ours, for servers that ask for one. ``sock`` is
    connected with the server already, through a proxy; it belongs to the stream from now on.

    Raises :class:`NotTrustedError` if the server fails the check, :class:`HttpTimeout` and
    :class:`StreamError`.
    """
    who = host_and_port(host, port)
    context = _web_context(anchors)
    if certificate is not None:
        if key is None:
            raise HttpUsageError("a client's certificate is of no use without its key")
        _load_certificate(context, (certificate, *chain), key)
    host = host.strip("[]")
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(
                **_where(host, port, sock),
                ssl=context,
                server_hostname=host,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )
    except ssl.SSLCertVerificationError as error:
        raise NotTrustedError(f"{who} is not trusted: {_verdict(host, error)}") from error
    except TimeoutError as error:
        raise HttpTimeout(f"{who} could not be reached within {timeout:g} s") from error
    except OSError as error:
        raise _broken(who, error) from error
    except ValueError as error:
        raise HttpUsageError(f"{printable(host)} is not the name of a server: {error}") from error
    return WebStream(reader, writer, who)


def _where(host: str, port: int, sock: socket.socket | None) -> dict[str, Any]:
    """Return what tells asyncio whither: a socket, or a name whose addresses are tried as in RFC 8305."""
    return {"host": host, "port": port, "happy_eyeballs_delay": 0.25} if sock is None else {"sock": sock}


def host_and_port(host: str, port: int, default: int = 443) -> str:
    """Return both as in a URL and in the field ``Host``: ``name``, ``name:8443``, ``[2001:db8::1]:8443``."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return printable(name if port == default else f"{name}:{port}")


def _web_context(anchors: Sequence[x509.Certificate] | Literal["web"] | None) -> ssl.SSLContext:
    # Not create_default_context: since Python 3.13 that demands extensions that manufacturers' CAs may lack.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if anchors is None or anchors == "web":
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    if not anchors:
        raise HttpUsageError("there is no trust anchor to check the server by")
    assert not isinstance(anchors, str)
    context.load_verify_locations(cadata=dump_pem(anchors).decode("ascii"))
    # An anchor is what we say is one, root or not.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_certificate(context: ssl.SSLContext, chain: Sequence[x509.Certificate], key: PrivateKey) -> None:
    """Make ``context`` show ``chain``. The library takes files only: this one exists in memory alone."""
    file = os.memfd_create("minerva-client", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as memory:
            memory.write(dump_private_key(key) + dump_pem(chain))
        context.load_cert_chain(f"/proc/self/fd/{file}")
    except (ssl.SSLError, OSError) as error:
        raise HttpUsageError(f"TLS cannot use the client's certificate and key: {error}") from error
    finally:
        os.close(file)


_VERDICTS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is self-signed and none of the trust anchors",
    19: "no trust anchor has issued its certificate (the chain ends in a root that is none of them)",
    20: "no trust anchor has issued its certificate",
    21: "no trust anchor has issued its certificate",
    23: "its certificate is revoked",
    62: "its certificate is for another name than {host}",
    64: "its certificate is not for the address {host}",
}


def _verdict(host: str, error: ssl.SSLCertVerificationError) -> str:
    verdict = _VERDICTS.get(error.verify_code)
    return verdict.format(host=printable(host)) if verdict else printable(error.verify_message)


def _broken(who: str, error: OSError) -> StreamError:
    if isinstance(error, ssl.SSLError):
        text = f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    elif error.errno and (error.strerror or "").startswith("Connect call failed"):
        text = os.strerror(error.errno)  # asyncio's own text is the address once more
    else:
        text = error.strerror or str(error)
    return StreamError(f"no connection with {who}: {printable(text)}")
