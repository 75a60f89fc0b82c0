"""The audit log is chained: what is altered later shows."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerva.console import audit as audit_module
from minerva.console.audit import AuditLog, AuditWriter, Entry, digest
from minerva.console.audit_chain import ChainError, verify


def write(path: Path, count: int, **options: int) -> list[str]:
    """Write entries one by one; return the digest of the last line after each."""
    log = AuditLog(path, **options)
    heads = []
    for number in range(count):
        log.write([Entry(float(number), "say", user="vera", detail=f"\u2028{number}")])
        heads.append(log.head)
    return heads


def test_lines_follow_on_each_other_through_all_files(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    heads = write(path, 100, max_size=1000)
    found = verify(path, [heads[0], heads[50]])
    assert (found.lines, found.unchained, found.since) == (100, 0, "1970-01-01T00:00:00.000Z")
    assert found.files == len(list(tmp_path.iterdir())) > 5
    assert found.head == heads[-1] == digest(path.read_bytes().splitlines()[-1])
    assert json.loads(path.read_bytes().splitlines()[-1])["before"] == heads[-2]


def test_of_what_was_removed_for_its_age_nothing_can_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    heads = write(path, 100, max_size=1000, keep=3)
    assert 3 < verify(path, heads[-3:]).lines < 50
    with pytest.raises(ChainError, match=f"no line has the SHA-256 {heads[0]}"):
        verify(path, [heads[0]])


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_altered_shows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One byte, one line more or less, two that have changed places: all but what is at the ends."""
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    heads = write(path, 6)
    lines = path.read_bytes().splitlines(keepends=True)
    index = data.draw(st.integers(0, 5))
    how = data.draw(st.sampled_from(["byte", "out", "twice", "swap", "field"]))
    line = lines[index]
    if how == "byte":
        place = data.draw(st.integers(0, len(line) - 2))
        other = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[place], 10)))
        lines[index] = line[:place] + bytes([other]) + line[place + 1 :]
    elif how == "out":
        del lines[index]
    elif how == "twice":
        lines.insert(index, line)
    elif how == "swap":
        second = (index + 1) % 6
        lines[index], lines[second] = lines[second], line
    else:
        lines[index] = line.replace(b"vera", b"anna")
    path.write_bytes(b"".join(lines))
    with pytest.raises(ChainError):
        verify(path, [heads[0], heads[-1]])


def test_what_is_taken_from_the_end_shows_by_a_digest_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    heads = write(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert verify(path).head == heads[2]
    with pytest.raises(ChainError, match=heads[4]):
        verify(path, [heads[4]])
    # So it is if somebody makes all lines anew.
    path.unlink()
    assert verify_again(path, heads[:0]).lines == 5
    with pytest.raises(ChainError, match=heads[4]):
        verify_again(path, [heads[4]], detail="of another kind")


def verify_again(path: Path, heads: list[str], detail: str = "x") -> object:
    path.unlink(missing_ok=True)
    AuditLog(path).write(Entry(float(number), "say", detail=detail) for number in range(5))
    return verify(path, heads)


def test_half_a_line_stays_and_those_after_it_follow_on(tmp_path: Path) -> None:
    """As a power failure or a full disk leaves it; it is chained as it is."""
    path = tmp_path / "audit.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[:-40])
    heads = write(path, 2)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[3])["before"] == digest(lines[2])
    assert verify(path, heads).lines == 4
    path.write_bytes(path.read_bytes().replace(lines[2], lines[2] + b" "))
    with pytest.raises(ChainError, match="line 4 does not follow"):
        verify(path)


def test_lines_of_before_there_was_a_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    old = [Entry(float(number), "say").encode() for number in range(3)]
    path.write_bytes(b"".join(old))
    write(path, 2)
    found = verify(path)
    assert (found.lines, found.unchained) == (2, 3)
    path.write_bytes(path.read_bytes().replace(old[2], old[1]))
    with pytest.raises(ChainError, match="line 4"):
        verify(path)
    path.write_bytes(path.read_bytes() + old[0])
    with pytest.raises(ChainError):
        verify(path)


def test_it_can_be_looked_at_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, 1)
    end = threading.Event()

    def go_on() -> None:
        while not end.is_set():
            write(path, 10, max_size=2000)

    writer = threading.Thread(target=go_on)
    writer.start()
    looks = 0
    try:
        # Files are rotated several times meanwhile.
        while verify(path).lines < 60 or looks < 50:
            looks += 1
    finally:
        end.set()
        writer.join()


def test_the_digest_goes_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in an hour, and at the end."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "audit.jsonl"
    writer = AuditWriter(AuditLog(path))
    writer.put(Entry(0.0, "say"))
    writer.close()
    first = verify(path).head
    assert caplog.text.count("the last line of the audit log has the SHA-256") == 1
    assert first in caplog.text
    monkeypatch.setattr(audit_module, "HEAD_SECONDS", 0.0)
    writer = AuditWriter(AuditLog(path))
    writer.put(Entry(1.0, "say"))
    writer.close()
    assert verify(path, [first]).head in caplog.text
    assert caplog.text.count("the last line of the audit log has the SHA-256") == 2


def test_the_command(tmp_path: Path) -> None:
    config = tmp_path / "minerva.toml"
    config.write_text(f'[console]\ndirectory = "{tmp_path}"\n')

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "minerva", "console", "audit", "verify", "--config", config, *options],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run()
    assert (done.returncode, "there is no audit log" in done.stderr) == (2, True)
    heads = write(tmp_path / "audit.jsonl", 3)
    done = run("--head", heads[1].upper())
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "no line was altered: 3 in 1 files since 1970-01-01T00:00:00.000Z",
        f"the last one has the SHA-256 {heads[2]}",
    ]
    assert json.loads(run("--json").stdout)["lines"] == 3
    done = run("--head", "00")
    assert done.returncode == 1
    assert "no line has the SHA-256 00" in done.stderr
