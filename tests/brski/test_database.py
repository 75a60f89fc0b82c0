"""SQLite and PostgreSQL as registrar and MASA open them."""

from __future__ import annotations

import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from minerva.brski import database
from minerva.brski.database import DatabaseError, UtcTime, open_engine, reading, shown, writing

TABLE = sa.Table("times", sa.MetaData(), sa.Column("time", UtcTime))


def test_sqlite_keeps_what_was_committed(tmp_path: Path) -> None:
    """covers: M-14"""
    engine = open_engine(tmp_path / "db")
    with reading(engine) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


def test_times_are_aware(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'db'}")
    when = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    with writing(engine) as connection:
        TABLE.metadata.create_all(connection)
        connection.execute(sa.insert(TABLE), [{"time": when}, {"time": None}])
    with reading(engine) as connection:
        assert connection.scalars(sa.select(TABLE.c.time)).all() == [when.astimezone(UTC), None]
    with pytest.raises(sa.exc.StatementError, match="time zone"), writing(engine) as connection:
        connection.execute(sa.insert(TABLE), [{"time": datetime(2026, 1, 1)}])
    engine.dispose()


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "db")
    with writing(engine) as connection:
        TABLE.metadata.create_all(connection)

    def fail() -> None:
        with writing(engine) as connection:
            connection.execute(sa.insert(TABLE), [{"time": None}])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with reading(engine) as connection:
        assert connection.scalars(sa.select(TABLE.c.time)).all() == []
    engine.dispose()


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, words in (("mysql://u:p@h/d", "mysql"), ("://", "neither"), ("what://", "what")):
        with pytest.raises(DatabaseError, match=words):
            open_engine(url)
    with pytest.raises(DatabaseError, match="cannot be used"), reading(open_engine(tmp_path / "a" / "b")):
        pass
    engine = open_engine(tmp_path / "db")
    with pytest.raises(DatabaseError, match="cannot be used"), reading(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM nothing")
    engine.dispose()
    assert "secret" not in shown(open_engine("postgresql://user:secret@host/db"))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseError, match=r"minerva-acp\[postgresql\]"):
        open_engine("postgresql://h/d")


def test_writers_take_turns(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "db")
    with writing(engine) as connection:
        TABLE.metadata.create_all(connection)

    def write(_: int) -> None:
        with writing(engine) as connection:
            connection.execute(sa.insert(TABLE), [{"time": None}])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(100)))
        with reading(engine) as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(TABLE)) == 100
    engine.dispose()


def test_somebody_else_who_writes_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_TIMEOUT", 0.1)
    engine = open_engine(tmp_path / "db")
    with writing(engine) as connection:
        TABLE.metadata.create_all(connection)

    def write() -> None:
        with writing(engine) as connection:
            connection.execute(sa.insert(TABLE), [{"time": None}])

    other = sqlite3.connect(tmp_path / "db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked"):
        write()
    other.execute("ROLLBACK")
    other.close()
    # The same in this process: nobody waits for ever.
    with writing(engine), ThreadPoolExecutor(1) as threads, pytest.raises(DatabaseError, match="locked"):
        threads.submit(write).result(20)
    write()
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(TABLE)) == 1
    engine.dispose()
