"""Databases for the tests of the registrar: each test that wants one runs on both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from minerva.brski.registrar.database import create_tables, open_database, writing
from tests.brski.postgresql import Cluster, cluster


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A PostgreSQL; skips if it is not installed."""
    with cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    made: Cluster = request.getfixturevalue("postgresql")
    return made.new_database()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with the tables of a registrar."""
    made = open_database(database_url)
    with writing(made) as connection:
        create_tables(connection)
    yield made
    made.dispose()
