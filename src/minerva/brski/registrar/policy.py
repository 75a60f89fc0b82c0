"""Who may join: the manufacturer's policy, and what is known of the device (RFC 8995 section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from minerva.brski.registrar.database import DeviceState


class Policy(StrEnum):
    """Which devices of a manufacturer may join."""

    ANY = "any"
    """All that nobody denied."""
    LISTED = "listed"
    """Those that the operator allowed before they came."""
    APPROVE = "approve"
    """Those that the operator approves; others wait for it, and are told so."""


class Decision(StrEnum):
    """What a device gets that asks for a voucher."""

    GRANT = "grant"
    WAIT = "wait"
    """It is known, and has to wait for an operator."""
    UNLISTED = "unlisted"
    DENIED = "denied"
    REVOKED = "revoked"


# A device that was let in once may come again, after a reset, for as long as nobody takes that back: under
# another policy too, which is for devices that have yet to come.
_OF_STATE: Final[Mapping[DeviceState, Decision]] = {
    DeviceState.APPROVED: Decision.GRANT,
    DeviceState.VOUCHERED: Decision.GRANT,
    DeviceState.ENROLLED: Decision.GRANT,
    DeviceState.DENIED: Decision.DENIED,
    DeviceState.REVOKED: Decision.REVOKED,
}
_OF_POLICY: Final[Mapping[Policy, Decision]] = {
    Policy.ANY: Decision.GRANT,
    Policy.LISTED: Decision.UNLISTED,
    Policy.APPROVE: Decision.WAIT,
}


def decide(policy: Policy, state: DeviceState | None) -> Decision:
    """Return what to do with a device of a manufacturer with ``policy``.

    ``state`` is that of the device, ``None`` for one never seen. One that waits is judged by the policy of
    today, which may not make it wait any more.
    """
    if state is None or state is DeviceState.WAITING:
        return _OF_POLICY[policy]
    return _OF_STATE[state]
