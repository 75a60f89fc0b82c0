"""Alerts: patterns that are looked for in what consoles say, and who is told.

The :class:`Watch` of a console makes lines of the bytes, without escape sequences, and looks at each once:
when it ends, or when nothing more of it came for :data:`PROMPT_SECONDS`, as with ``login:``. An alert of one
console comes once in its interval; those between are counted, and the next one tells how many.
The :class:`Notifier` tells logs, syslog, webhooks and the domain; it never makes a console wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, Final

from minerva.console.config import Alert as Rule
from minerva.console.events import HubEvent
from minerva.console.patterns import PatternTooSlowError, TimeLimit
from minerva.core.text import printable, shortened

log = logging.getLogger(__name__)

PROMPT_SECONDS: Final = 0.5
MAX_LINE: Final = 1024
"""Characters of a line that are looked at; the rest is another line."""
PAUSE_SECONDS: Final = 60.0
"""So long a pattern is not looked for at a console whose lines it takes too much time for."""
MAX_WAITING: Final = 100
"""Alerts that wait for webhooks at most; more are dropped, and counted."""
WEBHOOK_SECONDS: Final = 10.0
SYSLOG: Final = "/dev/log"

_SYSLOG_PRIORITY = 3 << 3 | 4  # daemon, warning
_LOGGED_LINE = 400
_SLOW_LINE = 80
_ESCAPES = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    rb"|\x1b\][^\x07\x1b]{0,1024}(?:\x07|\x1b\\)"  # OSC
    rb"|\x1b[ -/]*[0-~]"
)
_ENDS = re.compile(rb"[\r\n]+")
_LINES_AT_ONCE = 64  # so few that no pattern of the ordinary kind comes near the limit of time
_SECONDS_PER_CHARACTER = 5e-7  # what a pattern may take for long; the ordinary kind takes a tenth
_MOST_BEHIND = 0.25  # seconds by which it may be slower, of which it gets rid
_CATCHES_UP = 0.05  # at so many a second


@dataclass(frozen=True, slots=True)
class Alert:
    """A line that somebody wants to know of. Its texts are fit for any terminal."""

    name: str
    console: str
    at: float
    """Seconds since 1970."""
    line: str
    context: tuple[str, ...]
    """The lines before it."""
    suppressed: int
    """How many there were since the last one that was told."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON would hold it."""
        when = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return {
            "alert": self.name,
            "console": self.console,
            "time": when.replace("+00:00", "Z"),
            "line": self.line,
            "context": list(self.context),
            "suppressed": self.suppressed,
        }

    def __str__(self) -> str:
        more = f" ({self.suppressed} more since the last)" if self.suppressed else ""
        return f"alert {self.name} at {self.console}: {shortened(self.line, _LOGGED_LINE)}{more}"


class _Rule:
    """A rule at one console, and when it was heeded last."""

    def __init__(self, name: str, rule: Rule) -> None:
        self.name = name
        self.pattern = re.compile(rule.pattern)
        self.context = rule.context
        self.interval = rule.interval
        self.last: float | None = None
        self.suppressed = 0
        self._paused: float | None = None
        self._behind = 0.0
        self._looked = 0.0

    def is_in(self, line: str, now: float) -> bool:
        """Return whether the pattern is in a line; not if it has taken too much time of late."""
        if self._paused is not None:
            if 0 <= now - self._paused < PAUSE_SECONDS:
                return False
            self._paused = None
        began = time.perf_counter()
        found = self.pattern.search(line)
        took = time.perf_counter() - began
        caught_up = max(0.0, now - self._looked) * _CATCHES_UP + len(line) * _SECONDS_PER_CHARACTER
        self._looked = now
        self._behind = max(0.0, self._behind + took - caught_up)
        if self._behind > _MOST_BEHIND:
            raise PatternTooSlowError
        return found is not None

    def pause(self, now: float) -> None:
        """Look for the pattern no more for a while."""
        self._paused, self._behind = now, 0.0


class Watch:
    """Looks for the patterns of ``rules`` in what one console says; times come as ``now``.

    A pattern that takes too long for what this console says is not looked for there for a while, and
    ``slow`` counts that.
    """

    def __init__(self, console: str, rules: Mapping[str, Rule]) -> None:
        self.console = console
        self.slow = 0
        self._limit = TimeLimit()
        self._rules = [
            _Rule(name, rule)
            for name, rule in rules.items()
            if any(fnmatchcase(console, pattern) for pattern in rule.ports)
        ]
        self._context: deque[str] = deque(maxlen=max((rule.context for rule in self._rules), default=0))
        self._rest = b""
        self._settled = True  # there is nothing of the unfinished line that was not looked at
        self._found: set[str] = set()  # what has been found in the unfinished line

    @property
    def unfinished(self) -> bool:
        """Whether there is part of a line that :meth:`settle` would look at."""
        return not self._settled

    def feed(self, data: bytes, now: float) -> list[Alert]:
        """Take what the console said, and return the alerts in the lines that it ended."""
        if not self._rules:
            return []
        *ended, rest = _ENDS.split(self._rest + data)
        raws = [raw[start : start + MAX_LINE] for raw in ended for start in range(0, len(raw) or 1, MAX_LINE)]
        while len(rest) > MAX_LINE:
            raws.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        found: list[Alert] = []
        for start in range(0, len(raws), _LINES_AT_ONCE):
            lines = [_text(raw) for raw in raws[start : start + _LINES_AT_ONCE]]
            for line, rules in zip(lines, self._search(lines, now), strict=True):
                if line.strip():
                    found += self._take(line, rules, now)
                    self._context.append(line)
                self._found.clear()
        self._rest, self._settled = rest, not rest
        return found

    def settle(self, now: float) -> list[Alert]:
        """Return the alerts in a line that has no end yet, because the console waits, such as at a prompt."""
        self._settled = True
        if not self._rules:
            return []
        line = _text(self._rest)
        [rules] = self._search([line], now)
        return self._take(line, rules, now)

    def _search(self, lines: list[str], now: float) -> list[list[_Rule]]:
        """Return for each line the rules whose pattern is in it."""
        found: list[list[_Rule]] = [[] for _ in lines]
        todo = product(range(len(lines)), self._rules)
        index, rule = 0, self._rules[0]
        while True:
            try:
                with self._limit:
                    for index, rule in todo:
                        if rule.is_in(lines[index], now):
                            found[index].append(rule)
                return found
            except PatternTooSlowError:
                rule.pause(now)
                self.slow += 1
                log.error(
                    "the pattern of the alert %s takes too long for what %s says, and is not looked for "
                    "there for %.0f s: simplify it, such as a+ within (...)+; the line begins with %s",
                    *(rule.name, self.console, PAUSE_SECONDS, shortened(lines[index], _SLOW_LINE)),
                )

    def _take(self, line: str, rules: list[_Rule], now: float) -> list[Alert]:
        """Return the alerts of the rules that were found in a line, but for those of before."""
        found = []
        for rule in rules:
            if rule.name in self._found:
                continue
            self._found.add(rule.name)
            if rule.last is not None and 0 <= now - rule.last < rule.interval:
                rule.suppressed += 1
                continue
            context = tuple(self._context)[-rule.context :] if rule.context else ()
            found.append(Alert(rule.name, self.console, now, line.strip(), context, rule.suppressed))
            rule.last, rule.suppressed = now, 0
        return found


def _text(raw: bytes) -> str:
    """Return a line as text that any terminal may show, without its escape sequences."""
    return printable(_ESCAPES.sub(b"", raw).decode("utf-8", "replace").replace("\t", " "))


class Notifier:
    """Tells of alerts, as the rules say. ``flood`` tells the domain.

    Use :meth:`start`, and :meth:`close` at the end.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        flood: Callable[[Alert], None],
        *,
        syslog: str = SYSLOG,
    ) -> None:
        self.rules = rules
        self.told = 0
        self.dropped = 0
        """Alerts that a webhook was too slow for."""
        self._flood = flood
        self._syslog_path = syslog
        self._waiting: deque[tuple[str, Alert]] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send to webhooks."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="webhooks")

    async def close(self) -> None:
        """Send nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def tell(self, alert: Alert) -> None:
        """Tell of an alert; returns at once."""
        rule = self.rules.get(alert.name)
        if rule is None:
            return
        self.told += 1
        if "log" in rule.to:
            log.warning("%s", alert)
        if "syslog" in rule.to:
            self._syslog(alert)
        if "grasp" in rule.to:
            self._flood(alert)
        if "webhook" in rule.to:
            if len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                return
            self._waiting.append((rule.webhook, alert))
            self._wake.set()

    def _syslog(self, alert: Alert) -> None:
        text = f"<{_SYSLOG_PRIORITY}>minerva-console[{os.getpid()}]: {alert}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(text.encode(), self._syslog_path)
        except OSError as error:
            log.error("syslog at %s took no alert: %s", self._syslog_path, error.strerror or error)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                url, alert = self._waiting.popleft()
                try:
                    await asyncio.to_thread(_post, url, alert)
                except (OSError, ValueError) as error:
                    reason = printable(str(getattr(error, "reason", None) or error))
                    log.error("the webhook of %s took no alert: %s", alert.name, reason)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is told to one server is not for another."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, alert: Alert) -> None:
    """Send an alert to a webhook. Raises OSError, ValueError."""
    request = urllib.request.Request(
        url, json.dumps(alert.as_json()).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=WEBHOOK_SECONDS) as answer:
        answer.read(1024)


class AlertSink:
    """Watches one console, for its runner."""

    def __init__(self, console: str, notifier: Notifier) -> None:
        self._notifier = notifier
        self._console = console
        self._watch = Watch(console, notifier.rules)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    @property
    def slow(self) -> int:
        """How often a pattern was too slow, since the rules were read."""
        return self._watch.slow

    def renew(self) -> None:
        """Go by the notifier's rules of now."""
        self._watch = Watch(self._console, self._notifier.rules)

    def output(self, data: bytes) -> None:
        """Look at what the device said."""
        for alert in self._watch.feed(data, time.time()):
            self._notifier.tell(alert)
        if self._watch.unfinished:
            loop = asyncio.get_running_loop()
            self._due = loop.time() + PROMPT_SECONDS
            # One timer, that finds out for itself whether there was more meanwhile: output may come often.
            if self._timer is None:
                self._timer = loop.call_later(PROMPT_SECONDS, self._settle)

    def event(self, event: HubEvent) -> None:
        """What people do is no matter for alerts."""

    def close(self) -> None:
        """Look at nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settle(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._watch.unfinished:
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._settle)
            return
        for alert in self._watch.settle(time.time()):
            self._notifier.tell(alert)
