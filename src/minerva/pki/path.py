"""Certificate path validation to our own trust anchors (RFC 5280 section 6, RFC 8994 section 6.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import verification

from minerva.core.text import utc
from minerva.pki.certificates import UNREADABLE
from minerva.pki.errors import KeyRuleError, PathError
from minerva.pki.keys import check_certificate

MAX_CERTIFICATES = 16
"""How many certificates, the leaf included, a peer may send."""

MAX_INTERMEDIATES = 4
"""How many CAs may stand between a leaf and a trust anchor. The RFC asks for two."""

Path = tuple[x509.Certificate, ...]
"""A validated path: the leaf first, the trust anchor last."""


def validate_path(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], when: datetime | None
) -> Path:
    """Return the path from ``chain[0]`` to one of ``anchors``.

    After the leaf, ``chain`` may hold intermediate CAs in any order, trust anchors, and certificates that
    have nothing to do with it. ``when`` is the calendar time, with a time zone. ``None`` stands for a
    node that does not trust its clock (RFC 8994 section 6.2.3.1): it is then enough that there is a moment,
    whichever, at which the whole path is valid.

    Raises :class:`PathError`, whose text tells an expired certificate from an unacceptable key and from
    an unknown issuer.
    """
    if when is not None and when.tzinfo is None:
        raise ValueError("the time of a path validation needs a time zone")
    if not chain:
        raise PathError("no certificate")
    if len(chain) > MAX_CERTIFICATES:
        raise PathError(f"{len(chain)} certificates, at most {MAX_CERTIFICATES} are accepted")
    leaf = chain[0]
    try:
        check_certificate(leaf)
        # Decoded here once, so that nobody who got a path trips over them later.
        leaf.extensions  # noqa: B018
        intermediates = _authentic(chain[1:], anchors)
        try:
            return _verify(leaf, intermediates, anchors, when)
        except verification.VerificationError as error:
            raise PathError(_explain(leaf, intermediates, anchors, when, error)) from error
    except KeyRuleError as error:
        raise PathError(str(error)) from error
    except UNREADABLE as error:
        raise PathError(f"a certificate cannot be read: {_printable(str(error))}") from error


def _name(name: x509.Name) -> str:
    return _printable(name.rfc4514_string()) or "(no name)"


def _printable(text: str) -> str:
    # A stranger chose the text. On an operator's terminal it must not do more than be read.
    return ascii(text)[1:-1]


def _authentic(
    certificates: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Return those of ``certificates`` that descend from ``anchors``, going by names and signatures alone.

    Searched from the anchors down, a stranger's certificates cost one signature each at most. A search
    up from the leaf tries all of them as issuers of one another: a hundred signatures, of his choice.
    """
    waiting = [certificate for certificate in dict.fromkeys(certificates) if certificate not in anchors]
    issuers, found = list(anchors), []
    while issuers and waiting:
        issuer = issuers.pop()
        children = [certificate for certificate in waiting if _issued(issuer, certificate)]
        waiting = [certificate for certificate in waiting if certificate not in children]
        issuers += children
        found += children
    return found


# Always the same for the same two certificates, and those of CAs come again with every peer.
@lru_cache(256)
def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _demand_cert_sign(
    _policy: object, _certificate: x509.Certificate, extension: x509.KeyUsage | None
) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError("keyUsage does not allow it to sign certificates")


# The library's own policies are those of the web: they demand names and key usages that RFC 8994 does
# not. These demand of a CA what RFC 5280 section 6.1.4 (k) and (n) do (that basicConstraints say it is a CA
# is checked by the library where they must be present), and of a leaf nothing.
_CA_POLICY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _demand_cert_sign)
)
_LEAF_POLICY = verification.ExtensionPolicy.permit_all()


def _verify(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    when: datetime | None,
) -> Path:
    builder = (
        verification.PolicyBuilder()
        .store(verification.Store(list(anchors)))
        .max_chain_depth(MAX_INTERMEDIATES)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
    )
    failure: verification.VerificationError | None = None
    for moment in _moments((leaf, *intermediates, *anchors)) if when is None else [when]:
        try:
            return tuple(builder.time(moment).build_client_verifier().verify(leaf, list(intermediates)).chain)
        except verification.VerificationError as error:
            failure = error
    assert failure is not None
    raise failure


def _moments(certificates: Sequence[x509.Certificate]) -> list[datetime]:
    # If the validity periods of a path have a moment in common, the latest notBefore among them is one.
    return sorted({certificate.not_valid_before_utc for certificate in certificates}, reverse=True)


def _explain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    when: datetime | None,
    error: verification.VerificationError,
) -> str:
    cas = [*intermediates, *anchors]
    issuer = _name(leaf.issuer)
    if not any(_issued(ca, leaf) for ca in cas):
        if any(ca.subject == leaf.issuer for ca in cas):
            return f"no path to a trust anchor; its issuer {issuer} is not our CA of that name"
        return f"no path to a trust anchor; its issuer is {issuer}"
    if when is not None:
        try:
            path = _verify(leaf, intermediates, anchors, None)
        except verification.VerificationError:
            path = (leaf,)
        for sentence in (_out_of_time(certificate, when) for certificate in path):
            if sentence is not None:
                return sentence
    for ca in cas:
        try:
            check_certificate(ca)
        except KeyRuleError as reason:
            return f"CA {_name(ca.subject)}: {reason}"
    return f"no path to a trust anchor: {_printable(str(error))}"


def _out_of_time(certificate: x509.Certificate, when: datetime) -> str | None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if when > end:
        return f"certificate of {_name(certificate.subject)} expired on {utc(end)}"
    if when < start:
        return f"certificate of {_name(certificate.subject)} is not valid before {utc(start)}"
    return None
