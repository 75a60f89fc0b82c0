"""What was refused, for the operator: in the log of the process, and as events in the database.

Anybody who reaches the registrar can be refused as often as he likes, and shall not be able to fill the
database. So of refusals that are alike one is written in a minute, with the number of those since; whatever
is refused, so many are written in an hour; and of those that no known device caused the oldest go.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from minerva.brski.registrar.database import events, record_event, writing
from minerva.brski.registrar.errors import DatabaseError, Refusal
from minerva.core.rate import TokenBucket

log = logging.getLogger(__name__)

REFUSED: Final = "refused"

REPEAT_SECONDS: Final = 60.0
"""How long refusals that are alike are only counted after one has been written."""

BURST: Final = 100
SECONDS_PER_EVENT: Final = 10.0
"""How many refusals are written at once, and after how many seconds one more."""

MAX_STRANGERS: Final = 10_000
"""How many refusals are kept that are not about a device in the database."""

WAITING_SECONDS: Final = 3600.0
"""After how long the log says again that the same device waits for the same thing."""

_MAX_KINDS = 1_000
_EVENTS_BETWEEN_CLEANINGS = 100


@dataclass(slots=True)
class _Kind:
    """Refusals that are alike."""

    written: float
    since: int = 0


class Journal:
    """Writes refusals into a database. May be used by several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kinds: OrderedDict[tuple[object, ...], _Kind] = OrderedDict()
        self._waiting: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._bucket = TokenBucket(BURST, SECONDS_PER_EVENT)
        self._written = 0

    def refused(self, refusal: Refusal, operation: str, peer: str | None, now: datetime) -> None:
        """Note a refusal. Never raises: a database that does not answer is no reason not to answer."""
        level = logging.WARNING
        if refusal.status == 202:
            news = self._is_news((operation, refusal.device_id, refusal.reason), now)
            level = logging.INFO if news else logging.DEBUG
        said = refusal.reason if refusal.detail is None else f"{refusal.reason} ({refusal.detail})"
        log.log(level, "%s from %s: %d, %s", operation, peer or "somebody", refusal.status, said)
        if refusal.status == 202:
            return
        repeated = self._repeated((operation, refusal.status, refusal.device_id, peer, refusal.reason), now)
        if repeated is None:
            return
        detail: dict[str, object] = {
            "operation": operation,
            "status": refusal.status,
            "reason": refusal.reason,
        }
        if refusal.detail is not None:
            detail["detail"] = refusal.detail
        if repeated:
            detail["repeated"] = repeated
        try:
            with writing(self._engine) as connection:
                record_event(
                    connection, REFUSED, when=now, device_id=refusal.device_id, peer=peer, detail=detail
                )
                self._written += 1
                if refusal.device_id is None and self._written % _EVENTS_BETWEEN_CLEANINGS == 0:
                    forget_strangers(connection)
        except DatabaseError as error:
            log.error("%s", error)

    def _is_news(self, key: tuple[object, ...], now: datetime) -> bool:
        """Return whether it has not been said for an hour that a device waits: it asks every few seconds."""
        seconds = now.timestamp()
        said = self._waiting.get(key)
        if said is not None and 0 <= seconds - said < WAITING_SECONDS:
            return False
        self._waiting[key] = seconds
        self._waiting.move_to_end(key)
        if len(self._waiting) > _MAX_KINDS:
            self._waiting.popitem(last=False)
        return True

    def _repeated(self, key: tuple[object, ...], now: datetime) -> int | None:
        """Return how many like it were not written since the last, or ``None`` if this is not either."""
        seconds = now.timestamp()
        kind = self._kinds.get(key)
        if kind is not None and 0 <= seconds - kind.written < REPEAT_SECONDS:
            kind.since += 1
            return None
        if not self._bucket.take(seconds):
            return None
        self._kinds[key] = _Kind(seconds)
        self._kinds.move_to_end(key)
        while len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)
        return 0 if kind is None else kind.since


def forget_strangers(connection: Connection, keep: int = MAX_STRANGERS) -> None:
    """Delete the oldest refusals that are about no device."""
    strangers = sa.and_(events.c.kind == REFUSED, events.c.device_id.is_(None))
    last = connection.scalar(
        sa.select(events.c.id).where(strangers).order_by(events.c.id.desc()).offset(keep).limit(1)
    )
    if last is not None:
        connection.execute(sa.delete(events).where(strangers, events.c.id <= last))
