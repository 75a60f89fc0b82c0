"""Puts xterm.js into the package when it is built, if it can be had (see vendor-xterm)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VendorXterm(BuildHookInterface):  # type: ignore[misc,type-arg]
    """Runs tools/vendor-xterm; without npm the build goes on, and the web page says what it lacks."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        tool = Path(self.root) / "tools" / "vendor-xterm"
        if not tool.is_file():
            return  # built from a source distribution, which has the files, or does not
        done = subprocess.run([tool], capture_output=True, text=True, check=False)
        if done.returncode:
            self.app.display_warning(done.stderr.strip() or "xterm.js could not be fetched")
