"""The registrar as a process: where it listens, that it lives with its node, and that several are one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from cryptography import x509

from minerva.brski.registrar import server as module
from minerva.brski.registrar.announce import Announcer
from minerva.brski.registrar.config import CONFIG_FILE, SERVICE_DIRECTORY, Config, Login, Server
from minerva.brski.registrar.database import reading
from minerva.brski.registrar.errors import RegistrarError
from minerva.brski.registrar.identity import load_service
from minerva.brski.registrar.server import Registrar, _credentials, running
from minerva.https.client import HttpClient
from minerva.https.stream import TlsStream
from minerva.pki.certificates import dump_pem
from minerva.pki.keys import dump_private_key
from minerva.tls.context import make_context
from tests.asa.node import fake_node
from tests.brski.registrar.makers import Bench, Pledge
from tests.brski.registrar.test_announce import floods, prepared


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(40):
            await test

    asyncio.run(main())


class Process:
    """One process of the registrar, in this one."""

    def __init__(self, bench: Bench, run_dir: Path, address: str = "::1", **options: Any) -> None:
        server = Server(address=address, **{"port": 0, "crl_port": 0} | options)
        self.registrar = Registrar(
            bench.made.directory, Config(server=server), run_dir=run_dir, environment={}
        )
        self.ready, self.stop = asyncio.Event(), asyncio.Event()
        self.where = ("", 0)
        self.crl_port = 0

    def serving(self, address: IPv6Address, port: int, crl_port: int) -> None:
        self.where, self.crl_port = (str(address), port), crl_port
        self.ready.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Process]:
        task = asyncio.create_task(self.registrar.run(self.stop, self.serving))
        try:
            waiting = asyncio.create_task(self.ready.wait())
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                waiting.cancel()
                task.result()
            yield self
        finally:
            self.stop.set()
            await task

    async def connect(self, pledge: Pledge) -> HttpClient:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.where)
        context = make_context(pledge.certificate, pledge.chain, pledge.key)
        return HttpClient(await TlsStream.client(sock, context), "registrar")


def test_what_it_shows_in_tls_and_that_it_takes_any_client(bench: Bench, tmp_path: Path) -> None:
    """
    covers: R-10, R-21
    """

    async def scenario() -> None:
        async with Process(bench, tmp_path).running() as process:
            pledge = bench.maker.device("D-1")
            client = await process.connect(pledge)
            assert isinstance(client.stream, TlsStream)
            shown = client.stream.peer_chain
            # The chain has what may be pinned: the CAs of the domain.
            assert shown == (bench.service.certificate, *bench.service.authorities)
            usages = shown[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            assert {usage.dotted_string for usage in usages} == {
                "1.3.6.1.5.5.7.3.28",
                "1.3.6.1.5.5.7.3.1",
                "1.3.6.1.5.5.7.3.2",
            }
            assert shown[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            body = pledge.request(bench.maker.root)
            headers = [("Content-Type", "application/voucher-cms+json")]
            answer = await client.request(
                "POST", "/.well-known/brski/requestvoucher", headers=headers, body=body
            )
            assert answer.status == 401
            # After the answer the connection is closed.
            assert answer.headers["connection"] == "close"
            assert await client.stream.read() == b""
            await client.close()

    run(scenario())


def test_the_name_that_a_client_asks_for_does_not_matter(bench: Bench, tmp_path: Path) -> None:
    """
    covers: R-10
    """

    async def scenario() -> None:
        async with Process(bench, tmp_path).running() as process:
            pledge = bench.maker.device("D-1")
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, process.where)
            context = make_context(pledge.certificate, pledge.chain, pledge.key)
            stream = await TlsStream.client(sock, context, server_name="whatever.example")
            assert stream.peer_chain[0] == bench.service.certificate
            await stream.close()

    run(scenario())


def test_the_crl_is_served_in_the_clear(bench: Bench, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Process(bench, tmp_path).running() as process:

            def fetch() -> bytes:
                url = f"http://[::1]:{process.crl_port}/crl"
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
                    return bytes(answer.read())

            assert x509.load_der_x509_crl(await asyncio.to_thread(fetch)).next_update_utc

    run(scenario())


def test_it_says_that_it_runs_and_that_it_does_not(bench: Bench, tmp_path: Path) -> None:
    def found() -> list[dict[str, Any]]:
        with reading(bench.engine) as connection:
            return running(connection, datetime.now(UTC))

    async def scenario() -> None:
        async with Process(bench, tmp_path).running() as process:
            while not (about := await asyncio.to_thread(found)):
                await asyncio.sleep(0.05)
            assert (about[0]["address"], about[0]["port"]) == process.where
        assert found() == []

    run(scenario())


def test_it_waits_for_the_node_and_announces_itself_through_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    covers: R-1, R-2
    """
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_WAIT", 0.02)
    here = IPv6Address("fd89:b714:f3db:0:200:0:6400:1")
    tries: list[IPv6Address] = []
    real = module._bound

    def bound(address: IPv6Address, port: int) -> socket.socket | None:
        """The host gets the address a little later than the node."""
        tries.append(address)
        return None if len(tries) < 3 else real(IPv6Address("::1"), port)

    monkeypatch.setattr(module, "_bound", bound)

    async def scenario() -> None:
        process = Process(bench, tmp_path, address="")
        task = asyncio.create_task(process.registrar.run(process.stop, process.serving))
        await asyncio.sleep(0.2)
        assert not process.ready.is_set()
        async with fake_node(tmp_path) as bare:
            node = prepared(bare)
            await asyncio.wait_for(process.ready.wait(), 10)
            assert process.where[0] == str(here)
            assert set(tries) == {here}
            await node.until(lambda: len(floods(node)) == 2)
            process.stop.set()
            await task
            assert floods(node)[2:] == [("AN_join_registrar", 1), ("SRV.est", 1)]

    run(scenario())
    messages = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert len([text for text in messages if text.startswith("waiting for this machine's node")]) == 1
    assert len([text for text in messages if text.startswith("waiting for the address")]) == 1


def test_it_can_be_stopped_while_it_waits(bench: Bench, tmp_path: Path) -> None:
    async def scenario() -> None:
        process = Process(bench, tmp_path / "nowhere", address="")
        task = asyncio.create_task(process.registrar.run(process.stop, process.serving))
        await asyncio.sleep(0.1)
        process.stop.set()
        await asyncio.wait_for(task, 5)
        assert not process.ready.is_set()

    run(scenario())


def test_a_port_that_somebody_else_has(bench: Bench, tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(RegistrarError, match=rf"cannot listen on \[::1\]:{port}: "):
                async with Process(bench, tmp_path, port=port).running():
                    pass

    run(scenario())


def test_two_processes_are_one_registrar(bench: Bench, tmp_path: Path) -> None:
    """What one begins the other ends; a device that is told to one is known to the other.

    covers: R-3, R-51
    """

    async def ask(process: Process, pledge: Pledge, method: str, path: str, body: bytes = b"") -> int:
        client = await process.connect(pledge)
        headers = [("Content-Type", "application/voucher-cms+json")]
        answer = await client.request(method, path, headers=headers, body=body)
        await client.close()
        return answer.status

    async def scenario() -> None:
        pledge = bench.maker.device("D-1")
        await bench.ask(pledge)  # by a third one, as these two have no MASA
        async with Process(bench, tmp_path).running() as one, Process(bench, tmp_path).running() as other:
            body = pledge.request(bench.service.certificate)
            for process in (one, other):
                path = "/.well-known/brski/requestvoucher"
                assert await ask(process, pledge, "POST", path, body) == 200
                assert await ask(process, pledge, "GET", "/.well-known/est/csrattrs") == 200

    run(scenario())


def test_a_new_certificate_is_taken_while_it_runs(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    covers: R-76
    """
    monkeypatch.setattr(module, "HOUSEKEEPING_SECONDS", 0.1)

    async def scenario() -> None:
        process = Process(bench, tmp_path)
        # By the clock of the process most of the certificate's life is over.
        late = bench.service.certificate.not_valid_after_utc - timedelta(days=30)
        process.registrar._clock = lambda: late
        async with process.running():
            pledge = bench.maker.device("D-1")
            while True:
                client = await process.connect(pledge)
                assert isinstance(client.stream, TlsStream)
                shown = client.stream.peer_chain[0]
                await client.close()
                if shown != bench.service.certificate:
                    break
                await asyncio.sleep(0.05)
            assert shown == load_service(bench.made.directory / SERVICE_DIRECTORY).certificate

    run(scenario())


def test_that_it_is_announced_is_known_at_once() -> None:
    said: list[bool] = []

    class Keeper(module._Keeper):
        def __init__(self) -> None:
            pass

        def _look_after(self) -> None:
            pass

        def _say(self, about: dict[str, Any]) -> None:
            said.append(about["announced"])

    async def scenario() -> None:
        announcer = Announcer(Path("/nowhere"), IPv6Address("fd00::1"), 1, works=AsyncMock())
        task = asyncio.create_task(Keeper().run({}, announcer))
        for announced in (False, True, False):
            announcer._note(announced=announced)
            async with asyncio.timeout(10):
                while said[-1:] != [announced]:
                    await asyncio.sleep(0.01)
        task.cancel()

    run(scenario())


def test_logins(bench: Bench, tmp_path: Path) -> None:
    """
    covers: R-32
    """
    for name, data in (
        ("cert.pem", dump_pem([bench.service.certificate, *bench.service.chain])),
        ("key.pem", dump_private_key(bench.service.key)),
        ("password", b"secret\n"),
    ):
        (tmp_path / name).write_bytes(data)
    login = Login(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), "me", str(tmp_path / "password"))
    found = _credentials({"Masa.Example.com": login, "[2001:db8::1]:9443": Login()})
    shown = found("masa.example.com", 443)
    assert shown.certificate == bench.service.certificate
    assert shown.chain == bench.service.chain
    assert (shown.user, shown.password) == ("me", "secret")
    assert found("masa.example.com", 8443).certificate is None
    for broken in (
        replace(login, key=str(tmp_path / "password")),
        replace(login, certificate=str(tmp_path / "nowhere")),
        replace(login, certificate=str(tmp_path / "key.pem")),
    ):
        with pytest.raises(RegistrarError, match=r'masa.servers."m"'):
            _credentials({"m": broken})


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    """It says when it serves, and ends with SIGTERM."""
    settings = bench.made.directory / CONFIG_FILE
    settings.write_text('log_level = "info"\n' + settings.read_text())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "minerva", "registrar", "run", "--dir", str(bench.made.directory)),
            *("--address", "::1", "--port", "0", "--crl-port", "0", "--run-dir", str(tmp_path)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "ready on [::1]:" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0
    assert "stopped" in rest
    assert json.dumps(lines).count("Traceback") == 0
