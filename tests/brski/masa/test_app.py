"""The MASA's HTTP interface, over TLS."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any

import pytest

from minerva.brski.database import DatabaseError
from minerva.brski.masa.app import MAX_BODY, VOUCHER_CMS_JSON, make_app
from minerva.https.client import HttpClient, Response
from minerva.https.errors import HttpError
from minerva.https.server import Limits, make_server_context, serve
from minerva.https.stream import web_stream
from minerva.pki.idevid import WELL_KNOWN_PATH as WELL_KNOWN
from minerva.voucher.audit import AuditLog
from tests.brski.masa.world import NOW, Domain, Maker, new_nonce

VOUCHER, LOG = f"{WELL_KNOWN}/requestvoucher", f"{WELL_KNOWN}/requestauditlog"
TYPE = ("content-type", VOUCHER_CMS_JSON)

Ask = Callable[..., Awaitable[Response]]


def serving(maker: Maker, use: Callable[[Ask], Coroutine[Any, Any, None]]) -> None:
    """Run ``use`` beside a server; it gets what asks it, by the name in the IDevIDs."""

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        tls = maker.authority.tls
        context = make_server_context(tls.certificate, maker.authority.anchors, tls.key, client="optional")
        ready, stop = asyncio.Event(), asyncio.Event()
        app = make_app(maker.masa, WELL_KNOWN, now=lambda: NOW)
        server = asyncio.create_task(
            serve(app, [listener], context, ready=ready.set, stop=stop, limits=Limits(body_size=MAX_BODY))
        )
        await ready.wait()
        stream = await web_stream("127.0.0.1", port, anchors=maker.authority.anchors, timeout=10)
        client = HttpClient(stream, "127.0.0.1")

        async def ask(method: str, target: str, body: bytes = b"", *headers: tuple[str, str]) -> Response:
            return await client.request(method, target, headers=headers, body=body, timeout=10)

        try:
            await use(ask)
        finally:
            await client.close()
            stop.set()
            await server

    asyncio.run(main())


@pytest.fixture
def local_maker(tmp_path: Any) -> Any:
    """A maker whose MASA is at 127.0.0.1, now."""
    made = Maker.create(tmp_path / "masa", at="127.0.0.1")
    yield made
    made.close()


def test_a_voucher_and_its_log(local_maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-1, M-2, M-13, M-15, R-42"""
    device = local_maker.device()
    request, nonce = domain.proximity_request(device)

    async def use(ask: Ask) -> None:
        answer = await ask("POST", VOUCHER, request, TYPE, ("accept", VOUCHER_CMS_JSON))
        assert answer.status == 200
        assert answer.headers["content-type"] == VOUCHER_CMS_JSON
        assert device.check(answer.body, nonce)
        log = await ask("POST", LOG, request, TYPE)
        assert log.status == 200
        assert log.headers["content-type"] == "application/json"
        assert AuditLog.decode(log.body).events[0].nonce == nonce
        again = await ask("GET", log.headers["location"])
        assert (again.status, again.body) == (200, log.body)
        assert "max-age" in again.headers["cache-control"]
        foreign = await ask("POST", LOG, other.request(device.serial_number, new_nonce()), TYPE)
        assert foreign.status == 404
        assert (await ask("GET", f"{WELL_KNOWN}/auditlog/guessed")).status == 404

    serving(local_maker, use)


def test_what_a_stranger_asks_for_is_harmless_in_the_log(
    local_maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def use(ask: Ask) -> None:
        assert (await ask("GET", f"{WELL_KNOWN}/auditlog/%1b[2J%0a{'x' * 1000}")).status == 404

    serving(local_maker, use)
    said = [record.getMessage() for record in caplog.records if "auditlog" in record.getMessage()]
    assert len(said) == 1
    assert said[0].isprintable()
    assert len(said[0]) < 400


def test_refusals_are_sentences(local_maker: Maker, domain: Domain, other: Domain) -> None:
    """covers: M-13"""
    device = local_maker.device()
    local_maker.ask(domain.proximity_request(device)[0])
    request, _ = other.proximity_request(device)

    async def use(ask: Ask) -> None:
        for status, answer in (
            (403, await ask("POST", VOUCHER, request, TYPE)),
            (404, await ask("POST", VOUCHER, domain.request("nobody", new_nonce()), TYPE)),
            (400, await ask("POST", VOUCHER, b"?", TYPE)),
            (415, await ask("POST", VOUCHER, request, ("content-type", "application/voucher+cose"))),
            (415, await ask("POST", VOUCHER, request)),
            (415, await ask("POST", LOG, request, ("content-type", "text/plain"))),
            (404, await ask("GET", "/elsewhere")),
            (405, await ask("GET", VOUCHER)),
        ):
            assert answer.status == status
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert len(answer.body.decode()) > 5

    serving(local_maker, use)


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 200),
        ("application/*", 200),
        ("text/html, */*;q=0.1", 200),
        (f"application/voucher+cose, {VOUCHER_CMS_JSON};q=0.5, application/voucher-jws+json", 200),
        (VOUCHER_CMS_JSON.upper(), 200),
        ("", 200),
        ("application/voucher+cose", 406),
        ("application/voucher-jws+json, text/plain", 406),
        (f"{VOUCHER_CMS_JSON};q=0", 406),
        (f"*/*, {VOUCHER_CMS_JSON} ; q=0.00", 406),
        ("*/*;q=0", 406),
        ("voucher", 415),
        ("a/b/c", 415),
    ],
)
def test_accept(local_maker: Maker, domain: Domain, accept: str, status: int) -> None:
    """covers: M-13, R-42"""
    device = local_maker.device()
    request, _ = domain.proximity_request(device)

    async def use(ask: Ask) -> None:
        answer = await ask("POST", VOUCHER, request, TYPE, ("accept", accept))
        assert answer.status == status
        assert (local_maker.record(device).owner is None) is (status != 200)

    serving(local_maker, use)


def test_what_is_too_long_is_not_read(local_maker: Maker) -> None:
    async def use(ask: Ask) -> None:
        try:
            answer = await ask("POST", VOUCHER, bytes(MAX_BODY + 1), TYPE)
        except HttpError:
            return  # closed before it took all
        assert answer.status == 413

    serving(local_maker, use)


def test_a_database_that_does_not_answer(
    local_maker: Maker, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = local_maker.device()
    request, _ = domain.proximity_request(device)

    def fail(*_: object) -> None:
        raise DatabaseError("secret words")

    monkeypatch.setattr(local_maker.database, "look_up", fail)

    async def use(ask: Ask) -> None:
        answer = await ask("POST", VOUCHER, request, TYPE)
        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert b"secret" not in answer.body

    serving(local_maker, use)


def test_what_the_operator_does_is_seen_at_once(local_maker: Maker, domain: Domain) -> None:
    device = local_maker.device()
    request, _ = domain.proximity_request(device)

    async def use(ask: Ask) -> None:
        def now() -> datetime:
            return NOW

        for act, status in (
            (lambda: local_maker.database.block(device.serial_number, "lost", now()), 403),
            (lambda: local_maker.database.unblock(device.serial_number, now()), 200),
            (lambda: local_maker.database.block(device.serial_number, "lost", now()), 403),
        ):
            await asyncio.to_thread(act)
            assert (await ask("POST", VOUCHER, request, TYPE)).status == status

    serving(local_maker, use)


def test_the_description_is_true(local_maker: Maker) -> None:
    async def use(ask: Ask) -> None:
        description = json.loads((await ask("GET", "/openapi.json")).body)
        assert description["openapi"].startswith("3.")
        assert set(description["paths"]) == {VOUCHER, LOG, f"{WELL_KNOWN}/auditlog/{{slug}}"}

    serving(local_maker, use)
