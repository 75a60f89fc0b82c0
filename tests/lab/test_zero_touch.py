"""Networks that begin with one member, a registrar, and devices that know nothing but their maker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minerva.lab import zero_touch
from minerva.lab.lab import Lab, standing
from minerva.lab.network import namespace_prefix
from minerva.lab.nodes import services
from minerva.lab.topology import parse_topology
from minerva.lab.zero_touch import ServiceError
from minerva.linux import namespace
from tests.lab.attacker import until
from tests.lab.conftest import lab_run, minerva, node_processes

pytestmark = pytest.mark.root

# name: nodes, channels
TOPOLOGIES = {"line:5": (5, 4), "ring:6": (6, 6), "tree:2x2": (7, 6), "lan:6": (6, 15)}

PHASES = [
    "link_ready",
    "proxy_heard",
    "voucher",
    "enrolled",
    "neighbour_heard",
    "ike_established",
    "routed",
    "reachable",
]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_are_let_in(topology: str) -> None:
    """One after the other, through whoever is in already.

    covers: P-4, P-10, P-11, P-62, JP-1, JP-3, R-1, 6.2.5-2, 6.2.4-1
    """
    nodes, channels = TOPOLOGIES[topology]
    found = lab_run(topology, "--zero-touch")
    assert found["exit_code"] == 0, found["stderr"]
    assert found["pairs_reachable"] == found["pairs_total"] == nodes * (nodes - 1)
    assert found["channels"] == channels
    assert list(found["phases"]) == PHASES
    before = 0.0
    for phase in PHASES[1:4]:
        assert found["phases"][phase]["max"] > before
        before = found["phases"][phase]["max"]


# --- a lab as a command ------------------------------------------------------------------------------------

NAME = f"zt{os.getpid()}"


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for labs of this test alone."""
    monkeypatch.setenv("MINERVA_LAB_DIR", str(tmp_path))
    return tmp_path


def nothing_runs() -> bool:
    """Whether nothing of this test's labs does, which the kernel may take a moment for."""
    return not any(node_processes().values()) and not namespace.names(namespace_prefix(NAME))


def test_a_standing_lab_with_a_registrar(labs: Path) -> None:
    """It says how to ask it, shows who has ended, and goes altogether, also when its directory is lost."""
    up = minerva("lab", "up", "line:2", "--zero-touch", "--name", NAME)
    assert up.returncode == 0, up.stderr
    assert f"'minerva lab exec {NAME} n1 -- minerva registrar devices'" in up.stdout
    assert str(labs / NAME / "registrar") in up.stdout

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        return minerva("lab", "exec", NAME, "n1", "--", sys.executable, "-m", "minerva", *words)

    registered = json.loads(inside("registrar", "devices", "--json").stdout)["devices"]
    assert [item["serial_number"] for item in registered] == ["registrar", "LAB-n2"]
    assert "LAB-n2" in inside("masa", "devices").stdout

    status = minerva("lab", "status", NAME)
    assert (status.returncode, status.stderr) == (0, "")
    assert f"the registrar runs; its log is {labs / NAME / 'registrar.log'}" in status.stdout
    running = services(labs / NAME)
    assert {name: len(pids) for name, pids in running.items()} == {"registrar": 1, "masa": 1}
    os.kill(running["masa"][0], signal.SIGKILL)
    until(lambda: not services(labs / NAME)["masa"], "the MASA has ended")
    status = minerva("lab", "status", NAME)
    assert (status.returncode, status.stderr) == (1, f"minerva: not all of lab {NAME} runs: the MASA not\n")
    assert "the MASA has ended" in status.stdout

    (labs / NAME).rename(labs / "elsewhere")
    assert minerva("lab", "down", NAME).returncode == 0
    until(nothing_runs, "all is gone")


@pytest.mark.usefixtures("labs")
def test_a_device_that_waits_is_shown() -> None:
    """Without a MASA nobody is let in; the lab can be looked at and is torn down all the same."""

    async def work() -> None:
        lab = Lab(parse_topology("line:2"), NAME, zero_touch=True)
        try:
            await lab.build()
            assert lab.zero_touch is not None
            del lab.zero_touch.services[0]
            lab.start(follow_us=True)
            log = lab.nodes["n2"].log_file
            await asyncio.to_thread(until, lambda: "asking again in" in log.read_text(), "it has to wait")
            shown = await asyncio.to_thread(minerva, "lab", "status", NAME)
            assert "n2: not enrolled; waiting through fe80::" in shown.stdout
            assert "the MASA has ended" in shown.stdout
            found = await asyncio.to_thread(minerva, "lab", "exec", NAME, "n2:acp", "true")
            assert "node n2 has no namespace 'acp'" in found.stderr
        finally:
            await lab.close()

    asyncio.run(work())
    assert nothing_runs()


def test_a_build_that_fails_leaves_nothing(labs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The MASA cannot be made, while the registrar is."""
    monkeypatch.setattr(zero_touch, "MASA_PORT", 99_999)

    async def work() -> None:
        lab = Lab(parse_topology("line:2"), NAME, zero_touch=True)
        try:
            with pytest.raises(ServiceError, match=r"minerva masa init: .*99999"):
                await lab.build()
        finally:
            await lab.close()

    asyncio.run(work())
    assert nothing_runs()
    assert list(labs.iterdir()) == []


@pytest.mark.parametrize("moment", ["masa", "registrar/ca", "devices", "registrar.log"])
def test_an_interrupt_leaves_nothing(labs: Path, moment: str) -> None:
    """While the maker's or the operator's things are made, and when all of it begins to run."""
    command = [sys.executable, "-m", "minerva", "lab", "up", "line:2", "--zero-touch", "--name", NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until((labs / NAME / moment).exists, f"{moment} is there")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert stderr.splitlines()[-1] == "minerva: interrupted; the lab is torn down"
    assert nothing_runs()
    assert list(labs.iterdir()) == []


@pytest.mark.parametrize("moment", ["masa", "registrar.log"])
def test_what_a_crash_leaves_is_removed(labs: Path, moment: str) -> None:
    command = [sys.executable, "-m", "minerva", "lab", "up", "line:2", "--zero-touch", "--name", NAME]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until((labs / NAME / moment).exists, f"{moment} is there")
        process.kill()
    assert standing() == [NAME]
    assert minerva("lab", "down", NAME).returncode == 0
    until(nothing_runs, "all is gone")
    assert list(labs.iterdir()) == []
