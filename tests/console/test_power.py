"""Switching machines: by ipmi_sim, by a Redfish service of this file, by commands."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import json
import ssl
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from minerva.console import port_config, power, redfish
from minerva.console.backends.base import BackendError
from minerva.console.events import AttachmentInfo
from minerva.console.power import Power, PowerAction, PowerState, confirmation, make_power
from minerva.console.redfish import RedfishClient, SshConsole
from minerva.core.secret import Secret
from tests.console.strangers import ipmi_sim, line

PASSWORD = "geheim"
LOGIN = "Basic " + base64.b64encode(f"root:{PASSWORD}".encode()).decode()


def test_over_ipmi(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with line(tmp_path) as (near, _), ipmi_sim(tmp_path, near) as port:
            switch = make_power(
                port_config.IpmiPower(
                    host="127.0.0.1", port=port, user="operator", password_file=str(tmp_path / "password")
                )
            )
            assert switch.describe() == f"IPMI of 127.0.0.1 port {port}"
            assert await switch.status() is PowerState.OFF
            await switch.act(PowerAction.ON)
            assert await switch.status() is PowerState.ON
            await switch.act(PowerAction.OFF)
            assert await switch.status() is PowerState.OFF
            await switch.act(PowerAction.RESET)
            assert "set reset" in (tmp_path / "other").read_text()

    asyncio.run(scenario())


# -- Redfish


class Bmc:
    """A Redfish service with one machine."""

    def __init__(self, directory: Path) -> None:
        self.key_file, self.certificate_file = directory / "key.pem", directory / "certificate.pem"
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.fingerprint = self._make_certificate()
        self.state = "Off"
        self.kinds: list[str] | None = ["On", "ForceOff", "ForceRestart", "PowerCycle"]
        self.done: list[str] = []
        self.asked: list[str] = []
        self.logins: list[str] = []
        self.members = ["/redfish/v1/Systems/1"]
        self.console: Any = {"SSH": {"ServiceEnabled": True, "Port": 2200, "ConsoleEntryCommand": "sol"}}
        self.answer: tuple[int, bytes] | None = None
        self.port = 0

    def _make_certificate(self) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bmc")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(key, hashes.SHA256())
        )
        self.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    def settings(self, **more: str) -> port_config.RedfishPower:
        """Return the settings with which it is reached."""
        details = {"fingerprint": self.fingerprint.upper(), **more}
        return port_config.RedfishPower(
            url=f"https://127.0.0.1:{self.port}",
            user="root",
            password_file=str(self.password_file),
            **details,
        )

    def client(self) -> RedfishClient:
        """Return a client."""
        return RedfishClient(
            f"https://127.0.0.1:{self.port}",
            user="root",
            password=Secret(PASSWORD.encode()),
            fingerprint=self.fingerprint,
        )

    def respond(self, method: str, path: str, login: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of a response."""
        self.asked.append(f"{method} {path}")
        self.logins.append(login)
        if login != LOGIN:
            return 401, b""
        if self.answer is not None:
            return self.answer
        reset: dict[str, Any] = {"target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"}
        if self.kinds is not None:
            reset["ResetType@Redfish.AllowableValues"] = self.kinds
        if (method, path) == ("GET", "/redfish/v1/Systems"):
            return 200, json.dumps({"Members": [{"@odata.id": member} for member in self.members]}).encode()
        if (method, path) == ("GET", "/redfish/v1/Systems/1"):
            system = {
                "PowerState": self.state,
                "Actions": {"#ComputerSystem.Reset": reset},
                "SerialConsole": self.console,
            }
            return 200, json.dumps(system).encode()
        if (method, path) == ("POST", reset["target"]):
            kind = json.loads(body)["ResetType"]
            self.done.append(kind)
            self.state = "Off" if kind == "ForceOff" else "On"
            return 204, b""
        return 404, b'{"error": {"@Message.ExtendedInfo": [{"Message": "No \\u001b[m such"}]}}'

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = {n.lower(): v.strip() for n, _, v in (part.partition(":") for part in head[1:])}
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                method, path, _ = head[0].split()
                status, answer = self.respond(method, path, fields.get("authorization", ""), body)
                length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(answer)
                writer.write(b"HTTP/1.1 %d X\r\n%s\r\n%s" % (status, length, answer))
                await writer.drain()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


@asynccontextmanager
async def running(bmc: Bmc) -> AsyncIterator[None]:
    """Run the service as long as the block lasts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bmc.certificate_file, bmc.key_file)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await bmc.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    bmc.port = server.sockets[0].getsockname()[1]
    yield
    server.close()
    if tasks:
        await asyncio.wait(tasks, timeout=3)


@pytest.fixture
def bmc(tmp_path: Path) -> Bmc:
    """A Redfish service that does not run yet."""
    return Bmc(tmp_path)


async def do(switch: Power, *actions: PowerAction) -> None:
    for action in actions:
        await switch.act(action)


def test_over_redfish(bmc: Bmc) -> None:
    async def scenario() -> None:
        async with running(bmc):
            switch = make_power(bmc.settings())
            assert switch.describe() == f"Redfish of 127.0.0.1:{bmc.port}"
            assert await switch.status() is PowerState.OFF
            await switch.act(PowerAction.ON)
            assert await switch.status() is PowerState.ON
            await do(switch, PowerAction.RESET, PowerAction.CYCLE, PowerAction.OFF)
            assert bmc.done == ["On", "ForceRestart", "PowerCycle", "ForceOff"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("PoweringOn", PowerState.ON),
        ("PoweringOff", PowerState.ON),
        ("Paused", PowerState.ON),
        ("Strange", PowerState.UNKNOWN),
        (7, PowerState.UNKNOWN),
    ],
)
def test_states_of_redfish(bmc: Bmc, said: str, state: PowerState) -> None:
    async def scenario() -> None:
        async with running(bmc):
            bmc.state = said
            assert await make_power(bmc.settings()).status() is state

    asyncio.run(scenario())


def test_a_bmc_without_a_cycle_of_its_own(bmc: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redfish, "_CYCLE_LOOK", 0.01)
    bmc.kinds = ["ForceOn", "ForceOff"]
    bmc.state = "On"

    async def scenario() -> None:
        async with running(bmc):
            switch = make_power(bmc.settings())
            await switch.act(PowerAction.CYCLE)
            assert bmc.done == ["ForceOff", "ForceOn"]
            with pytest.raises(BackendError, match="does no ForceRestart; it does: ForceOn, ForceOff"):
                await switch.act(PowerAction.RESET)

    asyncio.run(scenario())


def test_a_bmc_that_does_not_say_what_it_can(bmc: Bmc) -> None:
    bmc.kinds = None

    async def scenario() -> None:
        async with running(bmc):
            await make_power(bmc.settings()).act(PowerAction.RESET)
            assert bmc.done == ["ForceRestart"]

    asyncio.run(scenario())


def test_nothing_is_said_to_a_bmc_with_another_certificate(bmc: Bmc) -> None:
    async def scenario() -> None:
        async with running(bmc):
            switch = make_power(bmc.settings(fingerprint="0" * 64))
            with pytest.raises(BackendError, match=f"another certificate, of fingerprint {bmc.fingerprint}"):
                await switch.status()
            # The system does not trust it, either.
            with pytest.raises(BackendError, match="is not trusted: its certificate is self-signed"):
                await make_power(bmc.settings(fingerprint="")).status()
            assert bmc.asked == []
            trusting = make_power(bmc.settings(fingerprint="", ca_file=str(bmc.certificate_file)))
            assert await trusting.status() is PowerState.OFF

    asyncio.run(scenario())


def test_a_wrong_password(bmc: Bmc) -> None:
    async def scenario() -> None:
        async with running(bmc):
            bmc.password_file.write_text("hunter2")
            with pytest.raises(BackendError, match="does not let root do that") as caught:
                await make_power(bmc.settings()).status()
            assert "hunter2" not in str(caught.value)

    asyncio.run(scenario())


def test_which_system_is_meant(bmc: Bmc) -> None:
    async def scenario() -> None:
        async with running(bmc):
            bmc.members = ["/redfish/v1/Systems/1", "/redfish/v1/Systems/2"]
            with pytest.raises(BackendError, match=r"has 2 systems \(1, 2\): say which"):
                await make_power(bmc.settings()).status()
            assert await make_power(bmc.settings(system="1")).status() is PowerState.OFF
            with pytest.raises(BackendError, match="has no system 3"):
                await make_power(bmc.settings(system="3")).status()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, b""), "answers 500"),
        ((400, b'{"error": {"message": "bad \\u001b"}}'), r"answers 400: bad \\u001b"),
        ((200, b"<html>"), "not answer as Redfish does"),
        ((200, b"[" * 100_000), "not answer as Redfish does"),
        ((200, b'{"Members": 7}'), "has 0 systems"),
        ((200, b'{"Members": [{"@odata.id": "http://x/y"}]}'), "has 1 systems"),
        ((200, b'{"Members": [{"@odata.id": "/a b"}]}'), "a path of no use"),
    ],
)
def test_a_bmc_that_answers_nonsense(bmc: Bmc, answer: tuple[int, bytes], reason: str) -> None:
    async def scenario() -> None:
        async with running(bmc):
            bmc.answer = answer
            with pytest.raises(BackendError, match=reason) as caught:
                await make_power(bmc.settings()).status()
            assert "\x1b" not in str(caught.value)

    asyncio.run(scenario())


def test_what_a_bmc_can_may_be_anything(bmc: Bmc) -> None:
    async def scenario() -> None:
        async with running(bmc):
            deep: Any = "deep"
            for _ in range(900):
                deep = [deep]
            bmc.kinds = [deep, {}, None, "Nap"]
            with pytest.raises(BackendError, match=r"does no ForceOff; it does: Nap$"):
                await make_power(bmc.settings()).act(PowerAction.OFF)

    asyncio.run(scenario())


def test_where_the_console_is(bmc: Bmc) -> None:
    async def scenario() -> None:
        async with running(bmc):
            client = bmc.client()
            assert await client.ssh_console() == SshConsole(2200, "sol")
            for console, reason in (
                ({"SSH": {"ServiceEnabled": False, "Port": 22}}, "turned off"),
                ({"SSH": {"Port": 0}}, "does not say on which port"),
                (None, "does not say that it has a console"),
            ):
                bmc.console = console
                with pytest.raises(BackendError, match=reason):
                    await client.ssh_console()
            await client.close()
            assert len(bmc.asked) == 8

    asyncio.run(scenario())


# -- commands


def test_by_commands(tmp_path: Path) -> None:
    state = tmp_path / "state"

    def shell(code: str) -> tuple[str, ...]:
        return "sh", "-c", code

    async def scenario() -> None:
        switch = make_power(
            port_config.CommandPower(
                on=shell(f"echo Outlet 1 is ON > {state}"),
                off=shell(f"echo Outlet 1 is OFF > {state}"),
                cycle=shell("echo no such outlet >&2; exit 2"),
                reset=("/no/such",),
                status=("cat", str(state)),
            )
        )
        with pytest.raises(BackendError, match=r"cat failed with status 1: .*No such file"):
            await switch.status()
        await switch.act(PowerAction.ON)
        assert await switch.status() is PowerState.ON
        await switch.act(PowerAction.OFF)
        assert await switch.status() is PowerState.OFF
        state.write_text("it is one of them")
        assert await switch.status() is PowerState.UNKNOWN
        with pytest.raises(BackendError, match="sh failed with status 2: no such outlet"):
            await switch.act(PowerAction.CYCLE)
        with pytest.raises(BackendError, match="/no/such cannot be run: No such file"):
            await switch.act(PowerAction.RESET)

    asyncio.run(scenario())


def test_a_command_that_prints_without_end_costs_no_memory() -> None:
    async def scenario() -> None:
        program = "import sys\nfor _ in range(3000): sys.stdout.write('on' * 32768)"
        switch = make_power(port_config.CommandPower(status=(sys.executable, "-c", program)))
        tracemalloc.start()
        try:
            await switch.status()
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()

    asyncio.run(scenario())


def test_a_command_that_is_not_there_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "COMMAND_SECONDS", 0.1)

    async def scenario() -> None:
        switch = make_power(port_config.CommandPower(on=("sleep", "60")))
        assert await switch.status() is PowerState.UNKNOWN
        with pytest.raises(BackendError, match="no command for power off"):
            await switch.act(PowerAction.OFF)
        with pytest.raises(BackendError, match=r"sleep did not end within 0\.1 s"):
            await switch.act(PowerAction.ON)

    asyncio.run(scenario())


# -- the question before


def attached(user: str, source: str, writing: bool) -> AttachmentInfo:
    """Return somebody who is attached."""
    return AttachmentInfo(1, user, source, 0.0, writing, writing, False, 0, 0)


def test_the_question_says_who_is_attached() -> None:
    people = [attached("ann", "ssh fd00::1", True), attached("b\x1bb", "", False)]
    assert confirmation("rack1", PowerAction.OFF, people) == (
        "switch rack1 off? Attached to its console: ann (writes, from ssh fd00::1), b\\u001bb (reads)."
    )
    assert confirmation("rack1", PowerAction.RESET, []) == "reset rack1? Nobody is attached to its console."
    assert confirmation("rack1", PowerAction.ON, []).startswith("switch rack1 on?")
    assert confirmation("rack1", PowerAction.CYCLE, []).startswith("switch rack1 off and on again?")
