"""Who may import whom (docs/architecture.md): dependencies point downwards, protocols do not meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "minerva"

PROTOCOLS = {"grasp", "adjacency", "ikev2", "esp", "rpl", "tls", "voucher", "est"}
MAY_IMPORT = {
    "core": set(),
    "pki": {"core"},
    **{protocol: {"core", "pki"} for protocol in PROTOCOLS},
    "linux": {"core"},
    "sim": {"core", "pki", *PROTOCOLS},
    "asa": {"core", "grasp"},
    "https": {"core", "pki", "tls"},
    "brski": {"core", "pki", "asa", "https", "tls", "voucher", "est"},
    "console": {"core", "pki", "asa", "grasp", "https", "tls"},
    "connect": {"core", "pki", "linux", "asa", "https", "brski", *PROTOCOLS},
    "lab": {"core", "pki", "linux", "asa", "https", "brski", "connect", "console", *PROTOCOLS},
    "cli": {"core", "pki", "linux", "asa", "https", "brski", "connect", "console", "lab", "sim", *PROTOCOLS},
}
SANS_IO = {"core", "sim", *PROTOCOLS}
CORE_OF_THE_CONSOLE = ("events", "hub", "lease", "ring")
FORBIDDEN_IN_CORES = {"asyncio", "socket", "time", "os", "threading", "subprocess", "select", "logging"}


def imports(path: Path) -> set[str]:
    """Return the names of all modules that the file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def files(package: str) -> list[Path]:
    """Return the modules of a package."""
    return sorted((SOURCE / package).rglob("*.py"))


def test_every_package_has_its_place() -> None:
    packages = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_downwards(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    for path in files(package):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "minerva" and len(parts) > 1 and (SOURCE / parts[1]).is_dir():
                assert parts[1] in allowed, f"{path.relative_to(SOURCE)} imports {name}"


@pytest.mark.parametrize("package", sorted(SANS_IO))
def test_cores_do_no_input_or_output(package: str) -> None:
    for path in files(package):
        used = {name.split(".")[0] for name in imports(path)} & FORBIDDEN_IN_CORES
        assert not used, f"{path.relative_to(SOURCE)} imports {', '.join(sorted(used))}"


@pytest.mark.parametrize("module", CORE_OF_THE_CONSOLE)
def test_the_core_of_the_console_does_no_input_or_output(module: str) -> None:
    used = {name.split(".")[0] for name in imports(SOURCE / "console" / f"{module}.py")} & FORBIDDEN_IN_CORES
    assert not used


def test_only_the_supervisor_and_the_lab_pay_for_pyroute2() -> None:
    users = {
        path.relative_to(SOURCE).as_posix()
        for package in MAY_IMPORT
        for path in files(package)
        if any(name.split(".")[0] == "pyroute2" for name in imports(path))
    }
    assert users == {"linux/netlink.py"}
    importers = {
        path.relative_to(SOURCE).as_posix()
        for package in MAY_IMPORT
        for path in files(package)
        if "minerva.linux.netlink" in imports(path)
    }
    assert importers == {
        "connect/acp.py",
        "connect/kernel_probe.py",
        "connect/leftovers.py",
        "connect/member.py",
        "connect/ports.py",
        "connect/supervisor.py",
        "lab/network.py",
        "lab/zero_touch.py",
    }
