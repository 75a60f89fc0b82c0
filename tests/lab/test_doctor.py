"""``minerva doctor`` on the host of a real node, well and ill."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.attacker import StandingLab, run, standing_lab, until
from tests.lab.conftest import minerva

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def nothing_stays() -> None:
    """The lab looks itself whether something of it stays."""


def findings(lab: StandingLab, node: str) -> list[dict[str, Any]]:
    """Return what the doctor says on a node's host."""
    result = minerva(
        *("lab", "exec", lab.name, node, "--", sys.executable, "-m", "minerva", "doctor", "--json"),
        env=os.environ | {"MINERVA_LAB_DIR": str(lab.directory.parent)},
    )
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)
    assert found["ok"] == (result.returncode == 0)
    return list(found["findings"])


def test_well_and_ill(tmp_path: Path) -> None:
    with standing_lab("line:3", "doctor", tmp_path) as lab:
        until(lambda: len(lab.channels("n2")) == 2, "both links have a channel")

        def reached() -> list[dict[str, Any]]:
            """The ends whose way to the root was pinged; which node is the root is decided by addresses."""
            return [
                finding
                for node in ("n1", "n3")
                for finding in findings(lab, node)
                if finding["area"] == "reach" and finding["level"] == "ok"
            ]

        until(reached, "an end reaches the root")
        for node in ("n1", "n2", "n3"):
            assert [item for item in findings(lab, node) if item["level"] == "problem"] == []
        run("ip", "-n", lab.host("n1").name, "link", "set", "eth0", "down")
        until(lambda: not lab.channels("n1"), "the channel ends")
        warnings = {item["area"]: item["what"] for item in findings(lab, "n1") if item["level"] == "warning"}
        assert warnings["ports"] == "eth0 has no carrier"
        assert warnings["routing"] == "there is no channel to anybody"
