"""Who may do what at which console, and who is who.

Four roles, each with all that those before it have: view, write, power, admin. A user has a role at the
consoles whose names match one of its patterns, or one of its groups'. What concerns the server as a whole
needs the role admin at ``*``. Every action that is wanted passes :meth:`Guard.require`, which asks here and
writes into the audit log what was granted and what was refused.
"""

from __future__ import annotations

import base64
import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Protocol

from minerva.console import passwords
from minerva.console.audit import Entry
from minerva.console.config import ROLES, Config, Group, User
from minerva.console.krl import Credential
from minerva.console.revoked import Revoked
from minerva.core.errors import MinervaError
from minerva.core.rate import TokenBucket

EVERYTHING: Final = "*"
BURST: Final = 300
"""So much may one who has logged in want at once,"""
PACE_SECONDS: Final = 0.1
"""and one thing more every so many seconds: a flood of it would push all else out of the audit log."""
COMPLAIN_SECONDS: Final = 60.0
"""How often it is written down that somebody wants too much."""
MAX_PACES: Final = 4096


class Role(enum.IntEnum):
    """What somebody may do at a console; each has those before it."""

    VIEW = 1
    WRITE = 2
    POWER = 3
    ADMIN = 4

    def __str__(self) -> str:
        return self.name.lower()


class Action(enum.Enum):
    """What somebody may want, and the role that it takes."""

    ATTACH = ("attach", Role.VIEW)
    WHO = ("who", Role.VIEW)
    RECORDS = ("records", Role.VIEW)
    """See what is written down of a console: search, replay, download."""
    POWER_STATUS = ("power status", Role.VIEW)
    WRITE = ("write", Role.WRITE)
    """Have the lease and type."""
    BREAK = ("break", Role.WRITE)
    SAY = ("say", Role.WRITE)
    POWER = ("power", Role.POWER)
    FORCE = ("force", Role.ADMIN)
    """Take the lease from whoever has it."""
    RELOAD = ("reload", Role.ADMIN)
    STATUS = ("status", Role.ADMIN)
    TOKEN = ("break-glass token", Role.ADMIN)

    def __init__(self, text: str, role: Role) -> None:
        self.text = text
        self.role = role


@dataclass(frozen=True, slots=True)
class Identity:
    """One who has logged in."""

    user: str
    source: str
    """The front and the peer's address, such as ``ssh fd01::2``."""
    how: str = ""
    """What it logged in by: the fingerprint of a key, the name of a certificate, the number of a token."""
    grants: tuple[tuple[Role, str], ...] | None = None
    """Roles and the patterns of consoles that they are for; None for those that the configuration says."""
    until: float | None = None
    """When its rights end."""
    shown: Credential | None = None
    """The key or certificate that it logged in by, if it was one: it may be revoked."""
    hurried: bool = False
    """May want as much at once as it likes: it comes by the control socket, which is for root."""


class Refused(MinervaError):
    """Somebody wanted what it may not do."""


class Log(Protocol):
    """Where entries of the audit go."""

    def put(self, entry: Entry) -> None:
        """Take an entry; never waits."""


class Access:
    """The users, groups and keys of one configuration."""

    def __init__(self, config: Config) -> None:
        self.revoked = Revoked("")
        self.use(config)

    def use(self, config: Config) -> None:
        """Go by another configuration from now on."""
        self._users: Mapping[str, User] = config.users
        self._settings = config.access
        self._grants = {name: _grants(user, config.groups) for name, user in config.users.items()}
        self._keys: dict[bytes, list[str]] = {}
        for name, user in config.users.items():
            for key in user.keys:
                self._keys.setdefault(_blob(key), []).append(name)
        self._authorities = {_blob(key) for key in config.access.user_ca}
        if config.access.revoked != self.revoked.path:
            self.revoked = Revoked(config.access.revoked)

    @property
    def passwords(self) -> bool:
        """Whether users may log in with passwords."""
        return self._settings.passwords

    @property
    def failures(self) -> int:
        """So many failed logins a minute one source may have."""
        return self._settings.failures

    def role(self, identity: Identity, console: str, now: float) -> Role | None:
        """Return the highest role somebody has at a console."""
        if identity.until is not None and now >= identity.until:
            return None
        if identity.shown is not None and self.revoked.has(identity.shown):
            return None
        grants = self._grants.get(identity.user, ()) if identity.grants is None else identity.grants
        return max((role for role, pattern in grants if fnmatchcase(console, pattern)), default=None)

    def may(self, identity: Identity, action: Action, console: str, now: float) -> bool:
        """Return whether somebody may do this at a console, or with ``*``, to the server."""
        role = self.role(identity, console, now)
        return role is not None and role >= action.role

    def is_user(self, name: str) -> bool:
        """Return whether there is such a user."""
        return name in self._users

    def users_of_key(self, blob: bytes) -> tuple[str, ...]:
        """Return the users whose public key this is, in SSH's encoding."""
        return tuple(self._keys.get(blob, ()))

    def is_authority(self, blob: bytes) -> bool:
        """Return whether user certificates that this public key signed are good here."""
        return blob in self._authorities

    def check_password(self, user: str, password: str) -> bool:
        """Return whether this is the user's password. It takes long: to be called in a thread."""
        known = self._users.get(user)
        hashed = known.password if known is not None and self.passwords else ""
        return passwords.verify(password, hashed)


class Guard:
    """Grants and refuses, and has it written down. ``clock`` gives the seconds since 1970."""

    def __init__(self, access: Access, log: Log, clock: Callable[[], float]) -> None:
        self.access = access
        self._log = log
        self._clock = clock
        self._paces: OrderedDict[tuple[str, str], _Pace] = OrderedDict()

    def may(self, identity: Identity, action: Action, console: str = EVERYTHING) -> bool:
        """Return whether somebody may do this, without writing it down."""
        return self.access.may(identity, action, console, self._clock())

    def require(
        self, identity: Identity, action: Action, console: str = EVERYTHING, detail: str = ""
    ) -> None:
        """Write down that somebody wants this, and whether it may. Raises Refused."""
        self.pace(identity)
        allowed = self.may(identity, action, console)
        self._write(identity, action.text, console, detail, allowed)
        if not allowed:
            raise Refused(_refusal(identity, action, console))

    def note(
        self, identity: Identity, action: str, console: str = "", detail: str = "", *, allowed: bool = True
    ) -> None:
        """Write down what happened, or what was refused for other reasons than rights."""
        if allowed or self._paced(identity):
            self._write(identity, action, console, detail, allowed)

    def pace(self, identity: Identity) -> None:
        """Count that somebody wants something. Raises Refused if that is too much at once."""
        if not self._paced(identity):
            raise Refused(f"{identity.user} wants too much at once: wait a moment")

    def _paced(self, identity: Identity) -> bool:
        if identity.hurried:
            return True
        who = identity.user, identity.source
        pace = self._paces.pop(who, None) or _Pace()
        self._paces[who] = pace
        if len(self._paces) > MAX_PACES:
            self._paces.popitem(last=False)
        now = self._clock()
        if pace.bucket.take(now):
            return True
        if pace.complained is None or not 0 <= now - pace.complained < COMPLAIN_SECONDS:
            pace.complained = now
            self._write(identity, "too much at once", "", f"more than {1 / PACE_SECONDS:g} a second", False)
        return False

    def _write(self, identity: Identity, action: str, console: str, detail: str, allowed: bool) -> None:
        self._log.put(
            Entry(
                self._clock(),
                action,
                allowed,
                user=identity.user,
                source=identity.source,
                how=identity.how,
                console=console,
                detail=detail,
            )
        )


class _Pace:
    """How much somebody has wanted of late."""

    def __init__(self) -> None:
        self.bucket = TokenBucket(BURST, PACE_SECONDS)
        self.complained: float | None = None


def _refusal(identity: Identity, action: Action, console: str) -> str:
    what = "the console server" if console == EVERYTHING else console
    return f"{identity.user} may not: {action.text} at {what} needs the role {action.role}"


def _grants(user: User, groups: Mapping[str, Group]) -> tuple[tuple[Role, str], ...]:
    holders: Iterable[User | Group] = (user, *(groups[name] for name in user.groups))
    return tuple(
        (Role[role.upper()], pattern)
        for holder in holders
        for role in ROLES
        for pattern in getattr(holder, role)
    )


def _blob(key: str) -> bytes:
    """Return what a line of authorized_keys, whose form has been checked, has of the key itself."""
    return base64.b64decode(key.split()[1])
