"""``minerva config check``: of the node and of the console server, in one file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minerva.cli.main import main
from minerva.core import settings

GOOD = 'log_level = "debug"\n[console.ports.web1]\ntype = "serial"\ndevice = "/dev/ttyS0"\n'


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", *arguments])
    assert isinstance(ended.value.code, int)
    found = capsys.readouterr()
    return ended.value.code, found.out, found.err


def test_a_right_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "minerva.toml"
    file.write_text(GOOD)
    assert check(capsys, "--config", str(file)) == (0, "ok\n", "")
    code, out, _ = check(capsys, "--json", "--config", str(file))
    assert (code, json.loads(out)) == (0, {"ok": True, "file": str(file), "consoles": ["web1"]})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("debug", "loud"), "{file}: log_level must be one of debug, info, warning, error"),
        (GOOD.replace("serial", "cereal"), "{file}: console.ports.web1.type must be one of serial, pty, "),
        ("[console", "{file} is not TOML: "),
        ("[consoles]", "{file}: there is no setting 'consoles'"),
        ('[console.users."\\u001b[2J"]', "{file}: console.users: '\\x1b[2J' cannot be a name"),
    ],
)
def test_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str) -> None:
    file = tmp_path / "minerva.toml"
    file.write_text(text)
    code, out, err = check(capsys, "--config", str(file))
    assert (code, out) == (2, "")
    assert err.startswith("minerva: " + sentence.format(file=file))
    assert err.count("\n") == 1
    code, out, err = check(capsys, "--json", "--config", str(file))
    assert (code, err) == (2, "")
    assert json.loads(out)["error"].startswith(sentence.format(file=file))


def test_without_a_file_everything_has_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINERVA_CONFIG", raising=False)
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "none.toml")
    said = f"ok: there is no {tmp_path}/none.toml, so all is as it is without one\n"
    assert check(capsys) == (0, said, "")
    file = tmp_path / "missing.toml"
    assert check(capsys, "--config", str(file)) == (
        2,
        "",
        f"minerva: there is no configuration file {file}\n",
    )
