"""How registrar and MASA keep their data: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from minerva.brski.errors import DatabaseError

try:
    import sqlalchemy as sa
    from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
except ImportError as error:
    raise DatabaseError(
        "registrar and MASA need more libraries: pip install 'minerva-acp[registrar]'"
    ) from error

__all__ = ["DatabaseError", "RowId", "UtcTime", "open_engine", "reading", "shown", "writing"]

_BUSY_TIMEOUT = 10.0

_FRESH = 1.0
"""How long ago a connection may have been used that is taken to work without a question, in seconds."""

_LAST_USED = "minerva_last_used"

_turns: WeakKeyDictionary[Engine, Lock] = WeakKeyDictionary()


class UtcTime(sa.TypeDecorator[datetime]):
    """A point in time: aware and in UTC in Python, whatever the database makes of it."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return what the database stores. A time without a zone is a mistake of the caller's."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return what Python sees."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite numbers rows by itself only if the key is of the type INTEGER.
RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def open_engine(url_or_path: str | Path) -> Engine:
    """Return the database at a URL of SQLAlchemy or in an SQLite file. Nothing is looked at yet.

    Raises :class:`DatabaseError` for a URL of another kind or a library that is missing.
    """
    url = _url(url_or_path)
    kind = url.get_backend_name()
    try:
        if kind == "sqlite":
            engine = sa.create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT})
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
            _turns[engine] = Lock()
            return engine
        if kind == "postgresql":
            engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
            sa.event.listen(engine, "checkin", _put_back)
            sa.event.listen(engine, "checkout", lambda *which: _take_out(engine.dialect, *which))
            return engine
    except ImportError as error:
        raise DatabaseError(
            "PostgreSQL needs one more library: pip install 'minerva-acp[postgresql]'"
        ) from error
    raise DatabaseError(f"{kind} is not a database that can be used here: take SQLite or PostgreSQL")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A short transaction that only reads. Raises :class:`DatabaseError` if the database does not answer."""
    with _sentence(engine), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A short transaction that writes: all of it or, after an exception, nothing.

    Raises :class:`DatabaseError` if the database does not answer.
    """
    with _sentence(engine), _turn(engine), engine.connect() as connection:
        connection.execution_options(minerva_writes=True)
        with connection.begin():
            yield connection


def shown(engine: Engine) -> str:
    """Return how the database is named to the operator: without the password."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return engine.url.render_as_string(hide_password=True)


def _url(url_or_path: str | Path) -> URL:
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return URL.create("sqlite", database=str(url_or_path))
    try:
        return make_url(url_or_path)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise DatabaseError(
            "the database is given neither by a file name nor by a URL such as "
            "postgresql://USER:PASSWORD@HOST/NAME"
        ) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by _begin_sqlite: by itself the driver begins them too late.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # FULL and not NORMAL: what was committed survives a power cut. What was answered stays true.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the lock at once. A reader that wants to write later might never get it.
    writes = connection.get_execution_options().get("minerva_writes", False)
    driver: Any = connection.connection.dbapi_connection
    driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """Let the writers of a process into SQLite one after the other.

    By itself it lets who finds it busy sleep and look again, for longer each time. Whoever waits for too long
    here is told by SQLite.
    """
    turn = _turns.get(engine)
    has = turn is not None and turn.acquire(timeout=_BUSY_TIMEOUT)
    try:
        yield
    finally:
        if turn is not None and has:
            turn.release()


def _put_back(_connection: Any, record: Any) -> None:
    record.info[_LAST_USED] = time.monotonic()


def _take_out(dialect: Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    """See whether a connection that was idle still works, as after a restart of the database."""
    if time.monotonic() - record.info.get(_LAST_USED, time.monotonic()) < _FRESH:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise sa.exc.DisconnectionError("the connection was lost while nobody used it") from error


@contextmanager
def _sentence(engine: Engine) -> Iterator[None]:
    try:
        yield
    except (sa.exc.IntegrityError, sa.exc.DataError):
        # A value that does not fit is the caller's affair, not the database's state.
        raise
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        said = " ".join(str(cause).split())
        if isinstance(error, sa.exc.ProgrammingError):
            raise DatabaseError(
                f"the database {shown(engine)} has not the tables it should: {said}"
            ) from error
        raise DatabaseError(f"the database {shown(engine)} cannot be used: {said}") from error
