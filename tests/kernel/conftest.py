"""What needs a kernel with IPv6 ESP and xfrm interfaces: ``make test-kernel`` brings one."""

from __future__ import annotations

import asyncio
import re
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest

from minerva.connect.kernel_probe import why_not
from minerva.connect.state import NodeState


@dataclass(frozen=True)
class Sa:
    """An SA as ``ip -s xfrm state`` shows it."""

    source: str
    destination: str
    spi: str
    text: str

    def number(self, pattern: str) -> int:
        """Return the number that ``pattern`` captures in the description."""
        match = re.search(pattern, self.text)
        assert match is not None, f"{pattern!r} is not in {self.text}"
        return int(match[1], 0)

    @property
    def packets(self) -> int:
        """What it has carried."""
        return self.number(r"(\d+)\(packets\)\s+add ")

    @property
    def bytes(self) -> int:
        """The same in bytes."""
        return self.number(r"(\d+)\(bytes\), \d+\(packets\)\s+add ")


def ip(where: str, *arguments: str) -> str:
    """Return what ``ip`` prints in a namespace."""
    return subprocess.run(["ip", "-n", where, *arguments], capture_output=True, text=True, check=True).stdout


def _blocks(text: str) -> list[str]:
    return [block for block in re.split(r"\n(?=\S)", text) if block.strip()]


def sas(where: str) -> list[Sa]:
    """Return the SAs of a namespace."""
    found = []
    for block in _blocks(ip(where, "-s", "xfrm", "state")):
        match = re.match(r"src (\S+) dst (\S+)\s+proto esp spi 0x([0-9a-f]{8})", block)
        assert match is not None, block
        found.append(Sa(*match.groups(), block))
    return found


def keys(where: str) -> set[bytes]:
    """Return the keys of the SAs of a namespace, as the kernel tells root."""
    found = (re.search(r"0x([0-9a-f]{72}) ", sa.text) for sa in sas(where))
    return {bytes.fromhex(match[1]) for match in found if match is not None}


def policies(where: str) -> list[str]:
    """Return the policies of a namespace, each in one line."""
    return [" ".join(block.split()) for block in _blocks(ip(where, "xfrm", "policy"))]


def link_namespaces(status: dict[str, Any]) -> list[str]:
    """Return the names of a node's link namespaces."""
    return [port["namespace"] for port in status["ports"] if port.get("namespace")]


@pytest.fixture(scope="session", autouse=True)
def able_kernel(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the kernel cannot."""
    state = NodeState(tmp_path_factory.mktemp("probe"))
    problem = asyncio.run(why_not(state))
    state.close()
    if problem is not None:
        pytest.skip(f"{problem}; run 'make test-kernel'")
