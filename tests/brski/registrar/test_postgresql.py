"""The whole on PostgreSQL, where several processes are one registrar; elsewhere the tests are on SQLite."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from minerva.brski.registrar.database import DeviceState, writing
from minerva.brski.registrar.errors import Refusal
from minerva.brski.registrar.journal import forget_strangers
from minerva.brski.registrar.policy import Policy
from minerva.brski.registrar.telemetry import JSON
from minerva.cli.registrar_manage import registrar
from tests.brski.postgresql import Cluster
from tests.brski.registrar.makers import Bench, Maker


@pytest.fixture
def bench(tmp_path: Path, postgresql: Cluster) -> Bench:
    return Bench(tmp_path, postgresql.new_database(), policy=Policy.APPROVE)


def test_a_device_from_the_queue_to_its_report(bench: Bench) -> None:
    """
    covers: R-23, R-51, R-60
    """

    def command(*arguments: str) -> dict[str, object]:
        result = CliRunner().invoke(registrar, [*arguments, "--dir", str(bench.made.directory), "--json"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.output)
        assert isinstance(found, dict)
        return found

    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    processes = [bench.voucher_service() for _ in range(3)]
    for process in processes:
        with pytest.raises(Refusal) as caught:
            bench.asks(pledge, body, service=process)
        assert caught.value.status == 202
    command("approve", "D-1")

    async def all_at_once() -> list[bytes]:
        return await asyncio.gather(*(bench.ask(pledge, body, service=process) for process in processes))

    vouchers = asyncio.run(all_at_once())
    assert all(vouchers)
    # Whoever is asked now has the same one.
    again = {bench.asks(pledge, body, service=process) for process in processes}
    assert len(again) == 1
    report = b'{"version":1,"status":true}'
    asyncio.run(bench.telemetry.voucher_status(report, pledge.certificates, content_type=JSON))
    device = bench.device(pledge)
    assert device is not None
    assert (device.state, device.audit_ok) == (DeviceState.VOUCHERED, True)
    with pytest.raises(Refusal) as caught:
        bench.asks(Maker("Stranger").device("S-1"))
    bench.journal.refused(caught.value, "requestvoucher", "2001:db8::1", bench.now)
    found = command("devices")
    assert [one["state"] for one in found["devices"]] == ["enrolled", "vouchered"]  # type: ignore[attr-defined]
    assert len(found["refused"]) == 1  # type: ignore[arg-type]
    assert command("status")["devices"]["vouchered"] == 1  # type: ignore[index]
    assert command("revoke", "D-1")["state"] == "revoked"
    assert command("log", "D-1")["events"]
    with writing(bench.engine) as connection:
        forget_strangers(connection, keep=0)
    assert command("devices")["refused"] == []
    bench.engine.dispose()
