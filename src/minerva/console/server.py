"""The console server: all that the configuration says, put together, and changed while it runs.

Each console is a hub, a runner on its line, a record, an eye for alerts, and ports of its own; they share
nothing that one of them could break for the others.

A reload first makes and opens all that is new, then goes by it: so it is done as a whole, or not at all.
Those who are attached stay attached. A console gets another connection to its device only if that is reached
in another way now; all else is changed in its place. New sockets are there before old ones are given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minerva.console import revoked
from minerva.console.access import Access, Action, Guard, Identity, Refused
from minerva.console.alerts import Alert, AlertSink, Notifier
from minerva.console.announce import Announcer
from minerva.console.audit import AuditLog, AuditSink, AuditWriter
from minerva.console.backends import make_backend
from minerva.console.break_glass import Tokens
from minerva.console.config import Config, Web
from minerva.console.dialer import AcpDialer
from minerva.console.events import HubEvent
from minerva.console.fronts.control import SOCKET, ControlFront, open_control_socket
from minerva.console.fronts.desk import Desk
from minerva.console.fronts.ssh import SshFront
from minerva.console.fronts.telnet import ToolFront
from minerva.console.hub import Hub
from minerva.console.listeners import Front, Listeners
from minerva.console.port_config import Port
from minerva.console.power import Power, make_power
from minerva.console.records import Archive, Recorder, RecordError, check_records
from minerva.console.runner import Runner
from minerva.console.throttle import Throttle
from minerva.core.errors import MinervaError

if TYPE_CHECKING:
    import ssl

    from minerva.console.backends.base import Backend
    from minerva.console.fronts.web import WebFront

log = logging.getLogger(__name__)

LOCK: Final = "lock"
CONTROL_SECONDS: Final = 2.0
"""How often it is looked whether the control socket is there."""
REMOVED: Final = "the console is no longer configured"
CHANGED: Final = "the configuration says another line now"
END: Final = "the console server ends"


class ServerError(MinervaError):
    """The console server cannot run, or not go by a new configuration."""


class ServedConsole:
    """One console of this server: what fronts see of it (:class:`~minerva.console.session.Console`)."""

    def __init__(self, name: str, port: Port, hub: Hub, runner: Runner, power: Power | None) -> None:
        self.name = name
        self.port = port
        self.hub = hub
        self.runner = runner
        self.power = power
        self.recorder: Recorder | None = None
        self.alerts: AlertSink | None = None

    def change(self, port: Port, power: Power | None) -> None:
        """Go by other settings, as far as they are not those of the line."""
        self.port, self.power = port, power
        self.runner.input_rate, self.runner.line_delay = port.input_rate, port.line_delay_ms / 1000
        self.hub.resize(port.ring)
        if self.recorder is not None:
            self.recorder.describe(port.description)

    @property
    def description(self) -> str:
        """What it is, for people."""
        return self.port.description

    @property
    def break_seconds(self) -> float:
        """How long a break lasts that says nothing else."""
        return self.port.break_ms / 1000

    def as_json(self) -> dict[str, Any]:
        """Return what is to be known of it."""
        hub = self.hub
        return {
            "name": self.name,
            "type": self.port.type,
            "description": self.description,
            "state": hub.state.value,
            "reason": hub.reason,
            "since": hub.changed_at,
            "device": self.runner.backend.describe(),
            "power": None if self.power is None else self.power.describe(),
            "writer": None if hub.holder is None else hub.holder.user,
            "attached": len(hub.who()),
            "bytes_in": hub.bytes_in,
            "bytes_out": hub.bytes_out,
            "bytes_lost": hub.bytes_lost,
            "recorded": self.recorder is not None,
            "record_lost": 0 if self.recorder is None else self.recorder.lost,
            "times_up": hub.times_up,
            "attempts": self.runner.attempts,
        }


class _StateSink:
    """Tells the announcer that a console came or went, or is in use now."""

    def __init__(self, hub: Hub, changed: Callable[[], None]) -> None:
        self._hub = hub
        self._changed = changed
        self._state = hub.state

    def output(self, data: bytes) -> None:
        """What the device says does not change its state."""

    def event(self, event: HubEvent) -> None:  # noqa: ARG002  # the hub knows better than any one event
        """Look whether there is another state."""
        if self._hub.state is not self._state:
            self._state = self._hub.state
            self._changed()


class ConsoleServer:
    """A console server. Use :meth:`start`, and :meth:`close` in any case.

    ``run_dir`` is that of the node of this machine, if there is one. ``reload_config`` reads the
    configuration again.
    """

    def __init__(self, config: Config, run_dir: Path, reload_config: Callable[[], Config]) -> None:
        self.config = config
        self.directory = Path(config.directory)
        self.run_dir = run_dir
        self.access = Access(config)
        self.started = time.time()
        self._reload_config = reload_config
        self._reloading = asyncio.Lock()
        self._ended = False
        self._reloads: set[asyncio.Task[dict[str, list[str]]]] = set()
        self._consoles: dict[str, ServedConsole] = {}
        self._lock = -1
        self._listeners = Listeners(run_dir)
        self._web: WebFront | None = None
        self._announcer: Announcer | None = None
        self._stack = contextlib.AsyncExitStack()

    # -- what fronts see

    def names(self) -> list[str]:
        """Return the names of all consoles, sorted."""
        return sorted(self._consoles)

    def get(self, name: str) -> ServedConsole | None:
        """Return a console."""
        return self._consoles.get(name)

    @property
    def records_directory(self) -> Path:
        """Where the records are."""
        return self.config.records_directory

    def status(self) -> dict[str, Any]:
        """Return what is to be known of the server."""
        return {
            "started": self.started,
            "directory": str(self.directory),
            "listening": [
                {
                    "what": place.what,
                    "where": place.where,
                    "port": place.port,
                    "address": place.address,
                    "problem": place.problem,
                }
                for place in self._listeners.places
            ],
            "announced": self._announcer is not None and not self._announcer.problem,
            "announcement_problem": None if self._announcer is None else self._announcer.problem,
            "audit_failures": self._audit.failures,
            "revoked_problem": self.access.revoked.problem,
            "alerts": self._notifier.told,
            "alerts_dropped": self._notifier.dropped,
            "alert_patterns_too_slow": sum(
                console.alerts.slow for console in self._consoles.values() if console.alerts is not None
            ),
            "consoles": [self._consoles[name].as_json() for name in self.names()],
        }

    # -- its life

    async def start(self) -> None:
        """Begin to serve. Raises MinervaError, OSError."""
        async with self._reloading:  # somebody may ask for that as soon as the control socket is there
            await self._start()

    async def _start(self) -> None:
        self._make_directory()
        self._audit = AuditWriter(AuditLog(self.config.audit_file))
        self._stack.callback(self._audit.close)
        self.guard = Guard(self.access, self._audit, time.time)
        self._archive = Archive(self.config.records_directory, self.config.records)
        self._stack.push_async_callback(asyncio.to_thread, self._archive.close)
        self._notifier = Notifier(self.config.alerts, self._flood_alert)
        self._notifier.start()
        self._stack.push_async_callback(self._notifier.close)
        self._dialer = AcpDialer(self.run_dir)
        self._desk = Desk(self.guard, self, self._audit)
        self._tokens = Tokens(self.directory / "break-glass")
        self._throttle = Throttle(self.access.failures)
        self._ssh = SshFront(
            self._desk,
            self._tokens,
            self.directory / "ssh",
            escape=lambda: self.config.ssh.escape_bytes,
            throttle=self._throttle,
        )
        self._stack.callback(self._ssh.close)
        watching = asyncio.ensure_future(revoked.watch(lambda: self.access.revoked))
        self._stack.callback(watching.cancel)
        await self._open_control_socket()
        for console in [self._make(name, port) for name, port in self.config.ports.items()]:
            self._begin(console)
        await self._listeners.use(self.config.listen, self._fronts(self.config, self._consoles, None), {})
        self._start_announcing()

    async def close(self) -> None:
        """End in order: nobody new, then the announcement, the consoles, the records, the audit."""
        async with self._reloading:
            self._ended = True
            await self._listeners.close()
            await self._stop_announcing()
            await asyncio.gather(*(self._end(console, END) for console in list(self._consoles.values())))
            await self._stack.aclose()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration again and go by it; return which consoles came, went or changed.

        Raises MinervaError, and then nothing has changed.
        """
        async with self._reloading:
            if self._ended:
                raise ServerError(END)
            new = self._reload_config()
            if new.directory != self.config.directory:
                raise ServerError("the directory cannot be changed while the console server runs")
            return await self._change(new)

    def reload_soon(self) -> None:
        """Read the configuration again; what is wrong with it goes to the log."""
        task = asyncio.ensure_future(self.reload())
        task.add_done_callback(self._reloaded)
        self._reloads.add(task)

    def _reloaded(self, task: asyncio.Task[dict[str, list[str]]]) -> None:
        self._reloads.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the configuration stays as it was: %s", error)

    async def _change(self, new: Config) -> dict[str, list[str]]:
        old = self.config
        # What can fail, in a place of its own: until all of it is there, nothing has changed.
        check_records(new.records)
        added = {name: self._make(name, port) for name, port in new.ports.items() if name not in old.ports}
        changed = {
            name: port for name, port in new.ports.items() if name in old.ports and old.ports[name] != port
        }
        powers = {name: self._make_power(port) for name, port in changed.items()}
        lines = {
            name: self._make_backend(name, port)
            for name, port in changed.items()
            if not port.same_line(old.ports[name])
        }
        kept = {name: console for name, console in self._consoles.items() if name in new.ports}
        certificate = await self._web_front(new.web).prepare(new.web) if new.web.enabled else None
        for_fronts = self._fronts(new, kept | added, certificate)
        opened = await self._listeners.open(new.listen, [front.port for front in for_fronts])

        # What is done now cannot fail.
        self._archive.update(new.records)
        self.config = new
        self.access.use(new)
        self._throttle.failures = self.access.failures
        self._notifier.rules = new.alerts
        if self._web is not None:
            self._web.use(new.web)
        gone = [console for name, console in self._consoles.items() if name not in new.ports]
        for name, port in changed.items():
            self._consoles[name].change(port, powers[name])
        for outcome in await asyncio.gather(
            *(self._end(console, REMOVED) for console in gone),
            *(self._consoles[name].runner.pause(CHANGED) for name in lines),
            return_exceptions=True,
        ):
            if isinstance(outcome, Exception):
                # A mistake of ours in one console must not leave the others halfway.
                log.error("a console was not ended in order", exc_info=outcome)
        # All that is given up has been before anything is taken: devices may have changed places.
        for name, backend in lines.items():
            self._consoles[name].runner.backend = backend
            self._consoles[name].runner.start()
        for console in self._consoles.values():
            if console.alerts is not None and old.alerts != new.alerts:
                console.alerts.renew()
            if old.records.ports != new.records.ports:
                await self._record_again(console)
        for console in added.values():
            self._begin(console)
        await self._listeners.use(new.listen, for_fronts, opened)
        if old.announced != new.announced:
            await self._stop_announcing()
            self._start_announcing()
        elif self._announcer is not None:
            self._announcer.changed()
        found = {
            "added": sorted(added),
            "removed": sorted(console.name for console in gone),
            "changed": sorted(changed),
            "reconnected": sorted(lines),
        }
        log.info(
            "the configuration was read again: %s",
            ", ".join(f"{len(names)} {what}" for what, names in found.items()),
        )
        return found

    # -- consoles

    def _make(self, name: str, port: Port) -> ServedConsole:
        """Return a console that does nothing yet. Raises UsageError."""
        hub = Hub(name, ring_size=port.ring)
        backend = self._make_backend(name, port)
        runner = Runner(hub, backend, input_rate=port.input_rate, line_delay=port.line_delay_ms / 1000)
        return ServedConsole(name, port, hub, runner, self._make_power(port))

    def _make_backend(self, name: str, port: Port) -> Backend:
        return make_backend(port, state=self.directory, name=name, dialer=self._dialer)

    def _make_power(self, port: Port) -> Power | None:
        return None if port.power is None else make_power(port.power, self._dialer)

    def _begin(self, console: ServedConsole) -> None:
        name, runner = console.name, console.runner
        self._consoles[name] = console
        self._record(console)
        runner.add_sink(AuditSink(name, self._audit))
        console.alerts = AlertSink(name, self._notifier)
        runner.add_sink(console.alerts)
        runner.add_sink(_StateSink(console.hub, self._state_changed))
        runner.start()

    def _record(self, console: ServedConsole) -> None:
        try:
            console.recorder = self._archive.recorder(console.name, console.description)
        except RecordError as error:
            log.error("console %s is not recorded: %s", console.name, error)
            return
        if console.recorder is not None:
            console.runner.add_sink(console.recorder)

    async def _record_again(self, console: ServedConsole) -> None:
        """Begin or end its record, if the settings say so now."""
        recorder = console.recorder
        if recorder is None:
            self._record(console)
        elif not any(fnmatchcase(console.name, pattern) for pattern in self.config.records.ports):
            console.runner.remove_sink(recorder)
            console.recorder = None
            await asyncio.to_thread(self._archive.end, recorder)

    async def _end(self, console: ServedConsole, reason: str) -> None:
        await console.runner.stop(reason)
        if console.alerts is not None:
            console.alerts.close()
        if console.recorder is not None:
            await asyncio.to_thread(self._archive.end, console.recorder)
        del self._consoles[console.name]

    # -- fronts

    def _fronts(
        self,
        config: Config,
        consoles: Mapping[str, ServedConsole],
        certificate: tuple[ssl.SSLContext, bytes] | None,
    ) -> list[Front]:
        """Return what is to listen by a configuration. Raises UsageError."""
        found = []
        if config.ssh.enabled:
            found.append(Front("ssh", config.ssh.port, self._ssh.serve))
        if config.web.enabled:
            serve, digest = self._web_front(config.web).serve, b""
            if certificate is not None:
                serve, digest = partial(serve, context=certificate[0]), certificate[1]
            found.append(Front("web", config.web.port, serve, digest))
        for name, port in config.ports.items():
            found += self._own_fronts(consoles[name], port)
        return found

    def _own_fronts(self, console: ServedConsole, port: Port) -> list[Front]:
        """Return those that are of this console alone."""
        found = []
        if port.ssh_port:
            serve = partial(self._ssh.serve, console=console.name)
            found.append(Front(f"ssh of {console.name}", port.ssh_port, serve))
        for number, telnet in ((port.raw_port, False), (port.telnet_port, True)):
            if number:
                front = ToolFront(
                    console.runner,
                    user=lambda: console.port.tools_user,
                    telnet=telnet,
                    may=partial(self._tool_may, console.name, "telnet" if telnet else "tcp"),
                    break_seconds=lambda: console.break_seconds,
                )
                what = f"{'telnet' if telnet else 'raw'} of {console.name}"
                found.append(Front(what, number, front.serve))
        return found

    def _tool_may(self, console: str, kind: str, user: str, what: str) -> bool:
        identity = Identity(user, kind)
        if what != "attach":
            action = Action.WRITE if what == "write" else Action.ATTACH
            return self.guard.may(identity, action, console)
        try:
            self.guard.require(identity, Action.ATTACH, console)
        except Refused:
            return False
        return True

    def _web_front(self, settings: Web) -> WebFront:
        """Return the web page, which is one as long as the server runs: it knows who has logged in."""
        if self._web is None:
            from minerva.console.fronts.web import WebFront

            self._web = WebFront(
                self._desk,
                self.access,
                self._throttle,
                self._tokens,
                settings,
                directory=self.directory,
                records=self.config.records_directory,
            )
        return self._web

    async def _open_control_socket(self) -> None:
        """Open it, and keep it. Raises UsageError, also if another server has it."""
        front = ControlFront(
            self._desk,
            self._tokens,
            escape=lambda: self.config.ssh.escape_bytes,
            reload=self.reload,
            status=self.status,
        )
        path = self.run_dir / SOCKET
        self._make_run_dir()
        await front.start(open_control_socket(path))
        keeper = asyncio.ensure_future(self._keep_control_socket(front))

        async def close() -> None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            front.close()
            path.unlink(missing_ok=True)

        self._stack.push_async_callback(close)

    async def _keep_control_socket(self, front: ControlFront) -> None:
        """Have the control socket be there, also after somebody removed it, such as a node that ended."""
        path = self.run_dir / SOCKET
        problem = ""
        while True:
            try:
                if not path.is_socket():
                    self._make_run_dir()
                    await front.start(open_control_socket(path))
                problem = ""
            except (MinervaError, OSError) as error:
                if problem != (problem := str(error)):
                    log.error("there is no control socket: %s", problem)
            await asyncio.sleep(CONTROL_SECONDS)

    # -- the domain

    def _start_announcing(self) -> None:
        if (ports := self.config.announced) is not None:
            ssh, web = ports
            self._announcer = Announcer(
                lambda: {name: console.hub.state for name, console in self._consoles.items()},
                run_dir=self.run_dir,
                ssh=ssh,
                web=web,
            )
            self._announcer.start()

    async def _stop_announcing(self) -> None:
        if self._announcer is not None:
            await self._announcer.close()
            self._announcer = None

    def _state_changed(self) -> None:
        if self._announcer is not None:
            self._announcer.changed()

    def _flood_alert(self, alert: Alert) -> None:
        if self._announcer is not None:
            self._announcer.alert(alert)

    def _check_directory(self) -> None:
        """Raise ServerError if another user of this machine has a hand in our directory; OSError."""
        for found in (self.directory.lstat(), self.directory.stat()):
            writable = not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if found.st_uid not in (0, os.geteuid()) or writable:
                raise ServerError(
                    f"the directory {self.directory} belongs to another user, or others may write there: it "
                    "has keys in it, and has to be ours alone"
                )

    def _make_run_dir(self) -> None:
        """Make the run directory, if the node has not: for all to enter, as the node makes it."""
        if not self.run_dir.is_dir():
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.run_dir.chmod(0o755)  # whatever the umask

    def _make_directory(self) -> None:
        """Make our directory, and see that we are alone in it. Raises ServerError."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_directory()
            self._lock = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServerError(f"cannot use the directory {self.directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(f"another console server runs with the directory {self.directory}") from None
