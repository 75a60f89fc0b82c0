"""The one way in which ESP raises. What comes from the network never raises here: it is counted."""

from __future__ import annotations

from minerva.core.errors import MinervaError


class EspError(MinervaError):
    """ESP was used in a way that it must refuse: a bad key, a reserved SPI, a packet that is not IPv6."""


class SequenceExhausted(EspError):
    """An outbound SA has used its last sequence number; only a new SA with a new key may go on."""
