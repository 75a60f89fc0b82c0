"""The MASA's interface to registrars, over HTTP (RFC 8995 sections 5.5 to 5.8)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from minerva.brski.database import DatabaseError
from minerva.brski.masa.errors import Refusal
from minerva.brski.masa.openapi import describe
from minerva.brski.masa.service import Masa
from minerva.core.text import printable
from minerva.voucher.cms import MAX_SIZE

VOUCHER_CMS_JSON = "application/voucher-cms+json"

MAX_BODY = 2 * MAX_SIZE
"""The longest voucher request accepted, in bytes: twice that of its binary form, as it may be in base64."""

THREADS = 4
"""How many requests are worked on at a time. While one waits for the disk others go on."""

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

# A media range with its parameters, and the parameter that says "not this" (RFC 9110 section 12.5.1).
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"(?P<range>{_TOKEN}/{_TOKEN})\s*(?P<parameters>(?:;.*)?)")
_NEVER = re.compile(r";\s*q\s*=\s*0(?:\.0{0,3})?\s*(?:;|$)", re.IGNORECASE)


def make_app(masa: Masa, path: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Starlette:
    """Return the application, whose operations are below ``path``."""
    interface = _Interface(masa, path, now)
    return Starlette(
        routes=[
            Route(f"{path}/requestvoucher", interface.request_voucher, methods=["POST"]),
            Route(f"{path}/requestauditlog", interface.request_audit_log, methods=["POST"]),
            Route(f"{path}/auditlog/{{slug}}", interface.audit_log, methods=["GET"]),
            Route("/openapi.json", interface.description, methods=["GET"]),
        ],
        exception_handlers={
            Refusal: _refused,
            DatabaseError: _unavailable,
            HTTPException: _no_route,
        },
        lifespan=interface.lifespan,
    )


class _Interface:
    def __init__(self, masa: Masa, path: str, now: Callable[[], datetime]) -> None:
        self._masa = masa
        self._path = path
        self._now = now
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="masa")

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """End the threads at the end, when what they do is done."""
        try:
            yield
        finally:
            await asyncio.to_thread(self._threads.shutdown)

    async def request_voucher(self, request: Request) -> Response:
        """Answer POST requestvoucher."""
        check_accept(request)
        data = await _body(request)
        peer = _peer(request)
        voucher = await self._run(lambda: self._masa.request_voucher(data, peer=peer, now=self._now()))
        return Response(voucher, media_type=VOUCHER_CMS_JSON)

    async def request_audit_log(self, request: Request) -> Response:
        """Answer POST requestauditlog."""
        data = await _body(request)
        log, slug = await self._run(lambda: self._masa.request_audit_log(data, self._now()))
        location = f"{self._path}/auditlog/{slug}"
        return Response(log.encode(), media_type="application/json", headers={"location": location})

    async def audit_log(self, request: Request) -> Response:
        """Answer GET for a log whose URL somebody was given."""
        slug = request.path_params["slug"]
        log = await self._run(lambda: self._masa.audit_log_at(slug))
        return Response(
            log.encode(), media_type="application/json", headers={"cache-control": "private, max-age=60"}
        )

    async def description(self, _request: Request) -> Response:
        """Answer GET for the description of this interface."""
        return JSONResponse(describe(self._path))

    async def _run(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != VOUCHER_CMS_JSON:
        raise Refusal(415, f"voucher requests are of the media type {VOUCHER_CMS_JSON}")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise Refusal(413, f"a voucher request has at most {MAX_BODY} bytes")
    return bytes(data)


def check_accept(request: Request) -> None:
    """Raise :class:`Refusal` unless the client takes our vouchers (RFC 8995 section 5.6, RFC 9110 12.5.1)."""
    wanted: dict[str, bool] = {}
    for part in ",".join(request.headers.getlist("accept")).split(","):
        if not part.strip():
            continue
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            raise Refusal(415, "the Accept header is not a list of media types")
        wanted[found["range"].lower()] = _NEVER.search(found["parameters"]) is None
    for offered in (VOUCHER_CMS_JSON, "application/*", "*/*"):
        # The most specific range decides.
        if offered in wanted:
            if wanted[offered]:
                return
            break
    if wanted:
        raise Refusal(406, f"vouchers of this maker are of the media type {VOUCHER_CMS_JSON} alone")


def _peer(request: Request) -> str:
    return "unknown" if request.client is None else request.client.host


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    path = printable(request.url.path[:200])
    _logger.info("%s from %s: %d, %s", path, _peer(request), error.status, error.reason)
    headers = {"retry-after": "1"} if error.status == 503 else None
    return PlainTextResponse(error.reason + "\n", error.status, headers)


async def _unavailable(_request: Request, error: Exception) -> Response:
    _logger.error("%s", error)
    return PlainTextResponse("the database does not answer; try again later\n", 503, {"retry-after": "10"})


async def _no_route(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
