"""How a MASA is set up: ``masa.toml`` in its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from minerva.brski.masa.errors import MasaError
from minerva.core.errors import UsageError
from minerva.core.settings import parse
from minerva.core.text import printable
from minerva.pki.errors import IdevidError
from minerva.pki.idevid import normalise_masa_url

SETTINGS_FILE = "masa.toml"
DATABASE_FILE = "masa.db"

VOUCHER_LIFETIME = 20 * 60
"""How long a voucher without a nonce is valid, in seconds (RFC 8995 section 5.6)."""

MAX_VOUCHER_LIFETIME = 3650 * 86400

MAX_NAME = 64
"""The longest name of a maker, in characters (ub-organization-name of RFC 5280)."""

_HTTPS_PORT = 443


class Sales(StrEnum):
    """Who may become the owner of a device that has none."""

    OPEN = "open"
    """Whoever comes first (RFC 8995 section 7.4.2)."""

    PROOF = "proof"
    """Whoever comes first and shows a request that the device has signed for him (section 5.5.5)."""

    LISTED = "listed"
    """Only the one it was sold to, as told by ``minerva masa assign``."""


class Crls(StrEnum):
    """What is done about certificates that say where a CRL is."""

    NEVER = "never"
    """Nothing."""

    REACHABLE = "reachable"
    """It is asked for. If it cannot be had, the request is granted all the same."""

    ALWAYS = "always"
    """If it cannot be had, the request is refused."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a MASA is."""

    url: str
    """What stands before ``/requestvoucher``."""

    host: str
    """A DNS name, or an IP address without brackets."""

    port: int

    path: str

    @classmethod
    def parse(cls, text: str) -> Location:
        """Return the place that ``text`` names: HOST, HOST:PORT, or a URL of HTTPS.

        Raises :class:`MasaError`.
        """
        if text.startswith("http:"):
            raise MasaError(f"{printable(text)}: registrars use HTTPS alone; give a URL with https:")
        try:
            url = normalise_masa_url(text)
            parts = urlsplit(url)
            return cls(url, str(parts.hostname), parts.port or _HTTPS_PORT, parts.path)
        except (IdevidError, ValueError) as error:
            raise MasaError(f"the MASA cannot be there: {error}") from error


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands in ``masa.toml``."""

    name: str = ""
    """The maker's, in the certificates."""

    url: str = ""
    """Where registrars reach the MASA, as in :class:`Location`."""

    database: str = DATABASE_FILE
    """A file, relative to the directory, or a URL of PostgreSQL."""

    sales: str = Sales.OPEN.value

    voucher_lifetime: int = VOUCHER_LIFETIME
    """Of vouchers without a nonce, in seconds."""

    crls: str = Crls.REACHABLE.value

    def check(self) -> Settings:
        """Return these settings if they can be used. Raises :class:`MasaError`."""
        if not self.name.strip() or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise MasaError(f"the maker's name must have 1 to {MAX_NAME} printable characters")
        Location.parse(self.url)
        if self.sales not in list(Sales):
            raise MasaError(
                f"{printable(self.sales)} is no way to find an owner: take {', '.join(Sales)} for sales"
            )
        if self.crls not in list(Crls):
            raise MasaError(f"{printable(self.crls)} is nothing to do about CRLs: take {', '.join(Crls)}")
        if not 1 <= self.voucher_lifetime <= MAX_VOUCHER_LIFETIME:
            raise MasaError(f"voucher_lifetime is from 1 to {MAX_VOUCHER_LIFETIME} seconds")
        return self

    @property
    def location(self) -> Location:
        """Where the MASA is."""
        return Location.parse(self.url)

    @property
    def lifetime(self) -> timedelta:
        """How long a voucher without a nonce is valid."""
        return timedelta(seconds=self.voucher_lifetime)

    def database_at(self, directory: Path) -> str | Path:
        """Return the URL or the file of the database of the MASA in ``directory``."""
        return self.database if "://" in self.database else directory / self.database

    @classmethod
    def load(cls, directory: Path) -> Settings:
        """Return the settings in a MASA's directory. Raises :class:`MasaError`."""
        path = directory / SETTINGS_FILE
        try:
            return parse(cls, path.read_text(encoding="utf-8"), str(path)).check()
        except FileNotFoundError:
            raise MasaError(
                f"there is no MASA in {directory}; make one with `minerva masa init --dir {directory}`"
            ) from None
        except UnicodeDecodeError as error:
            raise MasaError(f"{path} is not TOML: it is not UTF-8") from error
        except UsageError as error:
            raise MasaError(str(error)) from error
        except MasaError as error:
            raise MasaError(f"{path}: {error}") from error

    def dump(self) -> str:
        """Return the text of the file."""
        # Strings and numbers of JSON are those of TOML.
        values = {
            "name": self.name,
            "url": self.url,
            "database": self.database,
            "sales": self.sales,
            "voucher_lifetime": self.voucher_lifetime,
            "crls": self.crls,
        }
        return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
