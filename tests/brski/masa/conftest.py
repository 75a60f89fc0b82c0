"""A maker, two domains; the databases are SQLite, and PostgreSQL where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brski.masa.world import Domain, Maker
from tests.brski.postgresql import Cluster, cluster


@pytest.fixture(scope="session")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """The domain of an honest customer."""
    return Domain("acp.example.com", tmp_path_factory.mktemp("domain"))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Another domain."""
    return Domain("other.example.net", tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A PostgreSQL; skips if it is not installed."""
    with cluster() as made:
        yield made


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Maker]:
    """A maker whose MASA gives devices to whoever comes first."""
    made = Maker.create(tmp_path / "masa")
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_maker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    """The same on each kind of database."""
    url = None
    if request.param == "postgresql":
        postgres: Cluster = request.getfixturevalue("postgresql")
        url = postgres.new_database()
    made = Maker.create(tmp_path / "masa", url=url)
    yield made
    made.close()
