"""docs/asa.md says what is so: its programs run, its tables are those of the code."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from minerva.asa import ErrorCode, Objective, ObjectiveFlag, blocking, protocol
from minerva.connect import grasp_api
from minerva.grasp import calls
from tests.asa.node import node_in_thread

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "asa.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def execute(program: str) -> None:
    exec(compile(program, "asa.md", "exec"), {"__name__": "__main__"})


def test_the_programs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thermometer, stoker, giver, beggar = PROGRAMS
    monkeypatch.setenv("MINERVA_RUN_DIR", str(tmp_path))
    with node_in_thread(tmp_path) as path:
        execute(thermometer)
        execute(stoker)
        assert capsys.readouterr().out == "21.5\n"
        giving = threading.Thread(target=execute, args=(giver,))
        giving.start()
        with blocking.Asa.connect("watcher", path) as watcher:
            while not watcher.discover(Objective("example.com:alms", ObjectiveFlag.F_NEG), 0):
                pass
        execute(beggar)
        giving.join()
        assert capsys.readouterr().out == "agreed on 100\n"


def test_the_codes_are_right() -> None:
    rows: list[Any] = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d, ]+) \|", TEXT, re.MULTILINE)
    assert rows
    for names, numbers in rows:
        for name, number in zip(names.split(", "), numbers.split(", "), strict=True):
            assert ErrorCode[name.strip("`")] == int(number)


def test_the_functions_are_those_of_the_engine() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?)\s*\|", TEXT.split("| function |")[1], re.MULTILINE)
    documented = {name: len(arguments.split(", ")) if arguments.strip() else 0 for name, arguments in rows}
    assert documented.pop(protocol.TRACE) == 1  # which is the server's own
    assert documented == {name: count for name, (_, count) in calls._FUNCTIONS.items()}


def test_the_limits_are_right() -> None:
    words = " ".join(TEXT.split())
    assert (
        f"A request has at most {protocol.MAX_REQUEST >> 10} KiB, a reply {protocol.MAX_REPLY >> 20} MiB"
        in words
    )
    assert f"more than {grasp_api.MAX_OUTPUT >> 20} MiB unread" in words
    assert (
        f"{grasp_api.MAX_CONNECTIONS} connections, and {grasp_api.MAX_REQUESTS} requests under way" in words
    )
