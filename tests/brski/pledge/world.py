"""A maker, a domain, a device, and a registrar on the loopback interface that does what a test tells it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import h11
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from minerva.brski.pledge.attempt import bootstrap
from minerva.brski.pledge.device import Device
from minerva.brski.pledge.enrolment import Enrolled
from minerva.brski.pledge.errors import AttemptError
from minerva.est.bodies import certs_only, decode_base64, encode_base64
from minerva.est.csrattrs import for_node_name
from minerva.https.errors import HttpError
from minerva.https.stream import TlsStream
from minerva.pki.certificates import ID_KP_CMC_RA
from minerva.pki.idevid import idevid_extensions
from minerva.pki.node_name import AcpNodeName
from minerva.pki.request import load_request
from minerva.tls.context import make_context
from minerva.voucher.cms import open_signed, sign
from minerva.voucher.model import Assertion, Voucher, VoucherRequest
from minerva.voucher.telemetry import Status
from tests.https.ends import dial, listener, run
from tests.pki.certs import Ca, _make, key, node_name, san, subject

NOW = datetime.now(UTC).replace(microsecond=0)
VALID: dict[str, Any] = {"start": NOW - timedelta(days=1), "end": NOW + timedelta(days=30)}
SERIAL = "JADA123456789"

MAKER = Ca.root("Maker", kind="p384", **VALID)
MASA_CERTIFICATE = MAKER.node(subject=subject("MASA"), kind="p256/masa", **VALID)
OTHER_MAKER = Ca.root("Other maker", kind="p384/other", **VALID)


def idevid(serial: str = SERIAL, kind: str = "p256/device") -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)])
    extensions = [
        pair for pair in idevid_extensions("masa.example") if pair[0].oid.dotted_string != "2.5.29.19"
    ]
    return MAKER.node(subject=name, kind=kind, extensions=extensions, **VALID)


DEVICE = Device(idevid(), (), (MAKER.certificate,), key("p256/device"), SERIAL)

ROOT = Ca.root("Domain root", kind="p384/root", **VALID)
ISSUING = ROOT.ca("Domain issuing", kind="p256/issuing", **VALID)
STRANGER = Ca.root("Stranger", kind="p256/stranger", **VALID)

NODE_NAME = AcpNodeName.parse(node_name(7))
OTHER_NAME = AcpNodeName.parse(node_name(8))


def registrar_certificate(
    ca: Ca = ISSUING, kind: str = "p256/registrar", usages: Sequence[Any] = (ID_KP_CMC_RA,), **options: Any
) -> x509.Certificate:
    extensions = [(x509.ExtendedKeyUsage(usages), False)] if usages else []
    return ca.node(
        "@acp.example.com", subject=subject("registrar"), kind=kind, extensions=extensions, **VALID | options
    )


REGISTRAR = registrar_certificate()


def certify(
    public_key: Any, name: AcpNodeName | None = NODE_NAME, ca: Ca = ISSUING, **options: Any
) -> x509.Certificate:
    """A certificate of the domain for a node."""
    extensions = [] if name is None else [(san(str(name)), False)]
    return _make(
        options.pop("subject", subject("node")),
        public_key,
        ca.certificate.subject,
        ca.key,
        ca=False,
        extensions=extensions,
        **VALID | options,
    )


def make_voucher(request: VoucherRequest, **changes: Any) -> Voucher:
    """The voucher that the maker's MASA would give."""
    voucher = Voucher(
        assertion=Assertion.PROXIMITY,
        created_on=NOW,
        serial_number=SERIAL,
        nonce=request.nonce,
        pinned_domain_cert=ROOT.certificate.public_bytes(Encoding.DER),
    )
    return replace(voucher, **changes)


def signed(voucher: Voucher | bytes, ca_key: Any = None, certificate: Any = None, **options: Any) -> bytes:
    payload = voucher if isinstance(voucher, bytes) else voucher.encode()
    return sign(
        payload,
        ca_key or key("p256/masa"),
        certificate or MASA_CERTIFICATE,
        options.pop("chain", ()),
        when=options.pop("when", NOW),
    )


@dataclass
class Asked:
    """A request that the registrar got."""

    connection: int
    chain: tuple[x509.Certificate, ...]
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        return self.target.partition("?")[0].rpartition("/")[2]


@dataclass
class Answer:
    """What it says: or, without a status, it closes the connection without a word."""

    status: int | None = 200
    body: bytes = b""
    content_type: str = "text/plain"
    headers: Sequence[tuple[str, str]] = ()
    close: bool = False


DROP = Answer(None)
Handler = Callable[[Asked], Answer]


@dataclass
class Registrar:
    """A registrar; ``handlers`` are by the last part of the path, and take turns where there is a list."""

    handlers: dict[str, Handler | list[Handler | Answer]] = field(default_factory=dict)
    contexts: list[Any] = field(default_factory=list)
    pinned: x509.Certificate = ROOT.certificate
    authorities: tuple[x509.Certificate, ...] = (ROOT.certificate, ISSUING.certificate)
    name: AcpNodeName = NODE_NAME
    certificate: x509.Certificate = REGISTRAR
    chain: tuple[x509.Certificate, ...] = ISSUING.chain
    kind: str = "p256/registrar"
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def of(self, operation: str) -> list[Asked]:
        return [each for each in self.asked if each.operation == operation]

    def operations(self) -> list[str]:
        return [each.operation for each in self.asked]

    def statuses(self, operation: str) -> list[Status]:
        return [Status.decode(each.body) for each in self.of(operation)]

    async def connect(self) -> socket.socket:
        return dial(self.port)

    def context(self) -> Any:
        if self.contexts:
            return self.contexts[min(self.connections, len(self.contexts)) - 1]
        return make_context(self.certificate, self.chain, key(self.kind))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Registrar]:
        loop = asyncio.get_running_loop()
        sock = listener()
        self.port = sock.getsockname()[1]
        tasks: set[asyncio.Task[None]] = set()

        async def accept() -> None:
            while True:
                client, _ = await loop.sock_accept(sock)
                self.connections += 1
                task = loop.create_task(self._serve(client, self.connections))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        accepting = loop.create_task(accept())
        try:
            yield self
        finally:
            accepting.cancel()
            for task in list(tasks):
                task.cancel()
            await asyncio.wait([accepting, *tasks])
            sock.close()

    async def _serve(self, client: socket.socket, number: int) -> None:
        with suppress(HttpError):
            stream = await TlsStream.server(client, self.context())
            try:
                await self._converse(stream, number)
            finally:
                await stream.close()

    async def _converse(self, stream: TlsStream, number: int) -> None:
        http = h11.Connection(h11.SERVER)
        while True:
            request, body = None, b""
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.read())
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            assert request is not None
            asked = Asked(
                number,
                stream.peer_chain,
                request.method.decode(),
                request.target.decode(),
                {name.decode(): value.decode() for name, value in request.headers},
                body,
            )
            self.asked.append(asked)
            answer = self.answer(asked)
            if answer.status is None:
                return
            headers = [
                ("Content-Type", answer.content_type),
                ("Content-Length", str(len(answer.body))),
                *answer.headers,
            ]
            if answer.close:
                headers.append(("Connection", "close"))
            await stream.write(
                b"".join(
                    http.send(event) or b""
                    for event in (
                        h11.Response(status_code=answer.status, headers=headers),
                        h11.Data(data=answer.body),
                        h11.EndOfMessage(),
                    )
                )
            )
            if http.our_state is not h11.DONE:
                return
            http.start_next_cycle()

    def answer(self, asked: Asked) -> Answer:
        handler: Any = self.handlers.get(asked.operation)
        if isinstance(handler, list):
            handler = handler.pop(0) if handler else None
        if isinstance(handler, Answer):
            return handler
        return self.honest(asked) if handler is None else handler(asked)

    def honest(self, asked: Asked) -> Answer:
        match asked.operation:
            case "requestvoucher":
                return self.voucher(asked)
            case "voucher_status" | "enrollstatus":
                return Answer()
            case "cacerts":
                return pkcs7(*self.authorities)
            case "csrattrs":
                body = encode_base64(for_node_name(self.name))
                return Answer(200, body, "application/csrattrs")
            case "simpleenroll" | "simplereenroll":
                request = load_request(decode_base64(asked.body))
                return pkcs7(certify(request.public_key, request.node_name, subject=request.subject))
        return Answer(404, b"what?")

    def voucher(self, asked: Asked, **changes: Any) -> Answer:
        """The voucher for a request, as the MASA would give it but for ``changes``."""
        request = VoucherRequest.decode(open_signed(asked.body).payload)
        pinned = self.pinned.public_bytes(Encoding.DER)
        voucher = make_voucher(request, **{"pinned_domain_cert": pinned} | changes)
        return Answer(200, signed(voucher), "application/voucher-cms+json")


def pkcs7(*certificates: x509.Certificate) -> Answer:
    return Answer(200, encode_base64(certs_only(certificates)), "application/pkcs7-mime")


def not_yet(retry_after: str | None = "0") -> Answer:
    headers = [] if retry_after is None else [("Retry-After", retry_after)]
    return Answer(202, b"", headers=headers)


# --- attempts ----------------------------------------------------------------------------------------------


def clock() -> datetime:
    return datetime.now(UTC)


def enrol(registrar: Registrar, **options: Any) -> Enrolled:
    """Run one attempt with ``registrar``."""
    found: list[Enrolled] = []

    async def attempt() -> None:
        async with registrar.running():
            found.append(await bootstrap(registrar.connect, DEVICE, **{"now": clock} | options))

    run(attempt())
    return found[0]


def fail(registrar: Registrar, kind: type[AttemptError] = AttemptError, **options: Any) -> str:
    """Run one attempt that fails, and return why."""
    with pytest.raises(kind) as caught:
        enrol(registrar, **options)
    return str(caught.value)


def request_of(asked: Asked) -> VoucherRequest:
    return VoucherRequest.decode(open_signed(asked.body).payload)


def altered(**changes: Any) -> Callable[[Asked], Answer]:
    """A handler that answers with the MASA's voucher, but for ``changes``."""
    return lambda asked: Registrar().voucher(asked, **changes)


IMPOSTOR = Ca.root("Domain root", kind="p384/impostor", **VALID)
FAKE_ISSUING = IMPOSTOR.ca("Domain issuing", kind="p256/fake", **VALID)
"""CAs with the names of the domain's, and other keys."""
