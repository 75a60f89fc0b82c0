"""Whole networks on the kernel's data plane, built, used and removed by one command."""

from __future__ import annotations

import pytest

from minerva.linux import namespace
from tests.lab.conftest import lab_run

pytestmark = [pytest.mark.root, pytest.mark.kernel]


def test_a_lan_has_several_channels_a_port() -> None:
    """Each with an interface of its own, which its SAs and policies belong to.

    covers: 6.13.5.2-1
    """
    found = lab_run("lan:4", "--timeout", 120)
    assert found["exit_code"] == 0, found["error"]
    assert (found["channels"], found["pairs_reachable"], found["data_plane"]) == (6, 12, "kernel")
    assert namespace.names("minerva-") + namespace.names("lab-") == []


def test_a_cut_ring_heals() -> None:
    """
    covers: 6.12.1.1.2-3, 6.13.5.2-2
    """
    found = lab_run("ring:4", "--cut", "n1-n2", "--timeout", 120)
    assert found["exit_code"] == 0, found["error"]
    assert found["pairs_reachable"] == 12
    assert found["data_plane"] == "kernel"
    assert found["heal_seconds"] is not None
    assert namespace.names("minerva-") + namespace.names("lab-") == []
