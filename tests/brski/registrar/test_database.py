"""The registrar's database: SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from minerva.brski.registrar import database
from minerva.brski.registrar.database import (
    DeviceState,
    bump,
    check_schema,
    create_tables,
    events,
    get_state,
    open_database,
    reading,
    record_event,
    set_state,
    writing,
)
from minerva.brski.registrar.devices import (
    change_state,
    find_by_serial_number,
    find_device,
    get_device,
    revoke_device,
    see_device,
)
from minerva.brski.registrar.errors import DatabaseError, RegistrarError
from tests.brski.postgresql import Cluster

NOW = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)


def test_tables_are_made_once(engine: Engine) -> None:
    check_schema(engine)
    with pytest.raises(DatabaseError, match="already; it is left as it is"), writing(engine) as connection:
        create_tables(connection)


def test_another_version_is_refused(engine: Engine) -> None:
    with writing(engine) as connection:
        set_state(connection, "schema_version", "999")
    with pytest.raises(DatabaseError, match="tables of version 999, this program needs version 1"):
        check_schema(engine)


def test_no_registrar(tmp_path: Path, database_url: str) -> None:
    with pytest.raises(DatabaseError, match=r"no registrar in .*; make one with `minerva registrar init`"):
        check_schema(open_database(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()
    empty = open_database(database_url)
    with pytest.raises(DatabaseError, match="no registrar in"):
        check_schema(empty)
    empty.dispose()


def test_other_databases_are_refused() -> None:
    with pytest.raises(DatabaseError, match="take SQLite or PostgreSQL"):
        open_database("mysql://host/name")
    with pytest.raises(DatabaseError, match="neither by a file name nor by a URL"):
        open_database("a b://")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one" * 10)
    with pytest.raises(DatabaseError, match="text"):
        check_schema(open_database(tmp_path / "text"))


def test_a_server_that_is_not_there_does_not_show_the_password() -> None:
    with pytest.raises(DatabaseError, match="cannot be used") as caught:
        check_schema(open_database("postgresql://user:geheim@[::1]:1/name"))
    assert "geheim" not in str(caught.value)


def test_a_server_that_comes_back(postgresql: Cluster) -> None:
    engine = open_database(postgresql.new_database())
    with writing(engine) as connection:
        create_tables(connection)
    postgresql.stop()
    try:
        with pytest.raises(DatabaseError, match="cannot be used"):
            check_schema(engine)
    finally:
        postgresql.start()
    check_schema(engine)
    engine.dispose()


def test_a_server_that_was_started_again_while_nobody_asked(
    postgresql: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minerva.brski.database._FRESH", 0.0)
    engine = open_database(postgresql.new_database())
    with writing(engine) as connection:
        create_tables(connection)
    postgresql.stop()
    postgresql.start()
    check_schema(engine)
    engine.dispose()


def test_times_keep_their_zone_and_fraction(engine: Engine) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    with writing(engine) as connection:
        record_event(connection, "test", when=elsewhere)
        found = connection.scalar(sa.select(events.c.time))
    assert found == NOW
    assert found is not None
    assert found.tzinfo is UTC
    with pytest.raises(sa.exc.StatementError, match="no time zone"), writing(engine) as connection:
        record_event(connection, "test", when=NOW.replace(tzinfo=None))


def test_a_transaction_is_all_or_nothing(engine: Engine) -> None:
    def fail() -> None:
        with writing(engine) as connection:
            set_state(connection, "key", "value")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with reading(engine) as connection:
        assert get_state(connection, "key") is None


def test_numbers_in_the_state(engine: Engine) -> None:
    for number in range(1, 12):
        with writing(engine) as connection:
            assert bump(connection, "number") == number


def test_texts_of_events_are_printable_and_short(engine: Engine) -> None:
    with writing(engine) as connection:
        record_event(
            connection, "refused", when=NOW, detail={"reason": "a\x1b[31mb" + "x" * 1000, "status": 403}
        )
        detail = json.loads(str(connection.scalar(sa.select(events.c.detail))))
    assert detail["reason"].startswith("a\\u001b[31mb")
    assert len(detail["reason"]) == database.MAX_DETAIL
    assert detail["status"] == 403


def test_the_oldest_events_go(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_EVENTS", 10)
    monkeypatch.setattr(database, "_EVENTS_BETWEEN_CLEANINGS", 5)
    with writing(engine) as connection:
        for number in range(30):
            record_event(connection, f"event {number}", when=NOW)
        kinds = connection.scalars(sa.select(events.c.kind).order_by(events.c.id)).all()
    assert kinds == [f"event {number}" for number in range(20, 30)]


def test_a_device_is_one_row(engine: Engine) -> None:
    for _ in range(2):
        with writing(engine) as connection:
            first = see_device(connection, None, "serial", when=NOW, peer="fd00::1")
    with writing(engine) as connection:
        assert find_by_serial_number(connection, "serial") == (get_device(connection, first.id),)
        assert find_device(connection, None, "other") is None
        found = find_device(connection, None, "serial", lock=True)
    assert found is not None
    assert (found.state, found.peer, found.first_seen, found.last_seen) == (
        DeviceState.WAITING,
        "fd00::1",
        NOW,
        NOW,
    )


def test_states_of_a_device(engine: Engine) -> None:
    with writing(engine) as connection:
        see_device(connection, None, "serial", when=NOW)
        device = find_device(connection, None, "serial", lock=True)
        assert device is not None
        with pytest.raises(RegistrarError, match="serial is waiting: it cannot become enrolled"):
            change_state(connection, device, DeviceState.ENROLLED)
        with pytest.raises(RegistrarError, match="it cannot become revoked"):
            revoke_device(connection, device, reason=None, when=NOW)
        for state in (
            DeviceState.APPROVED,
            DeviceState.VOUCHERED,
            DeviceState.ENROLLED,
            DeviceState.ENROLLED,
        ):
            change_state(connection, device, state, reason="why")
            device = get_device(connection, device.id)
            assert device is not None
            assert (device.state, device.reason) == (state, "why")
        assert revoke_device(connection, device, reason="stolen", when=NOW) == 0
        device = get_device(connection, device.id)
        assert device is not None
        assert (device.state, device.reason) == (DeviceState.REVOKED, "stolen")
        with pytest.raises(RegistrarError, match="is revoked: it cannot become enrolled"):
            change_state(connection, device, DeviceState.ENROLLED)
