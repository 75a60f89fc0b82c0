"""``tools/vendor-xterm``: what cannot be fetched is said in one sentence, and never put beside the page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "vendor-xterm"
NEEDED = ("cat", "cp", "dirname", "mktemp", "rm", "sed", "sh", "sha256sum", "tar")


@pytest.mark.parametrize(
    ("npm", "said"),
    [
        (None, "apt-get install npm"),
        ("exit 1", "npm could not fetch xterm.js"),
        ("exit 0", "is not xterm.js"),
        ("echo something else >xterm-xterm-6.0.0.tgz", "is not xterm.js"),
    ],
)
def test_it_says_what_is_missing(npm: str | None, said: str, tmp_path: Path) -> None:
    files = tmp_path / "src/minerva/console/fronts/web_files"
    programs = tmp_path / "bin"
    for directory in (files, programs, tmp_path / "tools"):
        directory.mkdir(parents=True)
    shutil.copy(TOOL, tmp_path / "tools")
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    if npm is not None:
        (programs / "npm").write_text(f"#!/bin/sh\n{npm}\n")
        (programs / "npm").chmod(0o755)
    done = subprocess.run(
        ["sh", str(tmp_path / "tools" / "vendor-xterm")],
        env={"PATH": str(programs), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(files.iterdir())
