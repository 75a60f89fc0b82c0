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
from minerva.pki.address import Scheme

CERTIFICATE_LIFETIME: Final = timedelta(days=30)
"""How long a device's certificate is valid. It renews after half of that."""

CRL_LIFETIME: Final = timedelta(hours=1)
"""How long a CRL is valid: so long a revoked device may remain where nobody asked for a newer one."""

CRL_PATH: Final = "/crl"
"""Where the CRL is; under it, by the issuer's key identifier, those of the issuing CAs before."""


_SELECT = sa.select(state.c.key, state.c.value)


class AuthorityKind(StrEnum):
    """Who signs."""

    BUILT_IN = "built-in"
    EST = "est"


@dataclass(frozen=True, slots=True)
class Domain:
    """The settings of a domain.

    ``root`` and ``issuing`` are the key identifiers, in hexadecimal, of the CAs in use. ``crl_base`` is the
    URL of an HTTP server in the ACP, without the path. ``est_url`` is that of an external CA.
    """

    name: str
    authority: AuthorityKind
    scheme: Scheme = Scheme.ZONE
    certificate_lifetime: timedelta = CERTIFICATE_LIFETIME
    crl_lifetime: timedelta = CRL_LIFETIME
    crl_base: str = ""
    root: str = ""
    issuing: str = ""
    revocations: int = 0
    est_url: str = ""

    @property
    def crl_urls(self) -> tuple[str, ...]:
        """Where a certificate says that the CRL is. None with an external CA, which has its own."""
        if self.authority is not AuthorityKind.BUILT_IN or not self.crl_base:
            return ()
        return (f"{self.crl_base}{CRL_PATH}/{self.issuing}",)


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
            crl_base=rows["crl_base"],
            root=rows["root"],
            issuing=rows["issuing"],
            revocations=int(rows.get("revocations", "0")),
            est_url=rows["est_url"],
        )
    except (KeyError, ValueError) as error:
        raise DatabaseError(
            f"the settings of the domain in the database cannot be read: {error!r}"
        ) from error


def store_domain(connection: Connection, domain: Domain) -> None:
    """Write the settings of the domain, but for the number of revocations."""
    for key, value in {
        "domain": domain.name,
        "authority": domain.authority.value,
        "scheme": domain.scheme.value,
        "certificate_lifetime": str(int(domain.certificate_lifetime.total_seconds())),
        "crl_lifetime": str(int(domain.crl_lifetime.total_seconds())),
        "crl_base": domain.crl_base,
        "root": domain.root,
        "issuing": domain.issuing,
        "est_url": domain.est_url,
    }.items():
        set_state(connection, key, value)
