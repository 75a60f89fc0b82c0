"""Fuzzes what a registrar can say to a pledge, past the voucher: all that EST brings, and redirections.

The first byte chooses which response the input is; the others are honest. Whatever it is, there is an
identity, or one kind of error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from minerva.brski.pledge.attempt import _redirection
from minerva.brski.pledge.enrolment import (
    CACERTS,
    CSRATTRS,
    SIMPLEENROLL,
    anchors_of,
    check_issued,
    fetch_attributes,
    fetch_authorities,
    first_request,
    request_certificate,
)
from minerva.brski.pledge.session import check_signatures
from minerva.core.errors import MinervaError
from minerva.est.bodies import certs_only
from minerva.est.csrattrs import for_node_name
from minerva.https.client import REQUEST_SECONDS, Response
from minerva.pki.ca import CertificateAuthority
from minerva.pki.certificates import load_certificate
from minerva.pki.errors import CertificateError
from minerva.pki.keys import generate_key

WHEN = datetime.now(UTC)
KEY = generate_key("p256")
with TemporaryDirectory() as _folder:
    _root = CertificateAuthority.create("fuzz.example.com", Path(_folder, "root"))
    _issuing = _root.issue_ca(Path(_folder, "issuing"))
    _issued = _issuing.issue(public_key=KEY.public_key(), lifetime=timedelta(days=30))
AUTHORITIES = (*_issued.anchors, *_issued.chain)
HONEST = {
    CACERTS: certs_only(AUTHORITIES),
    CSRATTRS: for_node_name(_issued.node_name),
    SIMPLEENROLL: certs_only([_issued.certificate]),
}
OPERATIONS = tuple(HONEST)
LOOP = asyncio.new_event_loop()


class Registrar:
    """Answers at once, one operation with what the fuzzer made."""

    def __init__(self, operation: str, body: bytes) -> None:
        self._bodies = HONEST | {operation: body}

    async def request(
        self,
        method: str,  # noqa: ARG002
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),  # noqa: ARG002
        body: bytes = b"",  # noqa: ARG002
        timeout: float = REQUEST_SECONDS,  # noqa: ARG002
    ) -> Response:
        return Response(200, {}, self._bodies[target])


async def waiting(_: str) -> None:
    raise AssertionError("nobody said 202")


async def enrol(registrar: Registrar) -> None:
    authorities = await fetch_authorities(registrar)
    anchors = anchors_of(authorities, _issued.anchors[0], WHEN)
    attributes = await fetch_attributes(registrar)
    request = first_request(KEY, attributes)
    certificates = await request_certificate(registrar, SIMPLEENROLL, request, waiting, lambda: WHEN)
    assert attributes.node_name is not None
    identity = check_issued(certificates, authorities, anchors, KEY, attributes.node_name, WHEN)
    assert identity.certificate.public_key() == KEY.public_key()
    assert set(identity.anchors) == set(_issued.anchors)


def target(data: bytes) -> None:
    """Take ``data`` for one of the responses."""
    if (problem := _problem(data)) is not None:
        assert problem.isprintable(), problem


def _problem(data: bytes) -> str | None:
    mode, rest = data[0] % 5 if data else 0, data[1:]
    try:
        if mode < len(OPERATIONS):
            LOOP.run_until_complete(enrol(Registrar(OPERATIONS[mode], rest)))
        elif mode == 3:
            try:
                chain: list[x509.Certificate] = [load_certificate(rest), *AUTHORITIES]
            except CertificateError:
                return None
            check_signatures(chain)
        else:
            place = _redirection(Response(307, {"location": rest.decode("latin-1")}))
            assert place.target.startswith("/")
            assert place.origin.isprintable()
    except MinervaError as error:
        # Of this package or of one below: bootstrap() makes them all an AttemptError.
        return str(error)
    return None


SEEDS = [
    *(bytes((number,)) + HONEST[operation] for number, operation in enumerate(OPERATIONS)),
    b"\x03" + _issued.certificate.public_bytes(Encoding.DER),
    b"\x04https://registrar.example:8443/.well-known/brski/requestvoucher",
    b"\x04/requestvoucher?x=1",
]


if __name__ == "__main__":
    from _harness import run

    run(target, SEEDS)
