"""What holds for the whole domain, whichever of its registrar processes is asked: rows of ``state``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from minerva.brski.registrar.database import set_state, state
from minerva.brski.registrar.errors import DatabaseError
from minerva.pki.address import AcpAddress, Scheme

CERTIFICATE_LIFETIME: Final = timedelta(days=30)
"""How long a device's certificate is valid. It renews after half of that."""

CRL_LIFETIME: Final = timedelta(hours=1)
"""How long a CRL is valid: so long a revoked device may remain where nobody asked for a newer one."""

CRL_PATH: Final = "/crl"
"""Where the CRL is; under it, by the issuer's key identifier, those of the issuing CAs before."""


MAX_CRL_URLS: Final = 3
"""How many places of the CRL a certificate names at most."""

_SELECT = sa.select(state.c.key, state.c.value)


class AuthorityKind(StrEnum):
    """Who signs."""

    BUILT_IN = "built-in"
    EST = "est"


@dataclass(frozen=True, slots=True)
class Domain:
    """The settings of a domain.

    ``root`` and ``issuing`` are the key identifiers, in hexadecimal, of the CAs in use. ``crl_bases`` are the
    URLs, without the path, of the HTTP servers in the ACP that have the CRL: one on each machine of the
    registrar. ``est_url`` is that of an external CA.
    """

    name: str
    authority: AuthorityKind
    scheme: Scheme = Scheme.ZONE
    certificate_lifetime: timedelta = CERTIFICATE_LIFETIME
    crl_lifetime: timedelta = CRL_LIFETIME
    crl_bases: tuple[str, ...] = ()
    root: str = ""
    issuing: str = ""
    revocations: int = 0
    est_url: str = ""

    @property
    def crl_urls(self) -> tuple[str, ...]:
        """Where a certificate says that the CRL is. None with an external CA, which has its own."""
        if self.authority is not AuthorityKind.BUILT_IN:
            return ()
        return tuple(f"{base}{CRL_PATH}/{self.issuing}" for base in self.crl_bases[:MAX_CRL_URLS])


def load_domain(connection: Connection) -> Domain:
    """Return the settings of the domain. Raises :class:`DatabaseError` if they cannot be read."""
    rows = {row.key: row.value for row in connection.execute(_SELECT)}
    try:
        return Domain(
            name=rows["domain"],
            authority=AuthorityKind(rows["authority"]),
            scheme=Scheme(rows["scheme"]),
            certificate_lifetime=timedelta(seconds=int(rows["certificate_lifetime"])),
            crl_lifetime=timedelta(seconds=int(rows["crl_lifetime"])),
            crl_bases=tuple(rows["crl_bases"].split()),
            root=rows["root"],
            issuing=rows["issuing"],
            revocations=int(rows.get("revocations", "0")),
            est_url=rows["est_url"],
        )
    except (KeyError, ValueError) as error:
        raise DatabaseError(
            f"the settings of the domain in the database cannot be read: {error!r}"
        ) from error


def crl_base(service_address: AcpAddress, port: int) -> str:
    """Return the URL of the CRL's server on a machine of the registrar, without the path."""
    return f"http://[{service_address}]:{port}"


def store_domain(connection: Connection, domain: Domain) -> None:
    """Write the settings of the domain, but for the number of revocations."""
    for key, value in {
        "domain": domain.name,
        "authority": domain.authority.value,
        "scheme": domain.scheme.value,
        "certificate_lifetime": str(int(domain.certificate_lifetime.total_seconds())),
        "crl_lifetime": str(int(domain.crl_lifetime.total_seconds())),
        "crl_bases": " ".join(domain.crl_bases),
        "root": domain.root,
        "issuing": domain.issuing,
        "est_url": domain.est_url,
    }.items():
        set_state(connection, key, value)
