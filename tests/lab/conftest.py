"""Running the real command, and checking that nothing of it stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minerva.linux import namespace

Run = Callable[..., subprocess.CompletedProcess[str]]


def minerva(*arguments: object, timeout: float = 200, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``minerva`` with ``arguments`` to its end."""
    command = [sys.executable, "-m", "minerva", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **kwargs)


def lab_run(*arguments: object, **kwargs: Any) -> dict[str, Any]:
    """Run ``minerva lab run … --json``; return what it prints, which must be one object, and its exit code."""
    result = minerva("lab", "run", *arguments, "--json", **kwargs)
    assert result.stdout.strip(), result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found | {"exit_code": result.returncode, "stderr": result.stderr}


def ours() -> list[str]:
    """Return the namespaces on this machine that a lab or a node made."""
    return namespace.names("minerva-") + namespace.names("lab-")


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skip without root; after the test, no namespace and no process may be left."""
    if request.node.get_closest_marker("root") is None:
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    before = ours()
    os.environ["MINERVA_LAB_DIR"] = str(tmp_path_factory.mktemp("labs"))
    yield
    left = [name for name in ours() if name not in before]
    for name in left:
        namespace.delete_name(name)
    processes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/comm")
        if (comm := _read(path)).startswith(("mnv-", "minerva-zygote"))
    ]
    for pid in processes:
        os.kill(int(pid), 9)
    assert not left, f"namespaces left behind: {left}"
    assert not processes, f"processes left behind: {processes}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
