"""One TLS connection, as bytes in and bytes out.

::

    connection = TlsConnection(context, server_side=...)
    send(connection.data_to_send())              a client's first flight
    for each piece that arrives:
        connection.receive(piece)
        send(connection.data_to_send())
        if connection.handshake_done and connection.member is None:
            check_peer(connection, identity, when=...)
        connection.read()                        b"" until the peer has been admitted

The handshake proves that the peer owns the key of the certificate at the head of ``peer_chain``: rule 1 of
the membership check (RFC 8994 section 6.2.3). Rules 2 to 4 are checked by
:func:`minerva.tls.membership.check_peer`, which admits the peer; until then no byte of the application
passes in either direction.

Where the peer need not be a member, as in enrolment, the owner judges ``peer_chain`` by itself and calls
:meth:`TlsConnection.admit_unchecked` instead; ``member`` stays ``None``.

What a peer can make us keep is bounded: :data:`MAX_HANDSHAKE_SIZE` before the handshake is done,
:data:`MAX_BACKLOG` of what is not read and not sent. How long it may take is for the owner to bound.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, NoReturn

from cryptography import x509
from OpenSSL import SSL, crypto

from minerva.pki.certificates import load_certificate
from minerva.pki.errors import CertificateError
from minerva.pki.membership import Member
from minerva.pki.path import MAX_CERTIFICATES
from minerva.tls.context import reason
from minerva.tls.errors import TlsError, TlsPeerError, TlsRefusedError, TlsUsageError
from minerva.tls.library import clear_errors

MAX_HANDSHAKE_SIZE: Final = 131_072
"""The most bytes that a peer may send before the handshake is done. Of these the library lets 100 KiB be
certificates."""

MAX_BACKLOG: Final = 262_144
"""How many bytes may wait to be read, and to be sent, before more is taken."""

_CHUNK = 16_384  # the most that a record holds
_ALERT = re.compile(r"(?:sslv3|tlsv1|tlsv13|ssl/tls|tls) alert (.+)")


class TlsConnection:
    """One end of a connection.

    ``server_name`` is the DNS name that a client asks for, if any. An address is none (RFC 6066 section 3).

    Every method raises :class:`TlsError` at most, whatever the peer sends: :class:`TlsPeerError` and
    :class:`TlsRefusedError` end the connection.
    """

    def __init__(self, context: SSL.Context, *, server_side: bool, server_name: str | None = None) -> None:
        self.server_side = server_side
        self.handshake_done = False
        self.peer_chain: tuple[x509.Certificate, ...] = ()
        """The certificates that the peer sent, its own first. Nobody has checked them."""
        self.member: Member | None = None
        """Who the peer is, once it has been admitted."""
        self.closed_by_peer = False
        """Whether the peer said that nothing more comes. If the transport ends without that, somebody may
        have cut off what was still to come."""
        self.version: str | None = None
        """``TLSv1.3`` or ``TLSv1.2``, once the handshake is done; likewise cipher and group."""
        self.cipher: str | None = None
        self.group: str | None = None
        self._received = 0
        self._plaintext = bytearray()
        self._to_send = bytearray()
        self._admitted = False
        self._over: str | None = None
        self._ssl: SSL.Connection | None = SSL.Connection(context, None)
        if server_side:
            if server_name is not None:
                raise TlsUsageError("a server asks for no name")
            self._ssl.set_accept_state()
        else:
            if server_name is not None:
                self._ssl.set_tlsext_host_name(_host_name(server_name))
            self._ssl.set_connect_state()
            self._advance(self._ssl)

    @property
    def closed(self) -> bool:
        """Whether the connection is over: closed by us, or failed."""
        return self._ssl is None

    def receive(self, data: bytes) -> None:
        """Take bytes that came from the transport. After :meth:`close` they are dropped.

        Raises :class:`TlsPeerError` and :class:`TlsRefusedError`, and :class:`TlsUsageError` if too much
        waits to be read or sent, or if the connection has failed before.
        """
        ssl = self._ssl
        if ssl is None:
            if self._over is not None:
                raise TlsUsageError(f"the connection is over: {self._over}")
            return
        if self.closed_by_peer or not data:
            return
        if len(self._plaintext) > MAX_BACKLOG:
            raise TlsUsageError(f"{len(self._plaintext)} bytes wait to be read; read them first")
        self._expect_room()
        try:
            ssl.bio_write(data)
        except SSL.Error as error:
            self._fail(error)
        if not self.handshake_done:
            self._received += len(data)
        self._advance(ssl)
        if not self.handshake_done and self._received > MAX_HANDSHAKE_SIZE:
            self._end(TlsPeerError(f"more than {MAX_HANDSHAKE_SIZE} bytes, and the handshake is not done"))

    def data_to_send(self) -> bytes:
        """Return, and forget, the bytes for the transport. Never raises, also when all is over."""
        data = bytes(self._to_send)
        self._to_send.clear()
        return data

    def read(self) -> bytes:
        """Return, and forget, what the peer said: nothing before it is admitted."""
        if not self._admitted:
            return b""
        data = bytes(self._plaintext)
        self._plaintext.clear()
        return data

    def write(self, data: bytes) -> None:
        """Say ``data`` to the peer.

        Raises :class:`TlsUsageError` if the peer is not admitted, if the connection is over, or if too much
        waits to be sent.
        """
        ssl = self._ssl
        if ssl is None:
            raise TlsUsageError(f"the connection is over: {self._over or 'we closed it'}")
        if not self._admitted:
            raise TlsUsageError("the peer has not passed the membership check yet")
        self._expect_room()
        if not data:
            return
        clear_errors()
        try:
            ssl.sendall(data)
        except SSL.Error as error:
            self._fail(error)
        self._drain(ssl)

    def admit(self, member: Member) -> None:
        """Let the bytes of the application pass; for :func:`minerva.tls.membership.check_peer` alone.

        Raises :class:`TlsUsageError` if ``member`` is not the peer.
        """
        if not self.handshake_done or self.peer_chain[:1] != (member.certificate,):
            raise TlsUsageError(f"{member.node_name} is not who has been proved to be the peer")
        self.member = member
        self._admitted = True

    def admit_unchecked(self) -> None:
        """Let the bytes of the application pass, whoever the peer is.

        For enrolment alone (RFC 8995 section 5.1): a pledge talks to a registrar that it cannot check yet,
        and a registrar to pledges that are not members. What they say is judged by other proof.

        Raises :class:`TlsUsageError` before the handshake is done.
        """
        if not self.handshake_done:
            raise TlsUsageError("nobody can be admitted before the handshake is done")
        self._admitted = True

    def refuse(self) -> None:
        """Close the connection, and deliver nothing of what is left; for ``check_peer`` as well."""
        self.member = None
        self._admitted = False
        self.close()

    def close(self) -> None:
        """Tell the peer that nothing more comes, and want nothing more of it. Harmless when it is over."""
        ssl = self._ssl
        if ssl is None:
            return
        clear_errors()
        # In the middle of a handshake there is nothing to be closed.
        with suppress(SSL.Error):
            ssl.shutdown()
        self._drain(ssl)
        self._release()

    def _advance(self, ssl: SSL.Connection) -> None:
        """Take all that can be taken from what has arrived."""
        try:
            if not self.handshake_done:
                clear_errors()
                ssl.do_handshake()
                self._complete(ssl)
            while True:
                clear_errors()
                self._plaintext += ssl.recv(_CHUNK)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            if not self.handshake_done:
                self._end(TlsRefusedError("close notify"))
            self.closed_by_peer = True
        except SSL.Error as error:
            self._fail(error)
        self._drain(ssl)

    def _complete(self, ssl: SSL.Connection) -> None:
        self.version = ssl.get_protocol_version_name()
        self.cipher = ssl.get_cipher_name()
        try:
            self.group = ssl.get_group_name()
        except NotImplementedError:
            # OpenSSL before 3.2 does not tell.
            self.group = None
        try:
            self.peer_chain = _peer_chain(ssl)
        except (CertificateError, crypto.Error) as error:
            self._end(TlsPeerError(f"the peer's certificates cannot be read: {error}"))
        self.handshake_done = True

    def _expect_room(self) -> None:
        if len(self._to_send) > MAX_BACKLOG:
            raise TlsUsageError(f"{len(self._to_send)} bytes wait to be sent; send them first")

    def _drain(self, ssl: SSL.Connection) -> None:
        try:
            while True:
                self._to_send += ssl.bio_read(_CHUNK)
        except SSL.Error:
            # The library's way to say that there is nothing left.
            clear_errors()

    def _fail(self, error: SSL.Error) -> NoReturn:
        text = reason(error)
        alert = _ALERT.match(text)
        self._end(TlsRefusedError(alert[1]) if alert else TlsPeerError(f"TLS: {text}"))

    def _end(self, error: TlsError) -> NoReturn:
        self._over = str(error)
        if self._ssl is not None:
            self._drain(self._ssl)
        self._release()
        raise error

    def _release(self) -> None:
        # Frees what the library keeps, which is far more than this object does, whoever still holds it.
        self._ssl = None


def _peer_chain(ssl: SSL.Connection) -> tuple[x509.Certificate, ...]:
    leaf = ssl.get_peer_certificate()
    if leaf is None:
        return ()
    others = ssl.get_peer_cert_chain() or ()
    # Before anything is done with them: to read a certificate costs more than to send it.
    if len(others) > MAX_CERTIFICATES:
        raise CertificateError(f"{len(others)} certificates, at most {MAX_CERTIFICATES} are accepted")
    chain = [_der(leaf), *map(_der, others)]
    # A client gets the leaf in the chain as well, a server does not.
    if len(chain) > 1 and chain[1] == chain[0]:
        del chain[0]
    return tuple(load_certificate(der) for der in chain)


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _host_name(name: str) -> bytes:
    try:
        ip_address(name)
    except ValueError:
        pass
    else:
        raise TlsUsageError(f"{name} is an address, and a client asks for a name")
    if not name or not name.isascii() or not name.isprintable():
        raise TlsUsageError(f"{name!a} is not a DNS name")
    return name.encode("ascii")
