"""Names of channel interfaces."""

from __future__ import annotations

from ipaddress import IPv6Address

from minerva.connect.channels import interface_name

OURS = IPv6Address("fe80::1:2:3:6bbc")
THEIRS = IPv6Address("fe80::9:9:9:3e6b")


def test_last_four_digits_of_both_ends_ours_first() -> None:
    assert interface_name(OURS, THEIRS, set()) == "acp_6bbc_3e6b"
    assert interface_name(THEIRS, OURS, set()) == "acp_3e6b_6bbc"


def test_a_name_that_is_taken_gets_a_number_and_fits() -> None:
    taken: set[str] = set()
    for _ in range(150):
        name = interface_name(OURS, THEIRS, taken)
        assert name not in taken
        assert len(name) <= 15
        taken.add(name)
    assert {"acp_6bbc_3e6b", "acp_6bbc_3e6b_2", "acp_6bbc_3e6b_3"} <= taken
