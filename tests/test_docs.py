"""The docs say what the code does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import minerva.connect.messages  # noqa: F401 -- registers the messages
from minerva.connect import ipc

ROOT = Path(__file__).resolve().parent.parent


def test_ipc_document_holds_the_definition() -> None:
    text = (ROOT / "docs" / "ipc.md").read_text()
    begin, end = "```cddl\n", "```"
    assert text.split(begin)[1].split(end)[0] == ipc.cddl(), "run tools/ipc_doc.py"


def test_conformance_matrix_is_what_the_tests_say() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "conformance.py"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
