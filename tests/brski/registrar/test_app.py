"""The registrar's interface over HTTP, without sockets: what is answered to whom, and to any nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from minerva.brski.database import DatabaseError
from minerva.brski.registrar.app import MAX_BODY, PREFIX, make_app, make_crl_app
from minerva.brski.registrar.est import EstService
from minerva.brski.registrar.masa_client import VOUCHER_CMS_JSON, MasaAwayError
from minerva.brski.registrar.openapi import describe
from minerva.https.exchange import _TLS, TlsFacts
from minerva.pki.identity import load_identity
from tests.brski.registrar.makers import PEER, Bench, Maker, Pledge


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class WithTls:
    """An application as a server with TLS calls it: the client shows certificates."""

    def __init__(self, app: ASGIApp, chain: tuple[x509.Certificate, ...]) -> None:
        self.app = app
        self.chain = chain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/openapi.json":
            await JSONResponse(describe())(scope, receive, send)
            return
        facts = TlsFacts(self.chain, "TLSv1.3")
        await self.app({**scope, _TLS: facts, "client": (PEER, 1234)}, receive, send)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def app(bench: Bench) -> Starlette:
    est = EstService(bench.engine, bench.authority, clock=lambda: bench.now)
    return make_app(bench.vouchers, bench.telemetry, est, bench.journal, clock=lambda: bench.now)


def ask(
    app: ASGIApp,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    chain: tuple[x509.Certificate, ...] = (),
    **headers: str,
) -> Answer:
    """Ask an application once."""
    sent: list[Any] = []
    pieces = [body[i : i + 10_000] for i in range(0, len(body), 10_000)] or [b""]

    async def receive() -> Any:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": fields,
        "scheme": "https",
        "server": ("::1", 8443),
        "http_version": "1.1",
    }
    asyncio.run(WithTls(app, chain)(scope, receive, send))  # type: ignore[arg-type]
    start, *rest = sent
    received = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], received, b"".join(part["body"] for part in rest))


def voucher(app: ASGIApp, pledge: Pledge, body: bytes, **headers: str) -> Answer:
    headers = {"content_type": VOUCHER_CMS_JSON} | headers
    return ask(app, f"{PREFIX}/requestvoucher", body, chain=pledge.certificates, **headers)


def test_a_voucher(bench: Bench, app: Starlette) -> None:
    """
    covers: R-50, R-70, P-30
    """
    pledge = bench.maker.device("D-1")
    answer = voucher(app, pledge, pledge.request(bench.service.certificate), accept=VOUCHER_CMS_JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, VOUCHER_CMS_JSON)
    assert answer.body.startswith(b"\x30")


def test_refusals_have_a_status_a_sentence_and_an_event(bench: Bench, app: Starlette) -> None:
    """
    covers: R-21, R-22
    """
    pledge = bench.maker.device("D-1")
    body = pledge.request(bench.service.certificate)
    stranger = Maker("Stranger").device("S-1")
    cases: list[tuple[int, Answer]] = [
        (401, voucher(app, pledge, pledge.request(bench.maker.root))),
        (403, voucher(app, stranger, body)),
        (406, voucher(app, pledge, b"x")),
        (406, voucher(app, pledge, body, accept="text/html")),
        (415, voucher(app, pledge, body, content_type="application/json")),
        (413, voucher(app, pledge, bytes(MAX_BODY + 1))),
    ]
    for status, answer in cases:
        assert answer.status == status
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body.decode().strip()
        assert answer.headers.get("connection") == ("close" if status in (401, 413) else None)
    events = bench.events()
    assert [detail["status"] for _, detail in events] == [status for status, _ in cases]
    assert {kind for kind, _ in events} == {"refused"}
    assert bench.counts()[:2] == (1, 0)  # the registrar's own node, and no voucher


def test_who_has_to_wait_is_told_how_long(bench: Bench, app: Starlette) -> None:
    """
    covers: R-23
    """
    bench.masa.error = MasaAwayError("the MASA is away", 20.0)
    pledge = bench.maker.device("D-1")
    answer = voucher(app, pledge, pledge.request(bench.service.certificate))
    assert (answer.status, answer.headers["retry-after"]) == (202, "20")
    assert bench.events() == []


def test_reports(bench: Bench, app: Starlette) -> None:
    """
    covers: R-60, R-63
    """
    pledge = bench.maker.device("D-1")
    bench.asks(pledge)
    report = json.dumps({"version": 1, "status": True}).encode()
    for name in ("voucher_status", "enrollstatus"):
        path = f"{PREFIX}/{name}"
        answer = ask(app, path, report, chain=pledge.certificates, content_type="application/json")
        assert (answer.status, answer.body) == (200, b"")
        stranger = bench.maker.device("D-2")
        answer = ask(app, path, report, chain=stranger.certificates, content_type="application/json")
        assert answer.status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{PREFIX}/requestvoucher", 405),
        ("PUT", f"{PREFIX}/enrollstatus", 405),
        ("POST", f"{PREFIX}/requestauditlog", 404),
        ("POST", "/", 404),
        ("GET", "/\x1b[2J", 404),
    ],
)
def test_what_is_no_operation(app: Starlette, method: str, path: str, status: int) -> None:
    answer = ask(app, path, method=method)
    assert answer.status == status
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.decode().strip().isprintable()
    assert ("allow" in answer.headers) is (status == 405)


def test_a_database_that_does_not_answer(
    bench: Bench, app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr("minerva.brski.registrar.vouchers.reading", fail)
    pledge = bench.maker.device("D-1")
    answer = voucher(app, pledge, pledge.request(bench.service.certificate))
    assert (answer.status, answer.headers["retry-after"]) == (503, "10")
    assert b"disk" not in answer.body


def test_the_crl_is_for_everybody(bench: Bench) -> None:
    app = make_crl_app(bench.engine, bench.authority, clock=lambda: bench.now)
    answer = ask(app, "/crl", method="GET")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pkix-crl")
    crl = x509.load_der_x509_crl(answer.body)
    assert crl.is_signature_valid(bench.service.chain[0].public_key())  # type: ignore[arg-type]
    (url,) = [
        name.value
        for extension in load_identity(bench.made.node_directory).certificate.extensions
        if isinstance(extension.value, x509.CRLDistributionPoints)
        for point in extension.value
        for name in point.full_name or ()
    ]
    path = "/" + url.split("/", 3)[3]
    assert ask(app, path, method="GET").body == answer.body
    assert ask(app, "/crl/00", method="GET").status == 404
    assert ask(app, "/crl", method="POST").status == 405
    assert ask(app, "/.well-known/est/cacerts", method="GET").status == 404
    assert ask(make_crl_app(bench.engine, None), "/crl", method="GET").status == 404


# Any nonsense


@schemathesis.serializer("application/pkcs10", VOUCHER_CMS_JSON)
def as_it_is(_context: Any, value: Any) -> bytes:
    """How schemathesis sends what is no JSON."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


CHECKS = (content_type_conformance, response_schema_conformance, status_code_conformance)
STATUSES = {200, 202, 400, 401, 403, 404, 405, 406, 413, 415, 501}


def test_whatever_is_sent_there_is_an_answer(bench: Bench, app: Starlette) -> None:
    """By the description of the interface; nothing is written but events."""
    pledge = bench.maker.device("D-1")
    bench.asks(pledge)
    before = bench.counts()[:2]
    for chain in ((), pledge.certificates):
        schema = schemathesis.openapi.from_asgi("/openapi.json", WithTls(app, chain))
        for operation in schema.get_all_operations():

            @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.ok().as_strategy())
            def fuzz(case: Any) -> None:
                response = case.call()
                assert response.status_code in STATUSES
                case.validate_response(response, checks=CHECKS)

            fuzz()
    assert bench.counts()[:2] == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_request_that_was_tampered_with(bench: Bench, app: Starlette, data: st.DataObject) -> None:
    """Mutated CMS: refused, with nothing written but an event."""
    if not hasattr(bench, "seed"):
        bench.pledge = bench.maker.device("D-1")  # type: ignore[attr-defined]
        bench.seed = bench.pledge.request(bench.service.certificate)  # type: ignore[attr-defined]
    seed: bytes = bench.seed
    where = data.draw(st.integers(0, len(seed) - 1))
    change: Callable[[bytearray], None] = data.draw(
        st.sampled_from(
            [
                lambda body: body.__setitem__(where, body[where] ^ (1 << where % 8)),
                lambda body: body.__delitem__(where),
                lambda body: body.__delitem__(slice(where, None)),
                lambda body: body.insert(where, where % 256),
                lambda body: body.__setitem__(slice(where, where), bytes(body)),
            ]
        )
    )
    body = bytearray(seed)
    change(body)
    answer = voucher(app, bench.pledge, bytes(body))
    # What changes neither the signature nor what was signed may pass: the version, for example.
    assert answer.status in (200, 401, 403, 406)
    assert (bench.device(bench.pledge) is not None) == bool(bench.masa.asked)
