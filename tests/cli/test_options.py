"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from minerva.cli.main import cli
from minerva.core.errors import MinervaError


@pytest.mark.parametrize(
    "command",
    [
        "status --run-dir",
        "console list --run-dir",
        "console log x --directory",
        "registrar status --dir",
    ],
)
def test_a_directory_that_cannot_be_read_is_no_wrong_option(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what one does not need to be root for who does it: the command says that, and click would not."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    done = CliRunner().invoke(cli, [*command.split(), str(tmp_path)])
    assert done.exit_code
    assert "is not readable" not in done.output
    assert isinstance(done.exception, MinervaError | SystemExit), done.exception
