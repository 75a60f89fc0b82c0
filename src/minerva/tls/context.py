"""What we offer and accept in TLS, and who we are (RFC 8994 section 6.1, RFC 9325)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from OpenSSL import SSL

from minerva.pki.keys import PrivateKey
from minerva.tls.errors import TlsUsageError
from minerva.tls.library import clear_errors, set_groups, set_signature_algorithms

TLS12_SUITES: Final = ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384")
"""The suites of TLS 1.2: the two that section 6.1 demands. It allows none with a weaker cipher or hash."""

TLS13_SUITES: Final = ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""The suites of TLS 1.3: the one that section 6.1 demands and its one exception."""

GROUPS: Final = ("P-256", "P-384", "X25519", "P-521")
"""The groups for key agreement. P-256 comes first because section 6.1 demands it of everybody: the share that
a client sends at once is then never the wrong one, which would cost a round trip. P-521 is here because in
TLS 1.2 a certificate with a key on a curve that is not offered cannot be used (RFC 8422 section 5.1)."""

SIGNATURE_ALGORITHMS: Final = (
    *("ECDSA+SHA256", "ECDSA+SHA384", "ECDSA+SHA512"),
    *("RSA-PSS+SHA256", "RSA-PSS+SHA384", "RSA-PSS+SHA512"),
    *("RSA+SHA256", "RSA+SHA384", "RSA+SHA512"),
)
"""What signs handshakes and certificates: as in section 6.2.1, RSA or ECDSA over SHA-256 or better."""

_OPTIONS = (
    SSL.OP_NO_COMPRESSION
    | SSL.OP_NO_RENEGOTIATION
    | SSL.OP_NO_TICKET
    | SSL.OP_CIPHER_SERVER_PREFERENCE
    | SSL.OP_SINGLE_ECDH_USE
)


def make_context(
    certificate: x509.Certificate, chain: Iterable[x509.Certificate], key: PrivateKey
) -> SSL.Context:
    """Return a context for clients and servers that own ``certificate``.

    ``chain`` holds the intermediate CAs, as :attr:`minerva.pki.identity.Identity.chain` does; all of them are
    sent. Every certificate of a peer is accepted here, but there has to be one, and the peer has to prove
    that it owns its key: :func:`minerva.tls.membership.check_peer` decides.

    No session is ever resumed: certificates are shown, and keys proved, in every connection.

    Raises :class:`TlsUsageError` if certificate and key do not belong together or are too weak.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_cipher_list(":".join((*TLS12_SUITES, "@SECLEVEL=2")).encode())
    context.set_tls13_ciphersuites(":".join(TLS13_SUITES).encode())
    # Without these the library's defaults remain: wider than need be, but with all that the RFC wants.
    set_groups(context, ":".join(GROUPS))
    set_signature_algorithms(context, ":".join(SIGNATURE_ALGORITHMS))
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    accept_any_certificate(context, required=True)
    # The library shall not spend time on a path that is looked for again, and judged, by our own rules.
    context.set_verify_depth(0)
    try:
        context.use_certificate(certificate)
        context.use_privatekey(key)
        context.check_privatekey()
        for ca in chain:
            context.add_extra_chain_cert(ca)
    except (SSL.Error, ValueError, TypeError) as error:
        raise TlsUsageError(f"TLS cannot use this node's certificate and key: {reason(error)}") from error
    finally:
        clear_errors()
    return context


def accept_any_certificate(context: SSL.Context, *, required: bool) -> None:
    """Ask the peer for a certificate, which others will judge; without it only if it is not ``required``."""
    mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else SSL.VERIFY_PEER
    context.set_verify(mode, _accept)


def reason(error: Exception) -> str:
    """Return what the library says of an error of its, in one line."""
    queue = error.args[0] if error.args else ()
    if not isinstance(error, SSL.Error) or not isinstance(queue, list):
        return str(error) or type(error).__name__
    return "; ".join(dict.fromkeys(entry[2] for entry in queue if entry[2])) or "no reason given"


def _accept(*_: object) -> bool:
    return True
