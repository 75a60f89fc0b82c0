"""Running the real command, and checking that nothing of it stays."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minerva.linux import namespace

# Every lab of this test session has its files here, and every process its name in the environment.
_SESSION = Path(tempfile.mkdtemp(prefix="minerva-"))
atexit.register(shutil.rmtree, _SESSION, ignore_errors=True)
os.environ["MINERVA_LAB_DIR"] = str(_SESSION / "labs")


def minerva(*arguments: object, timeout: float = 200, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``minerva`` with ``arguments`` to its end."""
    command = [sys.executable, "-m", "minerva", *map(str, arguments)]
    # What a failed lab keeps of its logs goes where all else of this session goes.
    environment = {"TMPDIR": str(_SESSION)} | dict(kwargs.pop("env", os.environ))
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment, **kwargs
    )


def lab_run(*arguments: object, **kwargs: Any) -> dict[str, Any]:
    """Run ``minerva lab run … --json``; return what it prints, one object, with its exit code and stderr."""
    result = minerva("lab", "run", *arguments, "--json", **kwargs)
    assert result.stdout.strip(), result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found | {"exit_code": result.returncode, "stderr": result.stderr}


def made_here() -> list[str]:
    """Return the namespaces on this machine that a lab or a node made, and no test of single parts."""
    nodes = [name for name in namespace.names("minerva-") if not name.startswith("minerva-test-")]
    return nodes + namespace.names("lab-")


_ROLES = (b"\0minerva\0connect\0", b"\0minerva\0registrar\0", b"\0minerva\0masa\0")


def node_processes() -> dict[int, bool]:
    """Return all processes of nodes, registrars and MASAs; and whether they are this test's.

    By its MINERVA_LAB_DIR.
    """
    mark = f"MINERVA_LAB_DIR={os.environ.get('MINERVA_LAB_DIR')}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "comm").read_text()
            command = (path / "cmdline").read_bytes()
            if name.startswith(("mnv-", "minerva-zygote")) or any(role in command for role in _ROLES):
                found[int(path.name)] = mark in (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Skip without root; after the test, no namespace and no process may be left.

    Namespaces cannot be told apart from those of others who run labs on this machine at the same time, so
    they are judged only where ``make test`` says that there are none (MINERVA_TEST_ALONE).
    """
    if request.node.get_closest_marker("root") is None:
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    before = made_here()
    standing = [pid for pid, mine in node_processes().items() if mine]
    yield
    # A killed node's children end when they notice; that takes a moment.
    for _ in range(50):
        processes = [pid for pid, mine in node_processes().items() if mine and pid not in standing]
        if not processes:
            break
        time.sleep(0.1)
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in processes]
    for pid in processes:
        os.kill(pid, 9)
    assert not processes, f"processes left behind: {names}"
    if os.environ.get("MINERVA_TEST_ALONE"):
        left = [name for name in made_here() if name not in before]
        for name in left:
            namespace.delete_name(name)
        assert not left, f"namespaces left behind: {left}"
