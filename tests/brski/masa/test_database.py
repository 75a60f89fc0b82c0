"""What is left of the MASA's work when something breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minerva.brski.database import DatabaseError, open_engine, writing
from minerva.brski.masa.database import Database, metadata
from minerva.brski.masa.errors import MasaError
from minerva.brski.masa.service import Masa
from minerva.brski.masa.settings import Settings
from tests.brski.masa.world import NOW, Domain, Maker, new_nonce
from tests.brski.postgresql import Cluster

ASK = """
import os, sys
from pathlib import Path
from minerva.brski.database import open_engine
from minerva.brski.masa.authority import load_authority
from minerva.brski.masa.database import Database
from minerva.brski.masa.service import Masa
from tests.brski.masa.world import NOW
directory = Path(sys.argv[1])
authority = load_authority(directory)
masa = Masa(authority, Database(open_engine(authority.settings.database_at(directory))))
os.write(1, masa.request_voucher(sys.stdin.buffer.read(), peer="x", now=NOW))
os.kill(os.getpid(), 9)
"""


def test_a_voucher_that_left_is_in_the_log(maker: Maker, domain: Domain) -> None:
    """Whatever becomes of the process.

    covers: M-14
    """
    device = maker.device()
    request, nonce = domain.proximity_request(device)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(maker.directory)],
        input=request,
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == -9, done.stderr.decode()
    assert device.check(done.stdout, nonce)
    (entry,) = maker.database.log(maker.record(device))
    assert entry.nonce == nonce
    assert maker.ask(request) == done.stdout


def test_two_masas_on_one_database(any_maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-14"""
    maker = any_maker
    device = maker.device()
    settings = Settings.load(maker.directory)
    second = Database(open_engine(settings.database_at(maker.directory)))
    request, _ = domain.proximity_request(device)
    voucher = maker.ask(request)
    masa = Masa(maker.authority, second)
    assert masa.request_voucher(request, peer="x", now=NOW) == voucher
    with pytest.raises(MasaError, match="belongs to another domain"):
        masa.request_voucher(other.proximity_request(device)[0], peer="x", now=NOW)
    second.block(device.serial_number, "", NOW)
    with pytest.raises(MasaError, match="blocked"):
        maker.ask(request)
    second.close()


def test_postgresql_that_is_started_again(postgresql: Cluster, domain: Domain, tmp_path: Path) -> None:
    maker = Maker.create(tmp_path / "masa", url=postgresql.new_database())
    device, nonce = maker.device(), new_nonce()
    request = domain.request(device.serial_number, nonce)
    postgresql.stop()
    try:
        with pytest.raises(DatabaseError, match="cannot be used"):
            maker.ask(request)
    finally:
        postgresql.start()
    assert device.check(maker.ask(request), nonce)
    maker.close()


def test_a_database_of_something_else(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "db")
    database = Database(engine)
    with pytest.raises(DatabaseError, match="not that of a MASA"):
        database.check()
    database.create()
    database.check()
    with pytest.raises(DatabaseError, match="in use"):
        database.create()
    with writing(engine) as connection:
        connection.execute(metadata.tables["state"].update().values(value="2"))
    with pytest.raises(DatabaseError, match="version 2"):
        database.check()
    database.close()
