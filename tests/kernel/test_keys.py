"""Where the keys of channels are, when they are the kernel's: searched for in the memory of all processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.kernel.conftest import keys, link_namespaces
from tests.lab.attacker import StandingLab, standing_lab
from tests.lab.test_keys import memory

pytestmark = [pytest.mark.root, pytest.mark.kernel]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingLab]:
    with standing_lab("line:2", "keys", tmp_path_factory.mktemp("labs")) as found:
        yield found


def test_the_supervisor_has_passed_the_keys_on(lab: StandingLab) -> None:
    [where] = link_namespaces(lab.status("n1"))
    found_keys = keys(where)
    assert len(found_keys) == 2
    time.sleep(3)  # the counters have been read, with which the kernel tells the keys
    found = {
        name: sum(piece.count(key) for piece in memory(process["pid"]) for key in found_keys)
        for name, process in lab.processes("n1").items()
    }
    assert found.pop("abutment") > 0, "the search finds them where they are"
    assert not any(found.values()), found
