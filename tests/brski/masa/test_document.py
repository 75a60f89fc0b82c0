"""The commands of docs/masa.md work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "masa.md"


def test_the_commands_work(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "minerva").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m minerva "$@"\n')
    (programs / "minerva").chmod(0o755)
    blocks = [part.split("```")[0] for part in DOCUMENT.read_text().split("```sh\n")[1:]]
    assert len(blocks) >= 5
    done = subprocess.run(
        ["sh", "-e", "-c", "".join(blocks)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MINERVA_MASA_DIR": str(tmp_path / "masa"),
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SN-3001" in done.stdout
    assert "BEGIN CERTIFICATE" in (tmp_path / "example-devices.pem").read_text()
