"""The soak of tests/lab on the kernel's data plane: shorter, and a line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.conftest import link_namespaces, policies, sas
from tests.lab.attacker import StandingLab, standing_lab, until
from tests.lab.test_soak import MAX_KEPT, soak, topology

pytestmark = [pytest.mark.root, pytest.mark.kernel]

NODES = ["n1", "n2", "n3"]
SECONDS = 90.0

TCP_RATE = 1 << 18
"""Bytes per second of the TCP flow: a User Mode Linux has one processor, which does AES in C."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    directory = tmp_path_factory.mktemp("labs")
    (directory / "soak.toml").write_text(topology(NODES))
    with standing_lab(str(directory / "soak.toml"), "soak", directory) as found:
        yield found


def test_keys_are_replaced_under_load(lab: StandingLab) -> None:
    """No pair is silent for a second, and the kernel keeps no SA that nobody uses.

    covers: 6.8-rekey
    """
    for node in NODES:
        assert lab.status(node)["node"]["data_plane"] == "kernel"
    soak(lab, SECONDS, 0, NODES, links=2, tcp_rate=TCP_RATE, flood=False)
    for node in NODES:
        for where in link_namespaces(lab.status(node)):
            assert 2 <= len(sas(where)) <= MAX_KEPT
            assert len(policies(where)) == 2
            until(lambda where=where: len(sas(where)) == 2, f"{where} keeps nothing but what is used")
