"""Who may join."""

from __future__ import annotations

import pytest

from minerva.brski.registrar.database import DeviceState
from minerva.brski.registrar.policy import Decision, Policy, decide

NEVER_SEEN = {
    Policy.ANY: Decision.GRANT,
    Policy.LISTED: Decision.UNLISTED,
    Policy.APPROVE: Decision.WAIT,
}


@pytest.mark.parametrize("policy", Policy)
def test_a_device_never_seen_and_one_that_waits(policy: Policy) -> None:
    """
    covers: R-22, R-23, R-24
    """
    assert decide(policy, None) is NEVER_SEEN[policy]
    assert decide(policy, DeviceState.WAITING) is NEVER_SEEN[policy]


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("state", [state for state in DeviceState if state is not DeviceState.WAITING])
def test_what_an_operator_or_a_voucher_decided_holds_under_any_policy(
    policy: Policy, state: DeviceState
) -> None:
    """
    covers: R-22
    """
    expected = {
        DeviceState.APPROVED: Decision.GRANT,
        DeviceState.VOUCHERED: Decision.GRANT,
        DeviceState.ENROLLED: Decision.GRANT,
        DeviceState.DENIED: Decision.DENIED,
        DeviceState.REVOKED: Decision.REVOKED,
    }
    assert decide(policy, state) is expected[state]
