"""The vocabulary of the GRASP API (RFC 8991): error codes, locators with their history, tagged objectives.

Shared by the engine, which answers calls, and by ``minerva.asa``, which makes them from other processes;
``to_cbor`` and ``from_cbor`` are how the values travel between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Any

from minerva.grasp.errors import GraspError
from minerva.grasp.options import (
    FqdnLocator,
    IPv6Locator,
    Locator,
    Objective,
    UriLocator,
    check_array,
    check_uint,
    locator_from_cbor,
)

_MAX_INTERFACE = 0xFFFF_FFFF


class ErrorCode(IntEnum):
    """What a call of the API ended with (RFC 8991 appendix A)."""

    ok = 0
    declined = 1
    noReply = 2
    unspec = 3
    ASAfull = 4
    dupASA = 5
    noASA = 6
    notYourASA = 7
    notBoth = 8
    notDry = 9
    notOverlap = 10
    objFull = 11
    objReg = 12
    notYourObj = 13
    notObj = 14
    notNeg = 15
    noSecurity = 16
    noDiscReply = 17
    sockErrNegRq = 18
    noSession = 19
    noSocket = 20
    loopExhausted = 21
    sockErrNegStep = 22
    noPeer = 23
    CBORfail = 24
    invalidNeg = 25
    invalidEnd = 26
    noNegReply = 27
    noValidStep = 28
    sockErrWait = 29
    sockErrEnd = 30
    IDclash = 31
    notSynch = 32
    notFloodDisc = 33
    sockErrSynRq = 34
    noListener = 35
    noSynchReply = 36
    noValidSynch = 37
    invalidLoc = 38


_WORDS = {
    ErrorCode.ok: "OK",
    ErrorCode.declined: "the peer declined",
    ErrorCode.noReply: "no reply",
    ErrorCode.unspec: "unspecified error",
    ErrorCode.ASAfull: "no more ASAs can be registered",
    ErrorCode.dupASA: "an ASA of that name is registered already",
    ErrorCode.noASA: "the ASA is not registered",
    ErrorCode.notYourASA: "that ASA is registered, but not by you",
    ErrorCode.notBoth: "an objective cannot support both negotiation and synchronization",
    ErrorCode.notDry: "dry run is for negotiation only",
    ErrorCode.notOverlap: "the other ASA that registered the objective does not share it",
    ErrorCode.objFull: "no more objectives can be registered",
    ErrorCode.objReg: "the objective is registered already",
    ErrorCode.notYourObj: "the objective is not registered by this ASA",
    ErrorCode.notObj: "objective not found",
    ErrorCode.notNeg: "the objective is not for negotiation",
    ErrorCode.noSecurity: "there is no ACP",
    ErrorCode.noDiscReply: "nobody answered the discovery",
    ErrorCode.sockErrNegRq: "cannot send the negotiation request",
    ErrorCode.noSession: "there is no such session (any more)",
    ErrorCode.noSocket: "the connection is gone",
    ErrorCode.loopExhausted: "the loop count is used up",
    ErrorCode.sockErrNegStep: "cannot send the negotiation step",
    ErrorCode.noPeer: "the negotiation peer is gone",
    ErrorCode.CBORfail: "the peer sent something that is not a GRASP message",
    ErrorCode.invalidNeg: "the peer sent an invalid negotiation message",
    ErrorCode.invalidEnd: "the peer sent an invalid end of the negotiation",
    ErrorCode.noNegReply: "no reply to the negotiation step",
    ErrorCode.noValidStep: "it is not this side's turn in the negotiation",
    ErrorCode.sockErrWait: "cannot send the wait message",
    ErrorCode.sockErrEnd: "cannot send the end of the negotiation",
    ErrorCode.IDclash: "the Session ID is in use",
    ErrorCode.notSynch: "the objective is not for synchronization",
    ErrorCode.notFloodDisc: "the objective is for neither discovery nor flooding",
    ErrorCode.sockErrSynRq: "cannot send the synchronization request",
    ErrorCode.noListener: "nobody listens for the objective",
    ErrorCode.noSynchReply: "no reply to the synchronization request",
    ErrorCode.noValidSynch: "the reply to the synchronization request is not valid",
    ErrorCode.invalidLoc: "the locator cannot be used",
}


class AsaError(GraspError):
    """A call of the API failed; ``code`` is the RFC's number, ``reason`` what the peer said, if anything."""

    def __init__(self, code: ErrorCode, reason: str = "") -> None:
        # "Unspecified" is untrue of an error whose reason specifies it.
        words = (
            [reason] if code is ErrorCode.unspec and reason else [_WORDS[code], *([reason] if reason else [])]
        )
        super().__init__(f"{': '.join(words)} ({code.name})")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AsaLocator:
    """Where an ASA can be reached, and how we know (RFC 8991 section 2.3.2.5).

    ``interface`` is the index of the interface it was learnt through (0 for this node itself or unknown),
    ``ttl`` how many milliseconds it is still to be believed (``None`` for no limit), ``diverted`` whether a
    Divert option told of it.
    """

    locator: Locator
    interface: int = 0
    ttl: int | None = None
    diverted: bool = False

    @property
    def is_ipaddress(self) -> bool:
        """Whether the locator is an IP address."""
        return not isinstance(self.locator, FqdnLocator | UriLocator)

    @property
    def address(self) -> IPv6Address | None:
        """The IPv6 address, if that is what the locator is."""
        return self.locator.address if isinstance(self.locator, IPv6Locator) else None

    def to_cbor(self) -> list[Any]:
        """Return the locator as a CBOR item."""
        return [self.locator.to_cbor(), self.interface, self.ttl, self.diverted]

    @classmethod
    def from_cbor(cls, item: Any) -> AsaLocator:
        """Return the locator that ``item`` is. Raises :class:`GraspError`."""
        locator, interface, ttl, diverted = check_array(item, 4, "ASA locator")[:4]
        if not isinstance(diverted, bool):
            raise GraspError("ASA locator: diverted is neither true nor false")
        if ttl is not None:
            check_uint(ttl, 1 << 62, "ttl of the ASA locator")
        check_uint(interface, _MAX_INTERFACE, "interface of the ASA locator")
        return cls(locator_from_cbor(locator), interface, ttl, diverted)


@dataclass(frozen=True, slots=True)
class TaggedObjective:
    """An objective and the locator it was, or is to be, flooded with (RFC 8991 section 2.3.2.6)."""

    objective: Objective
    locator: AsaLocator | None = None

    def to_cbor(self) -> list[Any]:
        """Return the pair as a CBOR item."""
        return [self.objective.to_cbor(), None if self.locator is None else self.locator.to_cbor()]

    @classmethod
    def from_cbor(cls, item: Any) -> TaggedObjective:
        """Return the pair that ``item`` is. Raises :class:`GraspError`."""
        objective, locator = check_array(item, 2, "tagged objective")[:2]
        return cls(Objective.from_cbor(objective), None if locator is None else AsaLocator.from_cbor(locator))
