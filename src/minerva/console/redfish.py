"""What a console server wants of a BMC over Redfish: switching the machine, and where its console is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from minerva.console.backends.base import CONNECT_SECONDS, BackendError, Dialer, SystemDialer, dial, why
from minerva.core.errors import MinervaError
from minerva.core.secret import Secret
from minerva.core.text import printable, shortened
from minerva.https.client import HttpClient, Response
from minerva.https.errors import HttpError
from minerva.https.stream import WebStream, host_and_port, web_stream

ROOT: Final = "/redfish/v1"
_CYCLE_SECONDS: Final = 60.0
_CYCLE_LOOK: Final = 1.0


@dataclass(frozen=True, slots=True)
class SshConsole:
    """Where a machine's console is (ComputerSystem.SerialConsole.SSH), not the BMC's own shell."""

    port: int
    command: str
    """What to say to the SSH server to be given the console; empty if nothing."""


class RedfishClient:
    """A BMC, at ``url``, https://HOST[:PORT]. Everything raises BackendError at most.

    With ``fingerprint``, the SHA-256 of the BMC's certificate in hex, nothing else is asked of it; else it
    must have a path to a certificate in ``ca_file``, or to what this system trusts, and the right name.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str,
        password: Secret,
        system: str = "",
        ca_file: str = "",
        fingerprint: str = "",
        dialer: Dialer | None = None,
    ) -> None:
        parts = urlsplit(url)
        try:
            self._host, self._port = parts.hostname or "", parts.port or 443
        except ValueError as error:
            raise BackendError(f"{printable(url)} is no address of a BMC: {error}") from error
        self._user = user
        self._password = password
        self._system = system
        self._ca_file = ca_file
        self._fingerprint = fingerprint.lower()
        self._dialer = dialer or SystemDialer()
        self._http: HttpClient | None = None

    @property
    def where(self) -> str:
        """The address, fit for a terminal."""
        return host_and_port(self._host, self._port)

    async def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def power_state(self) -> str:
        """Return the machine's PowerState: On, Off, PoweringOn, PoweringOff, Paused, or nothing."""
        state = (await self._find_system()).get("PowerState")
        return state if isinstance(state, str) else ""

    async def reset(self, *kinds: str) -> None:
        """Do the first of these kinds of ComputerSystem.Reset that the BMC can do."""
        system = await self._find_system()
        actions = system.get("Actions")
        action = actions.get("#ComputerSystem.Reset") if isinstance(actions, dict) else None
        target = action.get("target") if isinstance(action, dict) else None
        if not isinstance(action, dict) or not isinstance(target, str) or not target.startswith("/"):
            raise BackendError(f"the BMC {self.where} cannot switch the machine")
        allowed = action.get("ResetType@Redfish.AllowableValues")
        if not isinstance(allowed, list):
            allowed = list(kinds)
        kind = next((kind for kind in kinds if kind in allowed), None)
        if kind is None:
            can = ", ".join(shortened(item, 40) for item in allowed[:20] if isinstance(item, str))
            raise BackendError(f"the BMC {self.where} does no {' or '.join(kinds)}; it does: {can}")
        await self._request("POST", target, {"ResetType": kind})

    async def cycle(self) -> None:
        """Switch the machine off and on."""
        try:
            await self.reset("PowerCycle")
        except BackendError:
            # Many BMCs have none.
            if await self.power_state() != "Off":
                await self.reset("ForceOff")
            async with _patience(f"the BMC {self.where} does not switch the machine off"):
                while await self.power_state() != "Off":
                    await asyncio.sleep(_CYCLE_LOOK)
            await self.reset("On", "ForceOn")

    async def ssh_console(self) -> SshConsole:
        """Return where the machine's console is over SSH."""
        console = (await self._find_system()).get("SerialConsole")
        ssh = console.get("SSH") if isinstance(console, dict) else None
        if not isinstance(ssh, dict):
            raise BackendError(f"the BMC {self.where} does not say that it has a console over SSH")
        if ssh.get("ServiceEnabled") is False:
            raise BackendError(f"the BMC {self.where} has its console over SSH turned off")
        port, command = ssh.get("Port"), ssh.get("ConsoleEntryCommand")
        if type(port) is not int or not 0 < port < 65_536:
            raise BackendError(f"the BMC {self.where} does not say on which port its console over SSH is")
        return SshConsole(port, command if isinstance(command, str) else "")

    async def _find_system(self) -> dict[str, Any]:
        found = await self._request("GET", f"{ROOT}/Systems")
        members = found.get("Members")
        paths = [
            path
            for member in (members if isinstance(members, list) else [])
            if isinstance(member, dict) and isinstance(path := member.get("@odata.id"), str)
        ]
        if self._system:
            paths = [path for path in paths if path.rstrip("/").rpartition("/")[2] == self._system]
            if not paths:
                raise BackendError(f"the BMC {self.where} has no system {printable(self._system)}")
        if len(paths) != 1 or not paths[0].startswith("/"):
            names = ", ".join(shortened(path.rpartition("/")[2], 40) for path in paths[:20])
            raise BackendError(f"the BMC {self.where} has {len(paths)} systems ({names}): say which")
        return await self._request("GET", paths[0])

    async def _request(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        login = base64.b64encode(self._user.encode() + b":" + self._password.reveal()).decode()
        headers = [
            ("Authorization", f"Basic {login}"),
            ("Accept", "application/json"),
            ("OData-Version", "4.0"),
        ]
        data = b""
        if body is not None:
            headers.append(("Content-Type", "application/json"))
            data = json.dumps(body).encode()
        try:
            if self._http is None or not self._http.usable:
                await self.close()
                self._http = HttpClient(await self._connect(), self.where)
            response = await self._http.request(method, path, headers=headers, body=data)
        except HttpError as error:
            raise BackendError(f"the BMC {self.where}: {error}") from error
        except MinervaError as error:
            raise BackendError(f"the BMC {self.where} gives a path of no use: {error}") from error
        return self._answer(response)

    def _answer(self, response: Response) -> dict[str, Any]:
        if response.status in (401, 403):
            raise BackendError(f"the BMC {self.where} does not let {printable(self._user)} do that")
        if not 200 <= response.status < 300:
            raise BackendError(f"the BMC {self.where} answers {response.status}: {_message(response)}")
        if not response.body:
            return {}
        found = _json(response.body)
        if not isinstance(found, dict):
            raise BackendError(f"the BMC {self.where} does not answer as Redfish does")
        return found

    async def _connect(self) -> WebStream:
        sock = await dial(self._dialer, self._host, self._port)
        if self._fingerprint:
            return await self._connect_to_known(sock)
        return await web_stream(self._host, self._port, anchors=self._anchors(), sock=sock)

    def _anchors(self) -> Sequence[x509.Certificate] | None:
        if not self._ca_file:
            return None
        try:
            return x509.load_pem_x509_certificates(Path(self._ca_file).read_bytes())
        except OSError as error:
            raise BackendError(f"{self._ca_file} cannot be read: {why(error)}") from error
        except ValueError as error:
            raise BackendError(f"{self._ca_file} holds no certificates: {error}") from error

    async def _connect_to_known(self, sock: Any) -> WebStream:
        """Return a stream to the server with the fingerprint; nothing is said to another one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="")
        except TimeoutError as error:
            raise BackendError(f"the BMC {self.where} took too long with TLS") from error
        except OSError as error:
            raise BackendError(f"the BMC {self.where}: TLS failed: {why(error)}") from error
        stream = WebStream(reader, writer, self.where)
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        shown = hashlib.sha256(certificate).hexdigest()
        if not hmac.compare_digest(shown, self._fingerprint):
            await stream.close()
            raise BackendError(f"the BMC {self.where} has another certificate, of fingerprint {shown}")
        return stream


class _patience:  # noqa: N801  # used like a function
    """A time limit whose error is a sentence."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        self._timeout = asyncio.timeout(_CYCLE_SECONDS)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *details: Any) -> None:
        try:
            await self._timeout.__aexit__(*details)
        except TimeoutError as error:
            raise BackendError(self._sentence) from error


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(response: Response) -> str:
    """Return what a BMC says about an error."""
    found = _json(response.body)
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict):
        details = error.get("@Message.ExtendedInfo")
        first = details[0] if isinstance(details, list) and details else error
        for text in (first.get("Message") if isinstance(first, dict) else None, error.get("message")):
            if isinstance(text, str):
                return shortened(text, 200)
    return response.text()
