"""What can go wrong between an HTTP client or server and its peer."""

from __future__ import annotations

from minerva.core.errors import DecodeError, MinervaError


class HttpError(MinervaError):
    """Base of what a peer, or the way to it, can do to us. The connection is over."""


class StreamError(HttpError):
    """The connection could not be made, or broke."""


class NotTrustedError(StreamError):
    """The server is not, by its certificate, the one that was wanted: why, in one sentence."""


class HttpClosed(StreamError):
    """The peer closed the connection before it answered anything: on a kept connection, try a new one."""


class HttpTimeout(HttpError):
    """The peer took too long."""


class HttpProtocolError(DecodeError, HttpError):
    """What the peer sent is not HTTP, or exceeds a limit. The only error of the parser."""


class HttpUsageError(MinervaError):
    """This package was asked for something that it cannot do, or that makes no sense in its state."""
