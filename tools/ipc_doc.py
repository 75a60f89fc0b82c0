"""Writes the CDDL of the messages between processes into docs/ipc.md."""

from __future__ import annotations

from pathlib import Path

import minerva.connect.messages  # noqa: F401 -- registers the messages
from minerva.connect import ipc

FILE = Path(__file__).resolve().parent.parent / "docs" / "ipc.md"
BEGIN, END = "```cddl\n", "```"

if __name__ == "__main__":
    head, rest = FILE.read_text().split(BEGIN)
    tail = rest.split(END, 1)[1]
    FILE.write_text(head + BEGIN + ipc.cddl() + END + tail)
