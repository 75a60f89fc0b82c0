"""The registrar's interfaces over HTTP: BRSKI (RFC 8995 section 5) and EST, and the public one for CRLs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.engine import Engine
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from minerva.brski.registrar.authority import BuiltInAuthority, current_crl
from minerva.brski.registrar.domain import CRL_PATH
from minerva.brski.registrar.errors import DatabaseError, Refusal, RegistrarError
from minerva.brski.registrar.est import EstService, est_routes, peer_of, refusal_response
from minerva.brski.registrar.journal import Journal
from minerva.brski.registrar.masa_client import VOUCHER_CMS_JSON
from minerva.brski.registrar.telemetry import TelemetryService
from minerva.brski.registrar.vouchers import VoucherService
from minerva.core.text import printable
from minerva.https.server import client_chain
from minerva.pki.errors import PkiError

log = logging.getLogger(__name__)

PREFIX: Final = "/.well-known/brski"

MAX_BODY: Final = 131_072
"""The largest body of a request, in bytes: twice a voucher request, which may come in base64."""

RETRY_AFTER: Final = 10
"""After how many seconds to try again while the database does not answer."""

_Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    vouchers: VoucherService,
    telemetry: TelemetryService,
    est: EstService,
    journal: Journal,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """Return the application that pledges and nodes talk to, over TLS."""
    interface = _Interface(vouchers, telemetry, journal, clock)
    return Starlette(
        routes=[*interface.routes(), *est_routes(est)], exception_handlers={HTTPException: _no_route}
    )


def make_crl_app(
    engine: Engine,
    authority: BuiltInAuthority | None,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """Return the application that serves CRLs, without TLS: they are signed, and for everybody.

    Without an ``authority`` of our own there are none here.
    """

    async def answer(request: Request) -> Response:
        if authority is None:
            return _text("there is no CRL here: the domain's CA is elsewhere", 404)
        issuer = request.path_params.get("issuer")
        try:
            crl = await asyncio.to_thread(current_crl, engine, authority, clock(), issuer)
        except DatabaseError as error:
            log.error("the CRL: %s", error)
            return _text("try again later", 503)
        except PkiError as error:
            # Its key may be offline: then the last one holds until it expires.
            log.error("the CRL: %s", error)
            return _text("no new CRL can be made now", 503)
        except RegistrarError as error:
            return _text(str(error), 404)
        left = (crl.next_update - clock()).total_seconds() / 2
        return Response(
            crl.der,
            media_type="application/pkix-crl",
            headers={"Cache-Control": f"max-age={max(0, min(60, int(left)))}"},
        )

    paths = (CRL_PATH, f"{CRL_PATH}/{{issuer:str}}")
    return Starlette(
        routes=[Route(path, answer, methods=["GET"]) for path in paths],
        exception_handlers={HTTPException: _no_route},
    )


class _Interface:
    def __init__(
        self,
        vouchers: VoucherService,
        telemetry: TelemetryService,
        journal: Journal,
        clock: Callable[[], datetime],
    ) -> None:
        self._vouchers = vouchers
        self._telemetry = telemetry
        self._journal = journal
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the routes of BRSKI."""
        return [
            Route(f"{PREFIX}/{name}", self._answered(name, endpoint), methods=["POST"])
            for name, endpoint in (
                ("requestvoucher", self._request_voucher),
                ("voucher_status", self._voucher_status),
                ("enrollstatus", self._enrolment_status),
            )
        ]

    def _answered(self, operation: str, endpoint: _Endpoint) -> _Endpoint:
        async def run(request: Request) -> Response:
            try:
                return await endpoint(request)
            except Refusal as refusal:
                answer = refusal
            except DatabaseError as error:
                log.error("%s: %s", operation, error)
                return refusal_response(
                    Refusal(503, "the registrar's database does not answer", retry_after=RETRY_AFTER)
                )
            await asyncio.to_thread(self._journal.refused, answer, operation, peer_of(request), self._clock())
            return refusal_response(answer)

        return run

    async def _request_voucher(self, request: Request) -> Response:
        voucher = await self._vouchers.answer(
            await _body(request),
            client_chain(request.scope),
            content_type=request.headers.get("content-type", ""),
            accept=", ".join(request.headers.getlist("accept")),
            peer=peer_of(request),
        )
        return Response(voucher, media_type=VOUCHER_CMS_JSON)

    async def _voucher_status(self, request: Request) -> Response:
        await self._telemetry.voucher_status(
            await _body(request),
            client_chain(request.scope),
            content_type=request.headers.get("content-type", ""),
            peer=peer_of(request),
        )
        return Response()

    async def _enrolment_status(self, request: Request) -> Response:
        await self._telemetry.enrolment_status(
            await _body(request),
            client_chain(request.scope),
            content_type=request.headers.get("content-type", ""),
            peer=peer_of(request),
        )
        return Response()


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise Refusal(413, f"a request has {MAX_BODY} bytes at most", close=True)
    return bytes(body)


async def _no_route(request: Request, error: Exception) -> Response:
    """Answer what is none of our operations."""
    assert isinstance(error, HTTPException)
    where = printable(request.url.path[:100])
    said = f"there is no {where} here" if error.status_code == 404 else f"{request.method} is not for {where}"
    return _text(said, error.status_code, dict(error.headers or {}))


def _text(sentence: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{sentence}\n", status, headers)
