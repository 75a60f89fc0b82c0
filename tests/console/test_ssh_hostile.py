"""The SSH front, by those who mean it harm."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

asyncssh = pytest.importorskip("asyncssh")

from minerva.console import ssh_limits  # noqa: E402
from minerva.console.backends.base import BackendError  # noqa: E402
from minerva.console.backends.ssh import SshBackend  # noqa: E402
from minerva.console.fronts import ssh  # noqa: E402
from minerva.console.fronts.ssh_session import MAX_COMMAND  # noqa: E402
from minerva.console.passwords import hash_password  # noqa: E402
from minerva.console.port_config import SshPort  # noqa: E402
from minerva.console.ssh_limits import check_asyncssh  # noqa: E402
from minerva.core.errors import UsageError  # noqa: E402
from tests.console.office import Line, SshOffice, until  # noqa: E402

PASSWORD = hash_password("open sesame")
FLOOD = """
import asyncio, sys, time
import asyncssh
from asyncssh.packet import Boolean, String, UInt32

async def main():
    connection = await asyncssh.connect(
        "127.0.0.1", int(sys.argv[1]), known_hosts=None, username="vera", password="open sesame",
        client_keys=None, config=None,
    )
    print("in", flush=True)
    transport = connection._transport
    transport.pause_reading()
    while True:
        for _ in range(2000):
            if sys.argv[2] == "global":
                connection.send_packet(80, String("x"), Boolean(True))
            else:
                connection.send_packet(90, String("session"), UInt32(5), UInt32(1000), UInt32(1000))
        while transport.get_write_buffer_size() > 1 << 20:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)

asyncio.run(main())
"""

Test = Callable[[SshOffice], Awaitable[None]]


def run(tmp_path: Path, test: Test) -> None:
    async def main() -> None:
        users = {"vera": {"view": ["*"], "password": PASSWORD}}
        async with SshOffice(tmp_path, {"users": users}, [Line("rack1")]) as office, asyncio.timeout(60):
            await test(office)

    asyncio.run(main())


async def connect(office: SshOffice, **options: object) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        "127.0.0.1",
        office.port,
        **{
            "known_hosts": None,
            "username": "vera:rack1",
            "password": "open sesame",
            "client_keys": None,
            "config": None,
            **options,
        },
    )


@pytest.mark.parametrize("kind", ["global", "open"])
def test_one_user_who_asks_for_too_much_holds_up_nobody(tmp_path: Path, kind: str) -> None:
    async def test(office: SshOffice) -> None:
        flood = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FLOOD, str(office.port), kind), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert flood.stdout is not None
            await flood.stdout.readline()
            worst, end = 0.0, time.monotonic() + 4
            while (before := time.monotonic()) < end:
                await asyncio.sleep(0.001)
                worst = max(worst, time.monotonic() - before)
            assert worst < 1.5
            # Another one is served meanwhile.
            async with asyncio.timeout(30), await connect(office) as connection:
                assert "rack1" in str((await connection.run("list")).stdout)
        finally:
            with suppress(ProcessLookupError):
                flood.kill()
            await flood.wait()

    run(tmp_path, test)


@pytest.mark.parametrize("kex", ["rsa2048-sha256", "diffie-hellman-group18-sha512"])
def test_strangers_get_no_costly_exchange_of_keys(tmp_path: Path, kex: str) -> None:
    async def test(office: SshOffice) -> None:
        with pytest.raises((asyncssh.Error, OSError)):
            await connect(office, kex_algs=[kex])
        for good in ("curve25519-sha256", "ecdh-sha2-nistp256"):
            async with await connect(office, kex_algs=[good]):
                pass

    run(tmp_path, test)


def test_one_user_has_only_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "CONNECTIONS_OF_USER", 3)

    async def test(office: SshOffice) -> None:
        open_ones = [await connect(office) for _ in range(3)]
        with pytest.raises(asyncssh.Error, match=r"vera has 3 connections already|closed"):
            async with await connect(office) as one_too_many:
                await one_too_many.run("list")
        open_ones.pop().abort()
        await until(lambda: office.front.of_user["vera"] == 2)
        async with await connect(office) as connection:
            assert "rack1" in str((await connection.run("list")).stdout)
        for each in open_ones:
            each.abort()
        await until(lambda: not office.front.of_user)

    run(tmp_path, test)


def test_who_logs_in_does_not_learn_of_consoles_that_it_may_not_see(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode().strip()

    async def main() -> None:
        users = {"vera": {"view": ["rack1"], "keys": [public]}}
        async with SshOffice(tmp_path, {"users": users}, [Line("rack1"), Line("secret")]) as office:
            said = []
            for name in ("secret", "nosuch"):
                options = {"username": name, "client_keys": [key], "password": None}
                async with await connect(office, **options) as connection:
                    done = await connection.run("read")
                    said.append((done.exit_status, str(done.stderr).replace(name, "X")))
            assert said == [(1, "there is no console X\n")] * 2

    asyncio.run(main())


def test_a_command_has_an_end(tmp_path: Path) -> None:
    async def test(office: SshOffice) -> None:
        async with await connect(office) as connection:
            done = await connection.run("say " + "a" * MAX_COMMAND)
            assert done.exit_status == 1
            assert done.stderr == f"a command has at most {MAX_COMMAND} characters\n"

    run(tmp_path, test)


def test_an_asyncssh_that_is_not_known_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    check_asyncssh()
    monkeypatch.setattr(ssh_limits, "_REPLACED", {asyncssh.SSHServerConnection: ("receive_bytes",)})
    with pytest.raises(
        UsageError, match=r"another inside .*lacks SSHServerConnection.receive_bytes.*install"
    ):
        check_asyncssh()


SERVER = """
import asyncio, sys
import asyncssh
from asyncssh.packet import Boolean, String

class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False

    def connection_made(self, connection):
        self.connection = connection

class Session(asyncssh.SSHServerSession):
    def connection_made(self, channel):
        self.channel = channel

    def pty_requested(self, *_):
        return True

    def shell_requested(self):
        asyncio.ensure_future(self.flood())
        return True

    async def flood(self):
        connection = self.channel.get_connection()
        transport = connection._transport
        transport.pause_reading()
        await asyncio.sleep(0.2)
        while True:
            for _ in range(2000):
                connection.send_packet(80, String("x"), Boolean(True))
            while transport.get_write_buffer_size() > 1 << 20:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)

async def main():
    Server.session_requested = lambda self: Session()
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        compression_algs=sys.argv[1].split(","),
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def hostile_server(compression: str, directory: Path) -> AsyncIterator[SshBackend]:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, compression), stdout=asyncio.subprocess.PIPE
    )
    password = directory / "password"
    password.write_text("x\n")
    try:
        assert server.stdout is not None
        port = SshPort(
            host="127.0.0.1",
            port=int(await server.stdout.readline()),
            user="root",
            password_file=str(password),
        )
        yield SshBackend(port, known=directory / "known")
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        await server.wait()


def test_a_bmc_that_asks_for_too_much_holds_up_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with hostile_server("none", tmp_path) as backend:
            await backend.open()
            worst, end = 0.0, time.monotonic() + 4
            while (before := time.monotonic()) < end:
                await asyncio.sleep(0.001)
                worst = max(worst, time.monotonic() - before)
            await backend.close()
        assert worst < 1.5

    asyncio.run(main())


def test_a_bmc_sends_nothing_that_is_to_be_unpacked(tmp_path: Path) -> None:
    async def main() -> None:
        async with hostile_server("zlib@openssh.com,zlib", tmp_path) as backend:
            with pytest.raises(BackendError, match=r"compression|Connection lost"):
                await backend.open()
            await backend.close()

    asyncio.run(main())
