"""Which data plane a node has where the kernel has none; ``make test-kernel`` shows where it has one."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from minerva.connect import kernel_probe
from minerva.connect.kernel_probe import Choice, choose, why_not
from minerva.connect.state import NodeState
from minerva.core.errors import UsageError
from minerva.linux import namespace
from tests.lab.conftest import lab_run, minerva

pytestmark = pytest.mark.root


@pytest.fixture
def problem(tmp_path: Path) -> str:
    """Why this kernel cannot; without root, or where it can, there is nothing to test."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    (tmp_path / "state").mkdir()
    state = NodeState(tmp_path / "state")
    found = asyncio.run(why_not(state))
    state.close()
    if found is None:
        pytest.skip("this kernel has a data plane")
    assert namespace.names(state.namespace_prefix) == [], "the probe leaves nothing"
    return found


def test_the_probe_says_what_is_missing(problem: str) -> None:
    assert problem.startswith("this kernel has no ")
    assert "module" in problem
    assert "\n" not in problem


def test_the_choice(problem: str, tmp_path: Path) -> None:
    state = NodeState(tmp_path / "state")
    assert asyncio.run(choose(state, "auto")) == Choice(False, problem)
    assert asyncio.run(choose(state, "user")) == Choice(False, "the configuration says so")
    with pytest.raises(UsageError, match="the kernel data plane cannot be used"):
        asyncio.run(choose(state, "kernel"))
    state.close()


@pytest.mark.usefixtures("problem")
def test_a_kernel_that_cannot_put_esp_into_udp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is good enough, unless that may be wanted. This one stands for it, which has no ESP at all."""

    async def no_trouble(_: object) -> None:
        pass

    monkeypatch.setattr(kernel_probe, "_try_interface", no_trouble)
    monkeypatch.setattr(kernel_probe, "_try_ipsec", lambda _: None)
    state = NodeState(tmp_path / "state")
    assert asyncio.run(choose(state, "auto")).kernel
    choice = asyncio.run(choose(state, "auto", in_udp=True))
    assert not choice.kernel
    assert choice.reason.startswith("this kernel cannot put ESP into UDP over IPv6")
    with pytest.raises(UsageError, match=r"cannot put ESP into UDP .*; use 'auto' or 'user'"):
        asyncio.run(choose(state, "kernel", in_udp=True))
    assert namespace.names(state.namespace_prefix) == []
    state.close()


def test_a_probe_that_was_killed_is_no_obstacle(problem: str, tmp_path: Path) -> None:
    state = NodeState(tmp_path / "state")
    namespace.Namespace.create(state.namespace("probe")).close()
    assert asyncio.run(why_not(state)) == problem
    assert namespace.names(state.namespace_prefix) == []
    state.close()


@pytest.mark.parametrize("how", ["option", "file"])
def test_a_node_that_must_not_use_another_does_not_start(problem: str, tmp_path: Path, how: str) -> None:
    assert minerva("ca", "init", "acp.example", "--dir", tmp_path / "ca").returncode == 0
    assert minerva("ca", "issue", tmp_path / "ca", tmp_path / "node").returncode == 0
    (tmp_path / "minerva.toml").write_text(f'data_plane = "{"kernel" if how == "file" else "user"}"\n')
    arguments = ["--state-dir", tmp_path / "node", "--run-dir", tmp_path / "run"]
    arguments += ["--config", tmp_path / "minerva.toml"]
    if how == "option":
        arguments += ["--data-plane", "kernel"]
    result = minerva("connect", *arguments)
    assert result.returncode == 2
    sentence = f"the kernel data plane cannot be used: {problem}; use 'auto' or 'user'"
    assert result.stderr.splitlines() == [f"minerva: {sentence}"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["empty"]


def test_a_lab_with_such_a_node_says_so(problem: str, tmp_path: Path) -> None:
    (tmp_path / "chain.toml").write_text('links = [["a", "b"]]\n[nodes.b]\ndata_plane = "kernel"\n')
    found = lab_run(tmp_path / "chain.toml")
    assert found["exit_code"] == 1
    assert found["error"] is not None
    assert problem in found["error"]


def test_status_says_which_and_why(problem: str, tmp_path: Path) -> None:
    name = f"choice-{os.getpid()}"
    (tmp_path / "pair.toml").write_text('links = [["a", "b"]]\n[nodes.b]\ndata_plane = "user"\n')
    assert minerva("lab", "up", tmp_path / "pair.toml", "--name", name).returncode == 0
    try:
        states = json.loads(minerva("lab", "status", name, "--json").stdout)
    finally:
        assert minerva("lab", "down", name).returncode == 0
    assert {state["node"]["data_plane"] for state in states.values()} == {"user"}
    assert states["a"]["node"]["data_plane_reason"] == problem
    assert states["b"]["node"]["data_plane_reason"] == "the configuration says so"
