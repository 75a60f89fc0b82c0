"""Connections to databases end with the test that opened them: from Python 3.13 on SQLite minds if not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine


@pytest.fixture(autouse=True)
def no_connection_stays_open() -> Iterator[None]:
    used: set[Engine] = set()

    def note(connection: Connection) -> None:
        used.add(connection.engine)

    sa.event.listen(Engine, "engine_connect", note)
    yield
    sa.event.remove(Engine, "engine_connect", note)
    for engine in used:
        engine.dispose()
