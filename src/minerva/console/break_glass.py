"""Tokens for when nothing else lets one in: made beforehand, on paper in an envelope, good once.

A token has a role at some consoles and an end. Each is a file in a directory of root's, which has its
hash only; whoever uses it first renames the file, so that nobody else can, not in another process either.
Neither the registrar nor any other machine is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minerva.console.access import Identity, Role
from minerva.core.errors import MinervaError, UsageError

DAYS: Final = 90
"""How long a token is good by default."""
MAX_DAYS: Final = 3650
HOURS: Final = 8
"""How long who has used one may work by default."""

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: nothing that reads as another
_MISREAD: Final = str.maketrans("OIL", "011", "- \t")
_ID: Final = 5
_LENGTH: Final = 25  # with the number; what remains secret has 100 bits
_MAX_TOKENS: Final = 1000
_WORD: Final = re.compile(rf"[{_ALPHABET}]+")


class TokenError(MinervaError):
    """A token is not good, or the tokens cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token."""

    number: str
    digest: str
    """SHA-256 of the token. It has 100 random bits, so that nobody tries them all."""
    role: str
    ports: tuple[str, ...]
    made_by: str
    made: float
    expires: float
    hours: float
    """How long the rights last once it is used."""

    def __repr__(self) -> str:
        return f"<Token {self.number}>"


class Tokens:
    """The tokens in ``directory``, which is made when it is needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(
        self,
        *,
        role: Role,
        ports: tuple[str, ...],
        made_by: str,
        now: float,
        days: float = DAYS,
        hours: float = HOURS,
    ) -> tuple[str, Token]:
        """Make a token; return it, to be shown once, and what is kept. Raises UsageError, TokenError."""
        # What is no number is not between any two.
        if not ports or not 0 < days <= MAX_DAYS or not 0 < hours <= MAX_DAYS * 24:
            raise UsageError(
                f"a token needs consoles, and days and hours, of which {MAX_DAYS} days are the most"
            )
        if len(self.list()) >= _MAX_TOKENS:
            raise TokenError(f"there are {_MAX_TOKENS} break-glass tokens: revoke some")
        text = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        made = Token(text[:_ID], _digest(text), str(role), ports, made_by, now, now + days * 86_400, hours)
        path = self._path(made.number)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:  # noqa: PTH123  # a descriptor
                json.dump(asdict(made), file)
                file.flush()
                os.fsync(file.fileno())
            self._sync()
        except OSError as error:
            raise TokenError(f"cannot write {path}: {error.strerror or error}") from error
        return "-".join(text[start : start + 5] for start in range(0, _LENGTH, 5)), made

    def list(self) -> list[Token]:
        """Return the tokens that have not been used, also those that have expired. Raises TokenError."""
        return [self._load(path) for path in sorted(self._directory.glob("*.json"))]

    def revoke(self, number: str) -> None:
        """Remove a token. Raises UsageError, TokenError."""
        if not _WORD.fullmatch(number):
            raise UsageError(f"{number!r} is no number of a break-glass token")
        try:
            self._path(number).unlink()
            self._sync()
        except FileNotFoundError:
            raise UsageError(f"there is no break-glass token {number}") from None
        except OSError as error:
            raise TokenError(f"cannot remove {self._path(number)}: {error.strerror or error}") from error

    def use(self, text: str, source: str, now: float) -> Identity:
        """Let one in by a token, which is then used up. Raises TokenError."""
        text = text.upper().translate(_MISREAD)
        if len(text) != _LENGTH or not _WORD.fullmatch(text):
            raise TokenError("that is no break-glass token")
        path = self._path(text[:_ID])
        if not path.exists():
            raise TokenError("there is no such break-glass token, or it has been used")
        token = self._load(path)
        if not hmac.compare_digest(token.digest, _digest(text)):
            raise TokenError(f"the break-glass token {token.number} is not right")
        if now >= token.expires:
            raise TokenError(f"the break-glass token {token.number} has expired")
        try:
            path.rename(path.with_suffix(".used"))  # fails for all but the first
            self._sync()
        except FileNotFoundError:
            raise TokenError("there is no such break-glass token, or it has been used") from None
        except OSError as error:
            # The disk may be what is broken: but a token that can be used again is none.
            raise TokenError(f"cannot mark {path} as used: {error.strerror or error}") from error
        role = Role[token.role.upper()]
        return Identity(
            f"break-glass-{token.number}",
            source,
            f"token {token.number}",
            tuple((role, pattern) for pattern in token.ports),
            now + token.hours * 3600,
        )

    def _path(self, number: str) -> Path:
        return self._directory / f"{number}.json"

    def _load(self, path: Path) -> Token:
        try:
            found: Any = json.loads(path.read_text())
            token = Token(**{**found, "ports": tuple(found["ports"])})
            Role[token.role.upper()]
            return token
        except OSError as error:
            raise TokenError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, AttributeError):
            raise TokenError(f"{path} is no break-glass token") from None

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
