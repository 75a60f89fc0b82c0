"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of third-party data (``MINERVA_FIXTURES``); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MINERVA_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not folder.is_dir():
        pytest.skip(f"no third-party fixtures in {folder} (set MINERVA_FIXTURES)")
    return folder


@pytest.fixture(scope="session")
def vectors() -> Any:
    """The published and measured examples of acp-grasp-rpl.json."""
    return json.loads((ROOT / "tests" / "vectors" / "acp-grasp-rpl.json").read_text())
