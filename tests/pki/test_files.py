"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from minerva.pki.files import File, append_line, locked, write_files


def test_write(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_files(tmp_path, File("a", b"new"), File("key", b"secret", secret=True))
    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "key"]


def test_a_secret_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    write_files(tmp_path, File("key", b"secret", secret=True))
    assert modes[0] == 0o600
    assert "secret" not in repr(File("key", b"secret")).replace("secret=", "")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    calls = iter([None, OSError(28, "No space left on device")])

    def full(_: int) -> None:
        if error := next(calls):
            raise error

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_files(tmp_path, File("a", b"new"), File("b", b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_names_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        named.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    write_files(tmp_path, File("key.pem", b""), File("chain.pem", b""), File("cert.pem", b""))
    assert named == ["key.pem", "chain.pem", "cert.pem"]


def test_the_lock_excludes(tmp_path: Path) -> None:
    got = threading.Event()

    def other() -> None:
        with locked(tmp_path):
            got.set()

    thread = threading.Thread(target=other)
    with locked(tmp_path):
        thread.start()
        assert not got.wait(0.05)
    assert got.wait(5)
    thread.join()


def test_append(tmp_path: Path) -> None:
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
